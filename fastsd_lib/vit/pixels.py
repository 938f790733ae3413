"""Pixels as models take them."""

from __future__ import annotations

import numpy as np

from fastsd_lib.core.errors import UserError

INPUT, OUTPUT = "pixel_values", "logits"  # of graphs, as transformers and optimum name them


def checked(pixels: np.ndarray, image_px: tuple[int, int]) -> np.ndarray:
    """(B, 3, H, W) float32, contiguous, B >= 1; UserError for another shape than the graph was made for."""
    pixels = np.ascontiguousarray(pixels, np.float32)
    height, width = image_px
    if pixels.ndim != 4 or not len(pixels) or pixels.shape[1:] != (3, height, width):
        raise UserError(
            f"This model takes pixels (B, 3, {height}, {width}), these are {pixels.shape}.",
            fix='let Transform make them, or use the backend "torch" for other sizes.',
        )
    return pixels
