"""What a ControlNet unit is asked with; light, so that a form needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

CONTROL_MODES = (
    "balanced",
    "prompt",
    "control",
)  # A1111's "Balanced", "My prompt is more important", "ControlNet is ..."
CONTROL_RESIZE_MODES = (
    "stretch",
    "crop",
    "fill",
)  # A1111's "Just Resize", "Crop and Resize", "Resize and Fill"
CONTROL_PASSES = ("both", "first", "hires")  # A1111's "Both", "Low res only", "High res only"


@dataclass(frozen=True)
class ControlUnit:
    """One picture that steers the drawing through one ControlNet (or, with `reference`, through the U-Net itself)."""

    image: Image | None = None  # None = the picture that is drawn over
    model: str = ""  # a ControlNet by its name in the library; "" for preprocessors that need none
    preprocessor: str = "none"  # one of preprocessors.PREPROCESSORS
    weight: float = 1.0  # 0 to 2
    start: float = 0.0  # the part of the steps in which it acts, as shares of them
    end: float = 1.0
    mode: str = "balanced"
    resize_mode: str = "crop"
    mask: Image | None = None  # it acts where this is white
    resolution_px: int | None = None  # of the preprocessor; None = its own
    pixel_perfect: bool = False  # the preprocessor's resolution is the drawn picture's
    threshold_a: float | None = None  # None = the preprocessor's own
    threshold_b: float | None = None
    hires_pass: str = "both"
