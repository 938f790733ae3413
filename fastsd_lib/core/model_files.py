"""The currency between rooms: a model on disk, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Family = Literal["sd1", "sd2", "sdxl", "sd3", "flux"]
Layout = Literal["diffusers", "single_file"]


@dataclass(frozen=True)
class ModelFiles:
    """Downloads, conversions and finished runs all yield it; trainer, engine and UI take nothing else."""

    family: Family
    layout: Layout
    path: Path
