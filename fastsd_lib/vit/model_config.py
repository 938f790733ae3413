"""config.json of a model folder, read without transformers: what it is, what its classes are called, how large it is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.text import escaped
from fastsd_lib.vit.calibration_file import NAME as FACTS
from fastsd_lib.vit.config import CONFIG, PROCESSOR

CLASSIFIER = re.compile(r"[A-Za-z0-9]+ForImageClassification(WithTeacher)?")
_GENERIC = re.compile(r"LABEL_\d+")
_NUMBER = re.compile(r"\d+")
_MAX_BYTES = 16 << 20  # ImageNet-21k's names take one


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says of a model."""

    kind: str  # transformers' model_type: "vit"
    architecture: str
    labels: tuple[str, ...]
    generic_labels: bool
    multi_label: bool


@dataclass(frozen=True)
class Sizes:
    """For estimates: a pyramid (Swin, ConvNeXt) counts as its first stage."""

    hidden: int
    mlp: int
    patch_px: int
    layers: int

    @property
    def parameters(self) -> int:
        """Of the blocks alone: four square matrices of the attention, two of the MLP."""
        return self.layers * (4 * self.hidden * self.hidden + 2 * self.hidden * self.mlp)


def read(folder: Path, name: str, *, classifier: bool = True) -> ModelConfig:
    """UserError for a config that is missing, damaged, or not of an image classifier."""
    raw = read_raw(folder)
    kind = raw.get("model_type")
    named = raw.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if not isinstance(kind, str) or not re.fullmatch(r"[\w.-]+", kind):
        raise _not_for_us(name, "its config.json names no model_type")
    is_classifier = bool(CLASSIFIER.fullmatch(architecture))
    if classifier and not is_classifier:
        raise _not_for_us(name, f"it is a {escaped(architecture) or kind} model")
    labels = _labels(raw, name) if is_classifier else ()
    return ModelConfig(
        kind=kind,
        architecture=architecture or kind,
        labels=labels,
        generic_labels=_are_generic(labels, folder),
        multi_label=raw.get("problem_type") == "multi_label_classification",
    )


def _are_generic(labels: tuple[str, ...], folder: Path) -> bool:
    """Plain numbers, too, unless the model was trained here: then somebody has named their classes so."""
    numbers_mean_nothing = not (folder / FACTS).is_file()
    return bool(labels) and (
        all(_GENERIC.fullmatch(label) for label in labels)
        or (numbers_mean_nothing and all(_NUMBER.fullmatch(label) for label in labels))
    )


def read_raw(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"{folder} is no model folder: it has no {CONFIG}.",
            fix="name a folder that transformers' save_pretrained wrote, or a Hugging Face id such as org/name.",
        )
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} is too large for a config.", fix="name a folder that transformers wrote.")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no settings by name.", fix="copy or download the model again.")
    return raw


def image_px(folder: Path, config: ModelConfig) -> tuple[int, int]:
    """(height, width) of what the model's own transform makes; UserError when that is not known."""
    from fastsd_lib.vit.geometry import Geometry

    return Geometry.read(folder, config.kind).size


def sizes(folder: Path) -> Sizes:
    raw = read_raw(folder)
    hidden = _first(raw, ("hidden_size", "embed_dim", "hidden_sizes", "hidden_dim"), 768)
    ratio = raw.get("mlp_ratio")
    mlp = _first(
        raw, ("intermediate_size",), round(hidden * (ratio if isinstance(ratio, (int, float)) else 4))
    )
    layers = _first(raw, ("num_hidden_layers",), 1) if "hidden_size" in raw else 1
    return Sizes(hidden, mlp, _first(raw, ("patch_size",), 16), layers)


def _first(raw: dict[str, Any], names: tuple[str, ...], default: int) -> int:
    for name in names:
        value = raw.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return default


def _labels(raw: dict[str, Any], name: str) -> tuple[str, ...]:
    given = raw.get("id2label")
    if given is None:
        count = raw.get("num_labels", 2)  # transformers' default
        return tuple(f"LABEL_{number}" for number in range(count if isinstance(count, int) else 2))
    try:
        numbered = {int(number): str(label) for number, label in given.items()}
    except (AttributeError, TypeError, ValueError):
        numbered = {}
    if not numbered or sorted(numbered) != list(range(len(numbered))):
        raise UserError(
            f"The classes of {name} are not numbered 0, 1, 2 ... (id2label in its {CONFIG}).",
            fix=f"mend id2label in its {CONFIG}.",
        )
    return tuple(numbered[number] for number in range(len(numbered)))


def _not_for_us(name: str, why: str) -> UserError:
    return UserError(
        f"{name} is not an image classifier: {why}.",
        fix=f"take a model whose {CONFIG} has an architecture like ViTForImageClassification and a {PROCESSOR}.",
    )
