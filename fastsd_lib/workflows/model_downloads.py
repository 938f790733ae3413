"""Any model from anywhere, fetched, told apart by its content and put into the folder of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.progress import Report, silent
from fastsd_lib.models.identify import Description


@dataclass(frozen=True)
class Downloaded:
    """Where a model lies now, and what it is."""

    path: Path
    description: Description
    there_already: bool = False
    notes: tuple[str, ...] = ()  # warnings, and what the source tells: base model, trigger words


def model_folders(root: Path) -> dict[str, Path]:
    """The folder of each kind of file below `root`, by A1111's names."""
    models = root / "models"
    return {
        "checkpoint": models / "Stable-diffusion",
        "lora": models / "Lora",
        "vae": models / "VAE",
        "embedding": root / "embeddings",
        "controlnet": models / "ControlNet",
        "upscaler": models / "ESRGAN",
    }


def download(
    text: str,
    root: Path | None = None,
    kind: str = "",
    folders: Mapping[str, Path] | None = None,
    report: Report = silent,
) -> Downloaded:
    """Fetch what `text` names: a known model, a Hugging Face, CivitAI or Drive link, an https address, a path."""
    raise NotImplementedError
