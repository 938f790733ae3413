"""A picture as the pixels that a model sees: to the last bit what transformers' own processor makes of it, only faster.

A JPEG is decoded at a half, a quarter or an eighth of its size where that is still twice what is needed; this alone
differs from the processor, by a fraction of one of the 256 levels on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.images.decode import decode, rgb
from fastsd_lib.vit import model_config
from fastsd_lib.vit.config import Augment, Fit
from fastsd_lib.vit.geometry import Geometry
from fastsd_lib.vit.model import VitModel

VIEWS: dict[Augment, int] = {"none": 1, "flip": 2, "five_crop": 5, "ten_crop": 10}
_DRAFT = 2  # a JPEG is decoded no smaller than this times what it is resized to


@dataclass(frozen=True)
class Transform:
    """One picture -> (3, height, width) float32, scaled as the model was trained."""

    geometry: Geometry
    fit: Fit = "model"

    @classmethod
    def of(cls, model: VitModel, fit: Fit = "model") -> Transform:
        """The model's own, or another way to fit pictures in. UserError where its processor is not known."""
        kind = model_config.read_raw(model.path)["model_type"]
        return cls(Geometry.read(model.path, kind).fitted(fit), fit)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)"""
        return self.geometry.size

    @property
    def resample(self) -> Image.Resampling:
        return Image.Resampling(self.geometry.resample)

    @property
    def mean(self) -> tuple[float, ...]:
        return self.geometry.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.geometry.std

    def __call__(self, image: Image.Image) -> np.ndarray:
        """(3, height, width) float32 of an image in any mode."""
        return self.scaled(self.seen(image))

    def seen(self, image: Image.Image) -> Image.Image:
        """What the model sees of an image, still as a picture in RGB."""
        resized = self._resized(rgb(image), self.geometry)
        return self._padded(resized) if self.geometry.pad else _centre(resized, self.size)

    def views(self, image: Image.Image, augment: Augment = "none") -> list[np.ndarray]:
        """What test-time augmentation looks at: 1, 2, 5 or 10 arrays (3, height, width), the plain view first.

        "flip": as it is and mirrored. "five_crop": the centre and four corners of the picture, resized an eighth
        larger than the model sees; "ten_crop": these and their mirror images (Krizhevsky et al. 2012).
        """
        if augment not in VIEWS:
            raise UserError(
                f"There is no augmentation {augment!r}.", fix=f"take one of: {', '.join(get_args(Augment))}."
            )
        if augment in ("none", "flip"):
            plain = [self(image)]
        else:
            larger = self._resized(rgb(image), self.geometry.larger())
            plain = [self.scaled(one) for one in _five(larger, self.size)]
        if augment in ("flip", "ten_crop"):
            plain += [np.ascontiguousarray(one[:, :, ::-1]) for one in plain]
        return plain

    def open(self, source: Path | bytes, name: str = "", augment: Augment = "none") -> Image.Image:
        """The picture upright in RGB, no larger than `views` needs it. Raises images.load.PhotoError."""
        geometry = self.geometry if augment in ("none", "flip") else self.geometry.larger()

        def needed(width: int, height: int) -> tuple[int, int]:
            wide, high = geometry.resized(width, height)
            return _DRAFT * wide, _DRAFT * high

        return decode(source, name, needed)

    def open_and_apply(self, source: Path | bytes, name: str = "") -> np.ndarray:
        """(3, height, width) float32 of a file or its bytes. Raises images.load.PhotoError."""
        return self(self.open(source, name))

    def scaled(self, image: Image.Image) -> np.ndarray:
        """(3, height, width) float32 of an RGB picture that has the right size already."""
        planes = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        out = np.empty(planes.shape, np.float32)
        for levels, plane, into in zip(self._levels, planes, out, strict=True):
            np.take(levels, plane, out=into, mode="clip")
        return out

    @cached_property
    def _levels(self) -> np.ndarray:
        """(3, 256) float32: what each of the 256 levels becomes, rounded at each step as transformers rounds."""
        unit = (np.arange(256).astype(np.float64) * self.geometry.rescale).astype(np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (unit[None] - mean[:, None]) / std[:, None]

    def _padded(self, image: Image.Image) -> Image.Image:
        """In the middle of the mean colour, which is zero to the model."""
        height, width = self.size
        colour = tuple(round(mean / self.geometry.rescale) for mean in self.mean)
        ground = Image.new("RGB", (width, height), colour)
        ground.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return ground

    def _resized(self, image: Image.Image, geometry: Geometry) -> Image.Image:
        size = geometry.resized(*image.size)
        return image if image.size == size else image.resize(size, self.resample)


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of it; a smaller picture stands in the middle of black, before it is scaled, as in transformers."""
    height, width = size
    return _box(image, (image.width - width) // 2, (image.height - height) // 2, size)


def _five(image: Image.Image, size: tuple[int, int]) -> list[Image.Image]:
    """Centre, top left, top right, bottom left, bottom right."""
    right, bottom = image.width - size[1], image.height - size[0]
    corners = [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    return [_centre(image, size), *(_box(image, left, top, size) for left, top in corners)]


def _box(image: Image.Image, left: int, top: int, size: tuple[int, int]) -> Image.Image:
    if image.size == (size[1], size[0]):
        return image
    return image.crop((left, top, left + size[1], top + size[0]))
