"""The currency between rooms: a model on disk, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Family = Literal["sd1", "sd2", "sdxl", "sd3", "flux"]
Layout = Literal["diffusers", "single_file"]
#: As people say it; the refiner is a family of its own where it matters what fits what.
FAMILY_NAMES = {
    "sd1": "SD 1.x",
    "sd2": "SD 2.x",
    "sdxl": "SDXL",
    "sdxl_refiner": "SDXL refiner",
    "sd3": "SD 3",
    "flux": "Flux",
}


@dataclass(frozen=True)
class ModelFiles:
    """Downloads, conversions and finished runs all yield it; trainer, engine and UI take nothing else."""

    family: Family
    layout: Layout
    path: Path
