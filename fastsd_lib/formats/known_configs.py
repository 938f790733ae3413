"""The configs of the published families, which a bare single file leaves out: data in `bundled/`, chosen by shapes.

A folder of `bundled/` holds the configs of one model as diffusers wants them. Those of a relative (`LIKE`) hold only
what differs from it; null takes an entry away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import Tensor, TensorFile
from fastsd_lib.formats.key_maps import BODY_PREFIXES, TEXT_PREFIXES
from fastsd_lib.formats.shapes import text_config, unet_config, vae_config

BUNDLED = Path(__file__).with_name("bundled")
LIKE = {
    "sd15-inpainting": "sd15",
    "pix2pix": "sd15",
    "sd2-768-v": "sd2-base",
    "sd2-inpainting": "sd2-base",
    "sd2-depth": "sd2-base",
    "sdxl-inpainting": "sdxl-base",
}
# Kind of single file, input channels of the U-Net -> folder of `bundled/`. SD 2.x has another for velocity.
NAMES = {
    ("sd1", 4): "sd15",
    ("sd1", 9): "sd15-inpainting",
    ("sd1", 8): "pix2pix",
    ("sd2", 4): "sd2-base",
    ("sd2", 9): "sd2-inpainting",
    ("sd2", 5): "sd2-depth",
    ("sdxl", 4): "sdxl-base",
    ("sdxl", 9): "sdxl-inpainting",
    ("sdxl_refiner", 4): "sdxl-refiner",
}
VELOCITY = {"sd2-base": "sd2-768-v"}
# What shapes tell of each part: if these agree, the weights fit.
_TOLD = {
    "unet": ("block_out_channels", "layers_per_block", "cross_attention_dim", "down_block_types", "in_channels"),
    "vae": ("block_out_channels", "layers_per_block", "latent_channels"),
    "text_encoder": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
}  # fmt: skip
_MAY_DIFFER = ("sample_size", "upcast_attention", "force_upcast", "architectures")


@lru_cache
def _files(name: str) -> dict[str, Any]:
    given = _files(LIKE[name]) if name in LIKE else {}
    own = {
        path.relative_to(BUNDLED / name).as_posix(): json.loads(path.read_text("utf-8"))
        for path in (BUNDLED / name).rglob("*.json")
    }
    return given | {path: _over(given.get(path, {}), value) for path, value in own.items()}


def _over(given: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: one for key, one in {**given, **value}.items() if one is not None or key not in value}


def bundled(name: str) -> dict[str, Any]:
    """The parsed configs of `bundled/NAME` by their path in a Diffusers folder."""
    return deepcopy(_files(name))


def known_name(file: TensorFile, kind: str, velocity: bool) -> str | None:
    """Which folder of `bundled/` a single file of this kind fits; None when it has other shapes than the published."""
    first = file.tensors.get(BODY_PREFIXES["unet"] + "input_blocks.0.0.weight")
    if first is None or len(first.shape) != 4:
        return None
    name = NAMES.get((kind, first.shape[1]))
    if name is None:
        return None
    known = _files(name)
    try:
        found = {part: _shapes(file, kind, part) for part in ("unet", "vae", *TEXT_PREFIXES[kind])}
    except UserError:  # says that the shapes are unheard of
        return None
    for part, config in found.items():
        told = _TOLD["text_encoder" if part.startswith("text") else part]
        if any(config[key] != known[f"{part}/config.json"].get(key) for key in told):
            return None
    if _depths(found["unet"]) != _depths(known["unet/config.json"]):
        return None
    return VELOCITY.get(name, name) if velocity else name


def is_stock(configs: Mapping[str, str], kind: str) -> bool:
    """Whether every loader knows these configs (path in the folder -> JSON text) by heart.

    An entry that is left out has diffusers' default, which is what the published models have.
    """
    unet = json.loads(configs["unet/config.json"])
    name = NAMES.get((kind, unet.get("in_channels", 4)))
    if name is None:
        return False
    for path, known in _files(name).items():
        if not path.startswith(("unet/", "vae/", "text_encoder")):
            continue
        config = json.loads(configs.get(path, "{}"))
        for key, value in known.items():
            if key in _MAY_DIFFER or key.endswith("token_id"):
                continue  # bos, eos and pad were published wrong, and are read from the tokenizer
            if not _same(config.get(key, value), value) and not (key == "projection_dim" and kind == "sd2"):
                return False
    return True


def _same(one: Any, other: Any) -> bool:
    """Equal; one number stands for every level."""
    if isinstance(one, list) != isinstance(other, list):
        many, single = (one, other) if isinstance(one, list) else (other, one)
        return all(each == single for each in many)
    return bool(one == other)


def _depths(unet: Mapping[str, Any]) -> list[int]:
    """Transformer blocks of every level that attends, and of the middle."""
    depths = unet.get("transformer_layers_per_block", [1] * len(unet["block_out_channels"]))
    attending = [
        depth for depth, kind in zip(depths, unet["down_block_types"], strict=True) if "CrossAttn" in kind
    ]
    return [*attending, depths[-1]]


def _shapes(file: TensorFile, kind: str, part: str) -> dict[str, Any]:
    prefix = (BODY_PREFIXES | TEXT_PREFIXES[kind])[part]
    inner = inner_tensors(file, prefix)
    if part == "unet":
        return unet_config(inner, file.path)
    if part == "vae":
        return vae_config(inner, file.path)
    config = text_config(modern_names(inner), file.path)
    if kind == "sd2" and config["num_hidden_layers"] == 24:
        config["num_hidden_layers"] = 23  # the last layer is never read
    return config


def modern_names(inner: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """CLIP's names with `text_model.`, which transformers leave out since 5.6."""
    flat = "embeddings.token_embedding.weight" in inner
    return {f"text_model.{name}": one for name, one in inner.items()} if flat else inner


def inner_tensors(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: t for name, t in file.tensors.items() if name.startswith(prefix)}
