"""How alike two pictures are, without any network: colours and edge directions.

Colour histogram (Swain & Ballard 1991, "Color indexing") and histograms of oriented gradients (Dalal & Triggs
2005), both compared by the Bhattacharyya coefficient. It tells one photographed subject from other photographs;
it does not know what a cat is. `benchmarks/dreambooth.py` prints how well it separates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE_PX = 64
_LEVELS = 6  # per colour channel
_CELLS = 4  # along each side
_DIRECTIONS = 9


def likeness(pictures: Sequence[Image.Image], references: Sequence[Image.Image]) -> np.ndarray:
    """(len(pictures),) in [0, 1]: mean likeness of each picture to all references; 1 = the same histograms."""
    described = np.stack([describe(picture) for picture in pictures])
    return (described @ np.stack([describe(reference) for reference in references]).T).mean(axis=1)


def describe(picture: Image.Image) -> np.ndarray:
    """A unit vector whose dot product with another one is the likeness, in [0, 1]."""
    small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    pixels = np.asarray(small, np.float64) / 255
    return np.concatenate([_colours(pixels), _edges(pixels.mean(axis=2))]) / np.sqrt(2)


def _colours(pixels: np.ndarray) -> np.ndarray:
    level = np.minimum((pixels * _LEVELS).astype(int), _LEVELS - 1)
    index = (level[..., 0] * _LEVELS + level[..., 1]) * _LEVELS + level[..., 2]
    return _unit(np.bincount(index.ravel(), minlength=_LEVELS**3))


def _edges(grey: np.ndarray) -> np.ndarray:
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    direction = np.minimum((np.arctan2(down, right) % np.pi) / np.pi * _DIRECTIONS, _DIRECTIONS - 1).astype(
        int
    )
    rows, columns = np.indices(grey.shape) * _CELLS // SIDE_PX
    index = (rows * _CELLS + columns) * _DIRECTIONS + direction
    return _unit(np.bincount(index.ravel(), strength.ravel(), minlength=_CELLS**2 * _DIRECTIONS))


def _unit(histogram: np.ndarray) -> np.ndarray:
    total = histogram.sum()
    return np.sqrt(histogram / total) if total > 0 else np.full(len(histogram), len(histogram) ** -0.5)
