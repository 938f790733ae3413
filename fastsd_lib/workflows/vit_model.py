"""Which model a name, a folder or the folder of a training means."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import require
from fastsd_lib.core.paths import expanded

if TYPE_CHECKING:
    from fastsd_lib.vit.model import VitModel

EMBEDDED = "embedded"


def open_model(name: str | Path | VitModel = EMBEDDED, *, classifier: bool = True) -> VitModel:
    """Find, or download, a model: "embedded", an alias, a Hugging Face id, a folder, or that of a training.

    UserError when it cannot be had or is of another kind; without a `classifier` it is good for features.
    """
    for package in ("torch", "transformers"):
        require(package, group="vit")
    from fastsd_lib.vit import model

    if isinstance(name, model.VitModel):
        return name
    folder = folder_of(name)
    made = model.open_model(folder, classifier=classifier)
    # "model" says nothing of a training; this name is what its vectors are known by, and finds the folder again
    return made if folder == name else dataclasses.replace(made, name=str(name))


def folder_of(name: str | Path) -> str | Path:
    """The model's folder in the folder of a training; any other name as it is."""
    inside = expanded(name) / "model"
    return inside if str(name).strip() and (inside / "config.json").is_file() else name
