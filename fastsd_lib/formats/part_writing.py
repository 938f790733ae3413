"""One part of a pipeline (ControlNet, adapter, VAE) written: as a file, or as a folder with its config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, write_text
from fastsd_lib.core.progress import Report
from fastsd_lib.core.tensor_file import NewTensor
from fastsd_lib.formats.model_writing import is_file_name, new_folder, write_file
from fastsd_lib.formats.writing import write_and_verify

WEIGHTS = "diffusion_pytorch_model.safetensors"


def check_target(target: Path, naming: str) -> bool:
    """Whether `target` names a single file; UserError for names that cannot be written so."""
    if naming not in ("original", "diffusers"):
        raise UserError(
            f"There are no names of the kind {naming!r} here.",
            fix="take original (web UIs, ComfyUI) or diffusers.",
        )
    if target.suffix.lower() in (".pth", ".bin"):
        raise UserError(f"{target.name} would be a pickle.", fix=f"write to {target.stem}.safetensors.")
    if is_file_name(target):
        return True
    if naming == "original":
        raise UserError(
            f"A folder has diffusers' names, so {target.name} cannot have the original ones.",
            fix=f"write to {target.name}.safetensors, or take --naming diffusers.",
        )
    return False


def write_part(
    target: Path,
    config: Mapping[str, Any],
    tensors: Sequence[NewTensor],
    header: Mapping[str, str],
    report: Report,
) -> Path:
    """`target` as a file, or as a new folder with `config`; whole and read back, or not at all."""
    if is_file_name(target):
        write_file(target, list(tensors), {"format": "pt", **header}, report, sha256=True)
        return target
    with new_folder(target, tensors) as scratch:
        write_text(scratch / "config.json", json.dumps(dict(config), indent=2) + "\n")
        with atomic_path(scratch / WEIGHTS) as file:
            write_and_verify(file, target / WEIGHTS, list(tensors), {"format": "pt", **header}, report)
    return target
