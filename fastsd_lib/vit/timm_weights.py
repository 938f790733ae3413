"""timm's ViT weights in transformers' layout: the way to AugReg's better ones (Steiner et al. 2021, arXiv 2106.10270).

timm keeps query, key and value in one matrix and has other names; the numbers are the same. Only the plain design is
taken: anything that ViTForImageClassification does not have (fc_norm, LayerScale, registers) is refused by name.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json, write_json
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.vit.config import CONFIG, PROCESSOR, WEIGHTS

#: timm's name -> transformers'; {} is the number of the block. ".weight" and ".bias" follow either.
KEYS = {
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "blocks.{}.norm1": "vit.encoder.layer.{}.layernorm_before",
    "blocks.{}.attn.proj": "vit.encoder.layer.{}.attention.output.dense",
    "blocks.{}.norm2": "vit.encoder.layer.{}.layernorm_after",
    "blocks.{}.mlp.fc1": "vit.encoder.layer.{}.intermediate.dense",
    "blocks.{}.mlp.fc2": "vit.encoder.layer.{}.output.dense",
    "norm": "vit.layernorm",
    "head": "classifier",
}
SPLIT = "blocks.{}.attn.qkv"  # query, key, value below each other
INTO = "vit.encoder.layer.{}.attention.attention."
WHOLE = {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings"}
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16}  # by width; timm writes it nowhere
_NAMED_AFTER = "google/vit-base-patch16-224"  # the names of ImageNet's 1,000 classes, in timm's order too
_RESAMPLE = {"bilinear": 2, "bicubic": 3}


def convert(folder: Path, to: Path, token: Any = None) -> None:
    """Write the model of timm's `folder` into the folder `to` as transformers saves it. UserError for other designs."""
    config = read_json(folder / CONFIG)
    shapes = {name: one.shape for name, one in read_tensor_file(folder / WEIGHTS).tensors.items()}
    _refuse_other_designs(folder, shapes)
    save_file(rename(load_file(folder / WEIGHTS)), to / WEIGHTS, metadata={"format": "pt"})
    classes = shapes["head.weight"][0]
    write_json(to / CONFIG, _config(config, shapes, _labels(config, classes, token)))
    write_json(to / PROCESSOR, _processor(config.get("pretrained_cfg") or {}, config, shapes))


def rename(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's state dict with transformers' names."""
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name in WHOLE:
            renamed[WHOLE[name]] = tensor
            continue
        stem, _, end = name.rpartition(".")
        pattern, block = _pattern(stem)
        if pattern == SPLIT:
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"{INTO.format(block)}{part}.{end}"] = piece.contiguous()
        else:
            renamed[f"{KEYS[pattern].format(block)}.{end}"] = tensor
    return renamed


def _pattern(stem: str) -> tuple[str, str]:
    """("blocks.{}.norm1", "3") of "blocks.3.norm1"."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    return (f"blocks.{{}}.{found[2]}", found[1]) if found else (stem, "")


def _refuse_other_designs(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    known = {*KEYS, SPLIT}
    for name in shapes:
        if name not in WHOLE and _pattern(name.rpartition(".")[0])[0] not in known:
            raise _other_design(folder, f"it has {escaped(name)}")
    for needed in (
        *WHOLE,
        "patch_embed.proj.weight",
        "head.weight",
        "blocks.0.attn.qkv.weight",
        "norm.weight",
    ):
        if needed not in shapes:
            raise _other_design(folder, f"it lacks {needed}")
    if shapes["cls_token"][-1] not in HEADS:
        raise _other_design(folder, f"it is {shapes['cls_token'][-1]} wide")


def _other_design(folder: Path, why: str) -> UserError:
    return UserError(
        f"The timm model in {folder} is not a plain ViT: {why}.",
        fix="take one such as timm/vit_base_patch16_224.augreg2_in21k_ft_in1k, or a model in transformers' layout.",
    )


def _config(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], labels: dict[int, str]
) -> dict[str, Any]:
    hidden, patch = shapes["cls_token"][-1], shapes["patch_embed.proj.weight"][-1]
    return {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": hidden,
        "num_hidden_layers": 1
        + max(int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))),
        "num_attention_heads": HEADS[hidden],
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "image_size": patch * math.isqrt(shapes["pos_embed"][1] - 1),
        "patch_size": patch,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": {str(number): label for number, label in labels.items()},
        "label2id": {label: number for number, label in labels.items()},
        "timm_architecture": config["architecture"],
    }


def _processor(
    trained: dict[str, Any], config: dict[str, Any], shapes: dict[str, tuple[int, ...]]
) -> dict[str, Any]:
    """timm's evaluation transform: the short side a little larger, then the middle."""
    side = shapes["patch_embed.proj.weight"][-1] * math.isqrt(shapes["pos_embed"][1] - 1)
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": math.floor(side / float(trained.get("crop_pct", 0.9)))},
        "resample": _RESAMPLE.get(trained.get("interpolation", "bicubic"), 3),
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(trained.get("mean", (0.5, 0.5, 0.5))),
        "image_std": list(trained.get("std", (0.5, 0.5, 0.5))),
    }


def _labels(config: dict[str, Any], classes: int, token: Any) -> dict[int, str]:
    """Their names: from the config, for ImageNet's 1,000 from the Hub where it can be reached; else numbers."""
    names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
    if isinstance(names, list) and len(names) == classes:
        return {number: str(name) for number, name in enumerate(names)}
    if classes == 1000 and (names := _imagenet_names(token)):
        return names
    return {number: f"LABEL_{number}" for number in range(classes)}


def _imagenet_names(token: Any) -> dict[int, str]:
    from fastsd_lib.models.hub_repository import fetch_files

    try:
        folder = fetch_files(_NAMED_AFTER, lambda _, files: [CONFIG], token, sign=CONFIG)
        return {int(number): str(name) for number, name in read_json(folder / CONFIG)["id2label"].items()}
    except (UserError, KeyError, ValueError, AttributeError, OSError):  # the model works without names
        return {}
