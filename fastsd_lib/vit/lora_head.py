"""LoRA: small matrices beside the frozen weights of the attention, and a head that learns whole (peft)."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsd_lib.core.errors import require
from fastsd_lib.vit.layers import block_names, head_modules
from fastsd_lib.vit.train_config import VitTrainConfig

_ATTENTION = re.compile(r"query|key|value|[qkv]_proj|qkv|to_[qkv]")


def add_lora(model: nn.Module, config: VitTrainConfig) -> Any:
    """`model` with adapters on queries, keys and values (on every linear layer of a model without attention).

    Hu et al. 2021 (arXiv 2106.09685). Only the adapters and the head learn.
    """
    require("peft", group="vit")
    from peft import LoraConfig, get_peft_model

    blocks = tuple(f"{name}." for name in block_names(model))
    linear = [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(blocks)
    ]
    targets = [name for name in linear if _ATTENTION.search(name.rsplit(".", 1)[-1])] or linear
    torch.manual_seed(config.seed)  # the adapters' random halves
    adapters = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=targets,
        modules_to_save=list(head_modules(model)),
    )
    with warnings.catch_warnings():  # peft asks transformers by names that are going away
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, adapters)


def save_adapter(model: Any, folder: Path) -> None:
    """The adapters and the head alone, as peft reads them: a few hundred kilobytes."""
    model.save_pretrained(folder, safe_serialization=True)


def merged(model: Any) -> nn.Module:
    """The plain model with the adapters added to its weights."""
    return model.merge_and_unload()
