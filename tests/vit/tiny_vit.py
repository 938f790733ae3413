"""Real models, only tiny: random weights, saved the way transformers saves them; and real photographs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

Kind = Literal["vit", "deit", "dinov2", "swin", "convnext"]
CLASSES = ("cat", "dog", "fish")
PICTURES = ("astronaut", "coffee", "cat", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
SIZES = ((500, 375), (375, 500), (640, 427), (320, 320), (300, 420), (1024, 683), (257, 193))


def make_vit(
    folder: Path,
    *,
    classes: Sequence[str] = CLASSES,
    hidden: int = 32,
    layers: int = 2,
    image_px: int = 32,
    patch: int = 8,
    seed: int = 0,
    kind: Kind = "vit",
) -> Path:
    """A model folder: config.json, model.safetensors, preprocessor_config.json. Logits of two pictures differ."""
    import torch
    import transformers

    names = dict(enumerate(classes))
    common: dict[str, Any] = {
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
        "initializer_range": 0.1,  # 0.02 is for wide models: tiny ones would say the same of every picture
    }
    config, model_class = _SHAPES[kind](transformers, common, hidden, layers, image_px, patch)
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():  # biases, norms and scales as if they had been trained: a swapped one must be seen
        for parameter in model.parameters():
            if parameter.dim() < 2 or not parameter.any():
                parameter.add_(0.05 * torch.randn_like(parameter))
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(kind, image_px), indent=2))
    return folder


def photos(
    folder: Path, count: int, *, sizes: Sequence[tuple[int, int]] = SIZES, quality: int = 90
) -> list[Path]:
    """`count` different JPEG photographs of these (width, height), in the order of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    paths = []
    for number in range(count):
        whole = _picture(PICTURES[number % len(PICTURES)])
        share = random.uniform(0.6, 1.0)
        width, height = int(whole.width * share), int(whole.height * share)
        left, top = random.integers(0, whole.width - width + 1), random.integers(0, whole.height - height + 1)
        piece = whole.resize(sizes[number % len(sizes)], box=(left, top, left + width, top + height))
        paths.append(folder / f"photo_{number:04d}.jpg")
        piece.save(paths[-1], quality=quality)
    return paths


@lru_cache
def _picture(name: str) -> Image.Image:
    from skimage import data

    return Image.fromarray(getattr(data, name)()).convert("RGB")


def _transformer(config_name: str, model_name: str) -> Any:
    def shape(transformers: Any, common: dict, hidden: int, layers: int, image_px: int, patch: int) -> Any:
        config = getattr(transformers, config_name)(
            hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=2 * hidden,
            mlp_ratio=2, image_size=image_px, patch_size=patch, **common,
        )  # fmt: skip
        return config, getattr(transformers, model_name)

    return shape


def _swin(transformers: Any, common: dict, hidden: int, layers: int, image_px: int, patch: int) -> Any:
    config = transformers.SwinConfig(
        image_size=image_px, patch_size=max(1, patch // 4), embed_dim=hidden // 2, depths=[1, 1],
        num_heads=[2, 4], window_size=4, **common,
    )  # fmt: skip
    return config, transformers.SwinForImageClassification


def _convnext(transformers: Any, common: dict, hidden: int, layers: int, image_px: int, patch: int) -> Any:
    config = transformers.ConvNextConfig(
        hidden_sizes=[hidden // 2, hidden],
        depths=[1, 1],
        num_stages=2,
        patch_size=4,
        image_size=image_px,
        **common,
    )
    return config, transformers.ConvNextForImageClassification


_SHAPES = {
    "vit": _transformer("ViTConfig", "ViTForImageClassification"),
    "deit": _transformer("DeiTConfig", "DeiTForImageClassification"),
    "dinov2": _transformer("Dinov2Config", "Dinov2ForImageClassification"),
    "swin": _swin,
    "convnext": _convnext,
}


def _processor(kind: Kind, image_px: int) -> dict[str, Any]:
    """What the checkpoints of this kind have on the Hub, only smaller."""
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    square = {"height": image_px, "width": image_px}
    crop = {"do_center_crop": True, "crop_size": square}
    longer = round(image_px * 8 / 7)
    common = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    own: dict[str, dict[str, Any]] = {
        "vit": {"image_processor_type": "ViTImageProcessor", "size": square, "resample": 2,
                "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
        "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": longer, "width": longer},
                 "resample": 3, **crop, **imagenet},
        "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": longer}, "resample": 3,
                   "do_convert_rgb": True, **crop, **imagenet},
        "swin": {"image_processor_type": "ViTImageProcessor", "size": square, "resample": 3, **imagenet},
        "convnext": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": image_px},
                     "resample": 3, "crop_pct": 0.875, **imagenet},
    }  # fmt: skip
    return {**common, **own[kind]}
