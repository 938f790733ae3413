"""The control units of a request, made ready for one model: networks loaded, control pictures made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.canvas import Canvas, latent_mask
from fastsd_lib.generation.control_modules import Module, find_module
from fastsd_lib.generation.control_nets import NO_MODEL, ControlInfo, ControlLibrary
from fastsd_lib.generation.control_request import (
    CONTROL_MODE_LABELS,
    CONTROL_PASS_LABELS,
    CONTROL_RESIZE_LABELS,
    ControlUnit,
)
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.preprocessors import as_rgb, fitted, preprocess
from fastsd_lib.generation.reference import Reference
from fastsd_lib.generation.steering import Steering

__all__ = ["ControlInfo", "ControlLibrary", "ControlPicture", "PreparedUnit", "prepare_units"]

REFERENCE_SEED = (
    0  # of the noise on references: the same for every picture, so that a batch is like its pictures
)


@dataclass(frozen=True)
class ControlPicture:
    """What a unit shows in one pass, at the size that is drawn."""

    picture: Image.Image  # RGB
    mask: Image.Image | None  # L, 255 = where the unit acts; for inpainting, what is drawn anew
    resolution_px: int  # the preprocessor's


@dataclass(frozen=True)
class PreparedUnit:
    unit: ControlUnit
    module: Module
    info: ControlInfo | None
    net: torch.nn.Module | None
    first: ControlPicture | None  # None: it does not act in this pass
    second: ControlPicture | None

    @property
    def detected(self) -> Image.Image:
        """The control picture, to be shown beside what was drawn."""
        return (self.first or self.second).picture

    @property
    def keeps(self) -> bool:
        """Whether what its mask leaves out stays as it is."""
        return self.module.name == "inpaint_only"

    def steering(self, hires: bool, tiling: bool = False) -> list[Steering]:
        """Its ControlNet in a pass; tensors beside the network's."""
        shown, unit = self.second if hires else self.first, self.unit
        if shown is None or self.net is None:
            return []
        like = next(self.net.parameters())
        hint = torch.from_numpy(np.asarray(shown.picture, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        region = None
        if shown.mask is not None:
            mask = torch.from_numpy(np.asarray(shown.mask, dtype=np.float32) / 255)[None, None]
            if _inpaints(self.module):
                hint = torch.where(mask > 0.5, -1.0, hint)
            else:
                region = mask.to(like.device)
        return [
            Steering(self.net, hint.to(like), unit.weight, unit.start, unit.end, unit.mode, region, tiling)
        ]

    def reference(self, hires: bool, encode: Any) -> list[Reference]:
        """What the U-Net looks at in a pass; `encode`: a picture -> its latents (1, 4, h, w)."""
        shown, unit = self.second if hires else self.first, self.unit
        if shown is None or self.module.name != "reference_only":
            return []
        latents = encode(shown.picture)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(REFERENCE_SEED))
        own = self.module.a.value if unit.threshold_a is None or unit.threshold_a < 0 else unit.threshold_a
        fidelity = {"balanced": own, "prompt": 0.0, "control": 1.0}[unit.mode]
        return [Reference(latents, noise.to(latents), unit.weight, fidelity, unit.start, unit.end)]

    def kept(self, hires: bool, factor: int) -> tuple[Image.Image, np.ndarray] | None:
        """The picture that stays, and (h, w) float32, 1 where it is drawn anew; for `inpaint_only` alone."""
        shown = self.second if hires else self.first
        if shown is None or not self.keeps:
            return None
        return shown.picture, latent_mask(shown.mask, factor)

    @property
    def infotext(self) -> str:
        """As A1111's extension writes it after "ControlNet 0: "."""
        unit, module = self.unit, self.module
        values = {
            "Module": module.name,
            "Model": self.info.title if self.info else "None",
            "Weight": unit.weight,
            "Resize Mode": CONTROL_RESIZE_LABELS[unit.resize_mode],
            "Processor Res": (self.first or self.second).resolution_px if module.resolution else None,
            "Threshold A": _number(module.a, unit.threshold_a),
            "Threshold B": _number(module.b, unit.threshold_b),
            "Guidance Start": unit.start,
            "Guidance End": unit.end,
            "Pixel Perfect": unit.resolution_px is None or unit.pixel_perfect,
            "Control Mode": CONTROL_MODE_LABELS[unit.mode],
            "Hr Option": CONTROL_PASS_LABELS[unit.hires_pass],
        }
        return ", ".join(f"{name}: {value}" for name, value in values.items() if value is not None)


def prepare_units(
    parts: Parts,
    units: Sequence[ControlUnit],
    canvas: Canvas | None,
    size: tuple[int, int],
    hires_size: tuple[int, int] | None,
    library: ControlLibrary | None,
) -> tuple[PreparedUnit, ...]:
    """Each unit's network and control pictures for passes of `size` and `hires_size` (width, height).

    UserError for what is unknown, does not fit the model, or lacks a picture.
    """
    library = library or ControlLibrary(LibraryFolders())
    return tuple(_prepared(parts, unit, canvas, size, hires_size, library) for unit in units)


def _prepared(
    parts: Parts,
    unit: ControlUnit,
    canvas: Canvas | None,
    size: tuple[int, int],
    hires_size: tuple[int, int] | None,
    library: ControlLibrary,
) -> PreparedUnit:
    unit.check()
    module = find_module(unit.preprocessor)
    info = net = None
    if not module.model_free:
        if unit.model in NO_MODEL:
            names = ", ".join(info.name for info in library.models() if info.control.fits(parts.unet))
            raise UserError(
                f"A control unit with the preprocessor {module.name} names no ControlNet.",
                fix=f"give its model: {names}."
                if names
                else "put a ControlNet for this base model into models/ControlNet.",
            )
        info, net = library.find(unit.model), library.load(unit.model, parts)
    folders = library.folders.controlnets
    first = second = None
    if hires_size is None or unit.hires_pass != "hires":
        first = _shown(unit, module, canvas, size, folders)
    if hires_size is not None and unit.hires_pass != "first":
        second = _shown(unit, module, canvas, hires_size, folders)
    return PreparedUnit(unit, module, info, net, first, second)


def _shown(
    unit: ControlUnit, module: Module, canvas: Canvas | None, size: tuple[int, int], folders: Sequence[Any]
) -> ControlPicture:
    picture, mask = _source(unit, module, canvas)
    resolution_px = unit.resolution_px
    if resolution_px is None or unit.pixel_perfect:
        resolution_px = pixel_perfect(picture.size, size, unit.resize_mode)
    made = preprocess(
        picture,
        module.name,
        resolution_px=resolution_px,
        a=unit.threshold_a,
        b=unit.threshold_b,
        folders=folders,
    )
    if mask is not None and not _inpaints(module):
        mask = mask.resize(size, Image.Resampling.BOX)
    elif mask is not None:  # margins that a narrower picture leaves are drawn anew
        whole = fitted(ImageOps.invert(mask).convert("RGB"), size, unit.resize_mode)
        mask = ImageOps.invert(whole.convert("L")).point(lambda level: 255 * (level >= 128))
    return ControlPicture(fitted(made, size, unit.resize_mode), mask, resolution_px)


def _source(
    unit: ControlUnit, module: Module, canvas: Canvas | None
) -> tuple[Image.Image, Image.Image | None]:
    """The unit's picture and mask, of one size; by default those that are drawn over."""
    if unit.image is None and canvas is None:
        raise UserError(
            "A control unit has no picture.", fix="give its image, or a picture to be drawn over (init)."
        )
    mask = None if unit.mask is None else as_rgb(unit.mask).convert("L")
    picture = canvas.picture if unit.image is None else as_rgb(unit.image)
    if mask is not None and _inpaints(module):
        mask = mask.resize(picture.size, Image.Resampling.NEAREST).point(lambda level: 255 * (level >= 128))
    if (
        unit.image is not None and canvas is not None and canvas.box is not None
    ):  # only what is masked is drawn
        whole = canvas.original.size
        picture = fitted(picture, whole, unit.resize_mode).crop(canvas.box)
        mask = mask and mask.resize(whole, Image.Resampling.NEAREST).crop(canvas.box)
    if mask is None and _inpaints(module):
        mask = canvas.mask.resize(picture.size, Image.Resampling.NEAREST) if canvas and canvas.mask else None
        if mask is None:
            raise UserError(
                f"The preprocessor {module.name} has no mask.",
                fix="give the unit's mask (white is drawn anew), or draw over a picture with a mask.",
            )
    return picture, mask


def pixel_perfect(own: tuple[int, int], size: tuple[int, int], resize_mode: str) -> int:
    """The short side at which the picture is as fine as what is drawn; A1111's "pixel perfect"."""
    factors = [new / old for new, old in zip(size, own, strict=True)]
    factor = min(factors) if resize_mode == "fill" else max(factors)
    return max(round(factor * min(own)), 16)


def _inpaints(module: Module) -> bool:
    return module.name.startswith("inpaint")


def _number(slider: Any, given: float | None) -> float | None:
    if slider is None:
        return None
    return slider.value if given is None or given < 0 else given
