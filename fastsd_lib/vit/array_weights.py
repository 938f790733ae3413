"""ViT and DeiT without PyTorch: transformers' safetensors file as a tree of numpy arrays, and back.

JAX and TensorFlow read their weights from here; neither this file nor they import torch. Products are stored as
(in, out), patches flattened in the order row, column, channel, as both frameworks like them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, read_json
from fastsd_lib.core.tensor_file import read_tensor_file

#: transformers' names of the activations that `jax_vit.py` and `tensorflow_vit.py` have.
ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
Weights = dict[str, Any]  # names -> arrays, or Weights, or for "blocks" a list of Weights

# Where each array stands in the tree: its name in the file (after "vit." or "deit."), and how it is turned.
_STEM = {
    "cls": ("embeddings.cls_token", "same"),
    "distillation": ("embeddings.distillation_token", "same"),  # DeiT only
    "positions": ("embeddings.position_embeddings", "same"),
    "patches/kernel": ("embeddings.patch_embeddings.projection.weight", "patches"),
    "patches/bias": ("embeddings.patch_embeddings.projection.bias", "same"),
    "norm/scale": ("layernorm.weight", "same"),
    "norm/bias": ("layernorm.bias", "same"),
}
_BLOCK = {
    "norm1": ("layernorm_before", "norm"),
    "query": ("attention.attention.query", "linear"),
    "key": ("attention.attention.key", "linear"),
    "value": ("attention.attention.value", "linear"),
    "out": ("attention.output.dense", "linear"),
    "norm2": ("layernorm_after", "norm"),
    "up": ("intermediate.dense", "linear"),
    "down": ("output.dense", "linear"),
}
_HEADS = {  # a file holds one of the two sets
    "head": "classifier",
    "cls_head": "cls_classifier",
    "distillation_head": "distillation_classifier",
}
_PARTS = {
    "norm": {"scale": ("weight", "same"), "bias": ("bias", "same")},
    "linear": {"kernel": ("weight", "transposed"), "bias": ("bias", "same")},
}
_NOT_NEEDED = re.compile(r"pooler\.|embeddings\.mask_token$")  # no classification or embedding uses them
# Module names of transformers 5, should a file carry them; files normally keep the older ones.
_NEWER_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{_QKV[m[1]]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_QKV = {"q": "query", "k": "key", "v": "value"}


@dataclass(frozen=True)
class Design:
    """What config.json says and the arrays do not."""

    kind: str  # "vit" or "deit"
    layers: int
    heads: int
    image_px: tuple[int, int]  # height, width
    patch_px: tuple[int, int]
    epsilon: float  # of the LayerNorms
    activation: str  # transformers' name: "gelu" is the exact one, by erf


def read_design(folder: Path) -> Design:
    """UserError for architectures other than ViT and DeiT, and for activations that are not in ACTIVATIONS."""
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("vit", "deit"):
        raise UserError(
            f"JAX and TensorFlow run ViT and DeiT here; {folder.name} is {kind or 'of no known kind'}.",
            fix='use backend "torch" or "openvino", or export it as "onnx" or "openvino".',
        )
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{folder.name} has the activation {activation!r}, which JAX and TensorFlow have not here.",
            fix='use backend "torch" or "openvino", or export it as "onnx" or "openvino".',
        )
    defaults = {"num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224, "patch_size": 16}
    seen = {name: config.get(name, value) for name, value in defaults.items()}
    return Design(
        kind,
        layers=seen["num_hidden_layers"],
        heads=seen["num_attention_heads"],
        image_px=_pair(seen["image_size"]),
        patch_px=_pair(seen["patch_size"]),
        epsilon=config.get("layer_norm_eps", 1e-12),
        activation=activation,
    )


def read_weights(folder: Path, design: Design, *, head: bool = True) -> Weights:
    """The tree of float32 arrays: every key of model.safetensors is used, none is missing, shapes fit the design.

    `head=False`: a model without a classifier will do, for features. Raises UserError that names the keys, for a file
    of another model.
    """
    path = folder / "model.safetensors"
    read_tensor_file(path)  # a damaged file is told here, in plain words
    with safe_open(str(path), framework="np") as file:
        by_name = {_older_name(key, design.kind): key for key in file.keys()}  # noqa: SIM118
        table = _table(design, with_teacher=any(name.startswith("cls_classifier.") for name in by_name))
        missing = sorted(
            name
            for name, (place, _, needed) in table.items()
            if needed and name not in by_name and (head or not place.startswith("head/"))
        )
        extra = sorted(name for name in by_name.keys() - table.keys() if not _NOT_NEEDED.match(name))
        if missing or extra:
            raise UserError(
                f"{path} does not hold a {design.kind} of {design.layers} layers: "
                + "; ".join(
                    f"{word} {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
                    for word, names in (("missing", missing), ("too much", extra))
                    if names
                )
                + ".",
                fix="config.json and model.safetensors must come from one save_pretrained().",
            )
        weights: Weights = {}
        for name, (place, turn, _) in table.items():
            if name in by_name:
                array = np.asarray(file.get_tensor(by_name[name])).astype(np.float32)
                _put(weights, place, _TURNS[turn][0](array, design))
    _check_shapes(weights, design, path)
    return weights


def write_weights(path: Path, weights: Mapping[str, Any], design: Design) -> None:
    """A model.safetensors that transformers reads: the very bits of the arrays, under transformers' names."""
    flat = {}
    table = _table(design, with_teacher="cls_head" in weights)
    names = {place: (name, turn) for name, (place, turn, _) in table.items()}
    for place, array in _leaves(weights):
        name, turn = names[place]
        prefix = "" if place.split("/")[0] in _HEADS else f"{design.kind}."
        flat[prefix + name] = np.ascontiguousarray(_TURNS[turn][1](np.asarray(array), design))
    with atomic_path(path) as scratch:
        save_file(flat, str(scratch), metadata={"format": "pt"})


