"""What one order of the studio is made of, and how a picture's own text fills it; light."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import (
    MAX_SEED,
    UPSCALER_LABELS,
    GenerationRequest,
    Hires,
    Inpaint,
)
from fastsd_lib.generation.samplers import find_sampler, find_schedule
from fastsd_lib.generation.styles import Style, apply_styles

if TYPE_CHECKING:
    from PIL.Image import Image

RANDOM = -1  # a seed that is thrown when the order is given


@dataclass(frozen=True)
class StudioChoices:
    """Every choice of the studio's form."""

    prompt: str = "a photo of a red star"
    negative_prompt: str = ""
    styles: tuple[str, ...] = ()
    model: str = ""  # by name; "" = the one in use
    sampler: str = "euler_a"
    schedule: str = "automatic"
    inference_steps: int = 20
    guidance_scale: float = 0.0  # how much the prompt counts; 0 = the model's own
    width_px: int = 0  # 0 = the model's own size
    height_px: int = 0
    seed: int = RANDOM
    count: int = 1
    clip_skip: int = 1
    tiling: bool = False
    hires: bool = False  # a second pass, larger
    hires_scale: float = 2.0
    hires_upscaler: str = "latent"
    hires_strength: float = 0.7
    hires_steps: int = 0  # 0 = as many as the first pass
    init: Image | None = None  # draw over this picture
    strength: float = 0.75  # how much of it is drawn anew
    resize_mode: str = "crop"
    mask: Image | None = None  # draw anew where it is white
    mask_blur_px: int = 4
    mask_fill: str = "original"
    mask_invert: bool = False
    only_masked: bool = False

    def request(self, styles: Mapping[str, Style]) -> tuple[GenerationRequest, list[str]]:
        """The order, its seed thrown if it is open, and what had to be left out. UserError for a wrong value."""
        prompt, negative, unknown = apply_styles(self.prompt, self.negative_prompt, self.styles, styles)
        if self.seed < RANDOM:
            raise UserError(
                f"seed is {self.seed}.", fix=f"take 0 to {MAX_SEED}, or -1 for a new one each time."
            )
        if self.mask is not None and self.init is None:
            raise UserError("There is a mask, but no picture under it.", fix="choose the picture, too.")
        seed = random.randrange(MAX_SEED - self.count + 1) if self.seed == RANDOM else self.seed
        second = Hires(
            self.hires_scale,
            upscaler=self.hires_upscaler,
            strength=self.hires_strength,
            inference_steps=self.hires_steps,
        )
        mask = self.mask and Inpaint(
            self.mask, self.mask_invert, self.mask_blur_px, self.mask_fill, self.only_masked
        )
        request = GenerationRequest(
            prompt,
            negative,
            self.inference_steps,
            self.guidance_scale or None,
            seed,
            self.count,
            self.width_px or None,
            self.height_px or None,
            self.sampler,
            self.schedule,
            clip_skip=self.clip_skip,
            tiling=self.tiling,
            init=self.init,
            strength=self.strength,
            resize_mode=self.resize_mode,
            inpaint=mask,
            hires=second if self.hires and self.init is None else None,
        )
        request.check()
        notes = [f"There is no style {name!r}; it was left out." for name in unknown]
        if self.hires and self.init is not None:
            notes.append("The second pass was left out: it is for pictures that are drawn from nothing.")
        return request, notes


def _label_of_upscaler(text: str) -> str:
    return next((ours for ours, label in UPSCALER_LABELS.items() if label == text), text)


# A1111's keys -> our fields, and how their text is read.
_READ: dict[str, tuple[str, Callable[[str], Any]]] = {
    "Prompt": ("prompt", str),
    "Negative prompt": ("negative_prompt", str),
    "Styles array": ("styles", tuple),
    "Steps": ("inference_steps", int),
    "Schedule type": ("schedule", find_schedule),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Size-1": ("width_px", int),
    "Size-2": ("height_px", int),
    "Clip skip": ("clip_skip", int),
    "Tiling": ("tiling", lambda text: str(text).lower() == "true"),
    "Denoising strength": ("strength", float),
    "Hires upscale": ("hires_scale", float),
    "Hires upscaler": ("hires_upscaler", _label_of_upscaler),
    "Hires steps": ("hires_steps", int),
    "Mask blur": ("mask_blur_px", int),
    "Masked content": ("mask_fill", lambda text: text.replace(" ", "_")),
    "Mask mode": ("mask_invert", lambda text: text == "Inpaint not masked"),
    "Inpaint area": ("only_masked", lambda text: text == "Only masked"),
}
OF_PICTURES = ("init", "mask")  # what no text can say


def from_infotext(
    choices: StudioChoices,
    text: str,
    styles: Mapping[str, Style] | None = None,
    find_model: Callable[[str], str] | None = None,
) -> tuple[StudioChoices, list[str]]:
    """The choices with what a picture says of itself, and what of that could not be taken over.

    `find_model` gives the name of a model by the name or hash in the text, or raises UserError.
    """
    from fastsd_lib.generation.infotext import read_infotext

    found = read_infotext(text, styles)
    usual = {entry.name: entry.default for entry in fields(StudioChoices)}
    kept = {name: getattr(choices, name) for name in (*OF_PICTURES, "model", "resize_mode")}
    read: dict[str, Any] = {**usual, **kept, "guidance_scale": choices.guidance_scale, "seed": choices.seed}
    notes = []
    for key, (name, meaning) in _READ.items():
        if key in found:
            try:
                read[name] = meaning(found[key])
            except (ValueError, UserError):
                notes.append(f"{key} {str(found[key])[:40]!r} is not known here; that field stays as it was.")
    if "Sampler" in found:
        try:
            read["sampler"], implied = find_sampler(found["Sampler"])
            read["schedule"] = implied or read["schedule"]
        except UserError as error:
            notes.append(f"{error.message} The usual one is taken.")
    read["hires"] = bool({"Hires upscale", "Hires upscaler"} & set(found))
    read["hires_strength"] = read["strength"] if read["hires"] else usual["hires_strength"]
    if find_model is not None and (
        named := [found[key] for key in ("Model hash", "Model") if found.get(key)]
    ):
        read["model"], note = _model(named, find_model, choices.model)
        notes += note
    return replace(choices, **read), notes


def _model(named: list[str], find_model: Callable[[str], str], now: str) -> tuple[str, list[str]]:
    for text in named:
        try:
            return find_model(text), []
        except UserError:
            continue
    return now, [f"Its model {named[-1][:60]!r} is not here; the one in use stays."]
