"""Colours for numbers: viridis, which grows in lightness all the way, so that the colour-blind can read it too."""

from __future__ import annotations

import numpy as np

#: Every 16th entry of matplotlib's table; straight lines between them stay within 6 of 255.
_VIRIDIS = (
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c "
    "1f9f88 27ad81 3dbc74 5cc863 81d34d aadc32 d5e21a fde725"
)
_ANCHORS = np.array([[int(one[at : at + 2], 16) for at in (0, 2, 4)] for one in _VIRIDIS.split()], float)


def viridis(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] of any shape -> RGB uint8 (..., 3); what lies outside takes the colour of the end."""
    place = np.clip(np.nan_to_num(np.asarray(values, float)), 0, 1) * (len(_ANCHORS) - 1)
    low = np.minimum(place.astype(int), len(_ANCHORS) - 2)
    part = (place - low)[..., None]
    return np.round(_ANCHORS[low] * (1 - part) + _ANCHORS[low + 1] * part).astype(np.uint8)


def unit(values: np.ndarray) -> np.ndarray:
    """`values` stretched to [0, 1]; a map that is the same everywhere becomes 0."""
    values = np.asarray(values, float)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values)


def ink_on(colour: np.ndarray) -> tuple[int, int, int]:
    """Black or white, whichever can be read on `colour` (RGB)."""
    red, green, blue = (float(one) for one in colour[:3])
    return (20, 20, 24) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
