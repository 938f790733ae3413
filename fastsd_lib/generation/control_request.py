"""What a ControlNet unit is asked with; light, so that a form needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_modules import find_module

if TYPE_CHECKING:
    from PIL.Image import Image

# Our names -> what A1111's extension calls them.
CONTROL_MODE_LABELS = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
CONTROL_RESIZE_LABELS = {"stretch": "Just Resize", "crop": "Crop and Resize", "fill": "Resize and Fill"}
CONTROL_PASS_LABELS = {"both": "Both", "first": "Low res only", "hires": "High res only"}
CONTROL_MODES = tuple(CONTROL_MODE_LABELS)
CONTROL_RESIZE_MODES = tuple(CONTROL_RESIZE_LABELS)
CONTROL_PASSES = tuple(CONTROL_PASS_LABELS)


@dataclass(frozen=True)
class ControlUnit:
    """One picture that steers the drawing through one ControlNet (or, with `reference`, through the U-Net itself)."""

    image: Image | None = None  # None = the picture that is drawn over
    model: str = ""  # a ControlNet by its name in the library; "" for preprocessors that need none
    preprocessor: str = "none"  # one of control_modules.MODULES
    weight: float = 1.0  # 0 to 2
    start: float = 0.0  # the part of the steps in which it acts, as shares of them
    end: float = 1.0
    mode: str = "balanced"
    resize_mode: str = "crop"
    mask: Image | None = None  # it acts where this is white; inpaint_...: what is drawn anew
    resolution_px: int | None = None  # of the preprocessor, its short side; None = as fine as what is drawn
    pixel_perfect: bool = False  # as fine as what is drawn, whatever resolution_px says
    threshold_a: float | None = None  # None = the preprocessor's own
    threshold_b: float | None = None
    hires_pass: str = "both"

    def check(self) -> None:
        """UserError for a value no model can follow."""
        within = (
            ("weight", self.weight, 0, 2, 1),
            ("start", self.start, 0, 1, 0),
            ("end", self.end, 0, 1, 1),
        )
        for name, value, low, high, usual in within:
            if not low <= value <= high:  # NaN is within nothing
                raise UserError(
                    f"{name} of a control unit is {value}.", fix=f"take {low} to {high}; {usual} is usual."
                )
        if self.start > self.end:
            raise UserError(
                f"A control unit starts at {self.start} and ends at {self.end} of the steps.",
                fix="take a start that is not after the end.",
            )
        for name, value, known in (
            ("mode", self.mode, CONTROL_MODES),
            ("resize_mode", self.resize_mode, CONTROL_RESIZE_MODES),
            ("hires_pass", self.hires_pass, CONTROL_PASSES),
        ):
            if value not in known:
                raise UserError(
                    f"{name} of a control unit is {value!r}.", fix=f"take one of: {', '.join(known)}."
                )
        if self.resolution_px is not None and not 16 <= self.resolution_px <= 4096:
            raise UserError(
                f"resolution_px of a control unit is {self.resolution_px}.",
                fix="take 16 to 4096; 512 is usual.",
            )
        find_module(self.preprocessor)
