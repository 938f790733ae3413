"""What training sees of one photo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.images.crop import CropBox


@dataclass(frozen=True)
class InstanceImage:
    """A stored photo, the prompt it is learned by, and the part of it that is shown."""

    path: Path
    prompt: str  # instance prompt and caption, as `captions.training_prompt` joins them
    crop: CropBox
