"""A small ViT with random weights, as a folder in transformers' layout: the beginning of a model from scratch."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import logging

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import write_json
from fastsd_lib.vit.config import CONFIG, PROCESSOR
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.vit.whole_folder import whole_folder

_NARROW = (
    256  # below this width 0.02, transformers' default, is far too little for anything to be learned soon
)
_WAIT_S = 300


def make_new(config: VitTrainConfig, classes: Sequence[str], folder: Path) -> Path:
    """The folder of a new model for these classes; the same weights for the same seed.

    Of several processes the first one makes it, the others wait for it.
    """
    if int(os.environ.get("RANK", "0")):
        return _waited_for(folder)
    torch.manual_seed(config.seed)
    model = ViTForImageClassification(
        ViTConfig(
            image_size=config.new_image_px,
            patch_size=config.new_patch_px,
            hidden_size=config.new_width,
            num_hidden_layers=config.new_layers,
            num_attention_heads=config.new_heads,
            intermediate_size=4 * config.new_width,
            initializer_range=0.1 if config.new_width < _NARROW else 0.02,
            id2label=dict(enumerate(classes)),
            label2id={name: number for number, name in enumerate(classes)},
        )
    )
    with whole_folder(folder, ours=lambda path: (path / CONFIG).is_file()) as scratch:
        save_quietly(model, scratch)
        side = {"height": config.new_image_px, "width": config.new_image_px}
        write_json(
            scratch / PROCESSOR,
            {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": side,
                "resample": 2,
                "do_rescale": True,
                "rescale_factor": 1 / 255,
                "do_normalize": True,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
        )
    return folder


def save_quietly(model: Any, folder: Path) -> None:
    """save_pretrained without its progress bar, which is drawn for files of a megabyte, too."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def _waited_for(folder: Path) -> Path:
    for _ in range(_WAIT_S * 10):
        if (folder / CONFIG).is_file():
            return folder
        time.sleep(0.1)
    raise UserError(
        f"The first process did not make {folder}.", fix="look at what it says; all must see one disk."
    )