def _table(design: Design, with_teacher: bool) -> dict[str, tuple[str, str, bool]]:
    """Name in the file -> (place in the tree, turn, needed). Biases of attention may be absent (qkv_bias false)."""
    table = {name: (place, turn, True) for place, (name, turn) in _STEM.items()}
    if design.kind == "vit":
        del table["embeddings.distillation_token"]
    for number in range(design.layers):
        for part, (name, kind) in _BLOCK.items():
            for leaf, (suffix, turn) in _PARTS[kind].items():
                needed = not (leaf == "bias" and part in ("query", "key", "value"))
                stored = f"encoder.layer.{number}.{name}.{suffix}"
                table[stored] = (f"blocks/{number}/{part}/{leaf}", turn, needed)
    for part, name in _HEADS.items():
        if (part == "head") != with_teacher:
            for leaf, (suffix, turn) in _PARTS["linear"].items():
                table[f"{name}.{suffix}"] = (f"{part}/{leaf}", turn, True)
    return table


def _older_name(key: str, kind: str) -> str:
    name = key.removeprefix(f"{kind}.")
    for newer, older in _NEWER_NAMES:
        name = re.sub(newer, older, name)
    return name


def _patches_in(kernel: np.ndarray, design: Design) -> np.ndarray:
    """(out, channel, row, column) -> (row * column * channel, out)."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _patches_back(kernel: np.ndarray, design: Design) -> np.ndarray:
    return kernel.reshape(*design.patch_px, -1, kernel.shape[1]).transpose(3, 2, 0, 1)


_TURNS = {  # into the tree, back into the file; both only move numbers about
    "same": (lambda array, design: array, lambda array, design: array),
    "transposed": (lambda array, design: array.T.copy(), lambda array, design: array.T),
    "patches": (_patches_in, _patches_back),
}


def _put(weights: Weights, place: str, array: np.ndarray) -> None:
    *parents, leaf = place.split("/")
    here: Any = weights
    for depth, parent in enumerate(parents):
        if isinstance(here, list):
            while len(here) <= int(parent):
                here.append({})
            here = here[int(parent)]
        else:
            here = here.setdefault(parent, [] if (depth, parent) == (0, "blocks") else {})
    here[leaf] = array


def _leaves(weights: Any, place: str = ""):
    pairs = enumerate(weights) if isinstance(weights, list) else weights.items()
    for name, value in pairs:
        here = f"{place}/{name}" if place else str(name)
        if isinstance(value, (dict, list)):
            yield from _leaves(value, here)
        else:
            yield here, value


def _check_shapes(weights: Weights, design: Design, path: Path) -> None:
    width = weights["cls"].shape[-1]
    grid = [image // patch for image, patch in zip(design.image_px, design.patch_px, strict=True)]
    tokens = grid[0] * grid[1] + (2 if design.kind == "deit" else 1)
    expected = {"cls": (1, 1, width), "positions": (1, tokens, width), "norm/scale": (width,)}
    expected["patches/kernel"] = (weights["patches"]["kernel"].shape[0], width)
    hidden = weights["blocks"][0]["up"]["kernel"].shape[1]
    for number in range(design.layers):
        for part in ("query", "key", "value", "out"):
            expected[f"blocks/{number}/{part}/kernel"] = (width, width)
        expected[f"blocks/{number}/up/kernel"] = (width, hidden)
        expected[f"blocks/{number}/down/kernel"] = (hidden, width)
    for place, array in _leaves(weights):
        if place in expected and array.shape != expected[place]:
            raise UserError(
                f"{path}: {place} has the shape {array.shape}, config.json asks for {expected[place]}.",
                fix="config.json and model.safetensors must come from one save_pretrained().",
            )


def _pair(value: int | list[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
