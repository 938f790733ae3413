"""Photos to test with, all drawn here: a gradient with a mark in one corner shows turns and losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def gradient(width: int = 160, height: int = 100, seed: int = 0) -> Image.Image:
    """An RGB picture that no turn or mirror maps onto itself; its top left corner is red."""
    down, across = np.mgrid[0:height, 0:width]
    pixels = np.stack(
        [40 + 0 * down, 40 + 180 * across // width, (60 + 150 * down // height + 7 * seed) % 256], axis=2
    ).astype(np.uint8)
    pixels[: height // 4, : width // 4] = (220, 20, 20)
    return Image.fromarray(pixels)


@pytest.fixture
def photo(tmp_path: Path):
    """Writes a drawn photo: photo("a/cat.jpg", size=(200, 100), seed=3) -> its path."""

    def write(name: str, size: tuple[int, int] = (160, 100), seed: int = 0, **options) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        gradient(*size, seed).save(path, **options)
        return path

    return write
