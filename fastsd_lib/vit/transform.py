"""A picture as the pixels that a model sees: what transformers' own processor does, only faster."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from fastsd_lib.vit import model_config
from fastsd_lib.vit.config import Augment, Fit
from fastsd_lib.vit.geometry import Geometry
from fastsd_lib.vit.model import VitModel


@dataclass(frozen=True)
class Transform:
    """One picture -> (3, H, W) float32."""

    geometry: Geometry
    fit: Fit = "model"

    @classmethod
    def of(cls, model: VitModel, fit: Fit = "model") -> Transform:
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
        return self.scaled(self._cropped(self._resized(image.convert("RGB"), self.geometry), self.geometry))

    def views(self, image: Image.Image, augment: Augment = "none") -> list[np.ndarray]:
        one = self(image)
        return [one] if augment == "none" else [one, np.ascontiguousarray(one[:, :, ::-1])]

    def open_and_apply(self, source: Path | bytes) -> np.ndarray:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return self(image)

    def scaled(self, image: Image.Image) -> np.ndarray:
        pixels = np.asarray(image)
        return np.stack([self._scale[channel][pixels[..., channel]] for channel in range(3)])

    @cached_property
    def _scale(self) -> np.ndarray:
        """(3, 256) float32: the value of each of the 256 levels, computed once as transformers does it."""
        unit = (np.arange(256).astype(np.float64) * self.geometry.rescale).astype(np.float32)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (unit[None] - mean[:, None]) / std[:, None]

    def _resized(self, image: Image.Image, geometry: Geometry) -> Image.Image:
        return image.resize(geometry.resized(*image.size), self.resample)

    def _cropped(self, image: Image.Image, geometry: Geometry) -> Image.Image:
        height, width = geometry.size
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image if (left, top) == (0, 0) else image.crop((left, top, left + width, top + height))
