"""What a picture is asked with; light, so that a form needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.samplers import find_sampler, find_schedule

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SEED = 2**32 - 1
RESIZE_MODES = ("stretch", "crop", "fill", "latent")  # A1111's 0, 1, 2, 3
MASK_FILLS = ("fill", "original", "latent_noise", "latent_nothing")  # A1111's 0, 1, 2, 3
# Our names of the ways to enlarge latents -> torch's, and whether it smoothes.
LATENT_UPSCALERS = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}
# All that are built in -> what A1111 and picture metadata call them.
UPSCALER_LABELS = {
    "latent": "Latent",
    "latent_antialiased": "Latent (antialiased)",
    "latent_bicubic": "Latent (bicubic)",
    "latent_bicubic_antialiased": "Latent (bicubic antialiased)",
    "latent_nearest": "Latent (nearest)",
    "latent_nearest_exact": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
    "nearest": "Nearest",
}


@dataclass(frozen=True)
class Inpaint:
    """Which part of the first picture is drawn anew: where `mask` is white. All else stays, pixel by pixel."""

    mask: Image  # any size and mode; it is resized with the picture
    invert: bool = False  # draw where the mask is black
    blur_px: int = 4  # how wide the new part fades into the old one, inwards
    fill: str = "original"  # what stands under the mask at first: one of MASK_FILLS
    only_masked: bool = False  # draw the mask's surroundings alone, at the full size, and set them back in
    padding_px: int = 32  # how much of the surroundings

    def check(self) -> None:
        if not 0 <= self.blur_px <= 64:
            raise UserError(f"blur_px is {self.blur_px}.", fix="take 0 to 64; 4 is usual.")
        if not 0 <= self.padding_px <= 2048:
            raise UserError(f"padding_px is {self.padding_px}.", fix="take 0 to 2048; 32 is usual.")
        if self.fill not in MASK_FILLS:
            raise UserError(f"fill is {self.fill!r}.", fix=f"take one of: {', '.join(MASK_FILLS)}.")


@dataclass(frozen=True)
class Hires:
    """A second pass: the picture is made larger and drawn over. Empty choices are those of the first pass."""

    scale: float = 2.0
    width_px: int | None = None  # an exact size instead; one side alone keeps the picture's shape
    height_px: int | None = None
    upscaler: str = "latent"  # one of UPSCALER_LABELS, or a network of the library by its name
    strength: float = 0.7
    inference_steps: int = 0  # 0 = as many as the first pass
    sampler: str = ""
    schedule: str = ""
    prompt: str = ""
    negative_prompt: str = ""
    guidance_scale: float | None = None

    def check(self) -> None:
        _within("hires.scale", self.scale, 1, 8, "2 is usual")
        _within("hires.strength", self.strength, 0, 1, "0.3 to 0.7 is usual")
        _within("hires.inference_steps", self.inference_steps, 0, 1000, "0 is as many as the first pass")
        for name, size_px in (("width_px", self.width_px), ("height_px", self.height_px)):
            if size_px is not None:
                _within(f"hires.{name}", size_px, 1, 16384, "leave it out to scale")
        if self.sampler:
            find_sampler(self.sampler)
        if self.schedule:
            find_schedule(self.schedule)
        if self.guidance_scale is not None:
            _within("hires.guidance_scale", self.guidance_scale, 0, 100, "7.5 is usual")


@dataclass(frozen=True)
class GenerationRequest:
    """One order: `count` pictures of one prompt. Picture i has the seed `seed + i`, in any batch."""

    prompt: str
    negative_prompt: str = ""  # what should not be in the picture
    inference_steps: int = 25
    guidance_scale: float | None = None  # how much the prompt counts; None = the model's own, 1 = off
    seed: int = 42
    count: int = 1
    width_px: int | None = None  # None = the model's own size, or that of the first picture
    height_px: int | None = None
    sampler: str = "ddim"  # any name or alias of samplers.py
    schedule: str = "automatic"  # any sigma schedule of samplers.py
    eta: float | None = None  # share of fresh noise per step; None = the sampler's own
    s_churn: float = 0.0  # extra noise of the samplers that take it, and between which noise levels
    s_tmin: float = 0.0
    s_tmax: float | None = None  # None or 0 = no bound
    s_noise: float = 1.0
    clip_skip: int = 1  # which layer of the text encoder is read, from the last
    tiling: bool = False  # opposite edges fit together
    # Variation: with a strength above 0 all pictures share `seed`, and picture i the variation seed `variation_seed + i`.
    variation_seed: int = 0
    variation_strength: float = 0.0
    seed_from_width_px: int | None = None  # the noise of a picture of this size, in the middle of this one
    seed_from_height_px: int | None = None
    init: Image | None = None  # draw over this picture
    strength: float = 0.75  # how much of it is drawn anew: 0 returns it, 1 ignores it
    resize_mode: str = "stretch"  # how it is brought to size: one of RESIZE_MODES
    inpaint: Inpaint | None = None
    hires: Hires | None = None
    control: tuple[ControlUnit, ...] = ()
    networks_off: bool = False  # <lora:...> is cut from the prompt and does nothing

    def check(self) -> None:
        """UserError for a value no model can follow; sizes are checked against the model by the engine."""
        if not 1 <= self.inference_steps <= 1000:
            raise UserError(f"inference_steps is {self.inference_steps}.", fix="take 1 to 1000; 25 is usual.")
        if not 1 <= self.count <= 1000:
            raise UserError(f"count is {self.count}.", fix="ask for 1 to 1000 pictures.")
        for name, first in (("seed", self.seed), ("variation_seed", self.variation_seed)):
            if not 0 <= first <= MAX_SEED:
                raise UserError(f"{name} is {first}.", fix=f"take a whole number from 0 to {MAX_SEED}.")
            if (
                name == ("variation_seed" if self.variation_strength else "seed")
                and first + self.count - 1 > MAX_SEED
            ):
                raise UserError(
                    f"the last of {self.count} pictures would have the {name} {first + self.count - 1}.",
                    fix=f"take a smaller {name}; the largest is {MAX_SEED}.",
                )
        if self.guidance_scale is not None:
            _within("guidance_scale", self.guidance_scale, 0, 100, "7.5 is usual")
        if self.eta is not None:
            _within("eta", self.eta, 0, 2, "None is the sampler's own")
        _within("s_churn", self.s_churn, 0, 1000, "0 is usual")
        _within("s_tmin", self.s_tmin, 0, 1000, "0 is usual")
        _within("s_tmax", self.s_tmax or 0, 0, math.inf, "None is no bound")
        _within("s_noise", self.s_noise, 0, 2, "1 is usual")
        _within("clip_skip", self.clip_skip, 1, 12, "1 is usual, 2 suits many anime models")
        _within("variation_strength", self.variation_strength, 0, 1, "0 is off")
        _within("strength", self.strength, 0, 1, "0.75 is usual")
        for name in ("seed_from_width_px", "seed_from_height_px"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 1, 16384, "None is off")
        if self.resize_mode not in RESIZE_MODES:
            raise UserError(
                f"resize_mode is {self.resize_mode!r}.", fix=f"take one of: {', '.join(RESIZE_MODES)}."
            )
        find_sampler(self.sampler)
        find_schedule(self.schedule)
        for unit in self.control:
            unit.check()
        if self.inpaint is not None:
            if self.init is None:
                raise UserError(
                    "inpaint has a mask, but there is no picture under it.", fix="give init, too."
                )
            self.inpaint.check()
        if self.hires is not None:
            if self.init is not None:
                raise UserError("hires is for pictures drawn from nothing.", fix="leave out init, or hires.")
            self.hires.check()


def _within(name: str, value: float, low: float, high: float, usual: str) -> None:
    if not low <= value <= high:  # NaN is within nothing
        upper = "" if high == math.inf else f" to {high:g}"
        raise UserError(f"{name} is {value}.", fix=f"take {low:g}{upper}; {usual}.")
