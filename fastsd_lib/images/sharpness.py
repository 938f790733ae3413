"""How blurred a picture is, by itself: no sharp copy is needed."""

from __future__ import annotations

import numpy as np
from PIL import Image
from skimage.measure import blur_effect

SIDE_PX = (
    256  # all pictures are judged at this size, so that large ones are not called blurred for being large
)


def blur(picture: Image.Image) -> float:
    """0 = as sharp as can be, 1 = nothing but blur (Crete et al. 2007, "The blur effect").

    How much less a picture's neighbours differ after it was blurred once more. Photographs in focus have 0.2 to 0.45;
    a flat picture, where nothing differs, has 1.
    """
    scale = SIDE_PX / max(picture.size)
    size = (max(12, round(picture.width * scale)), max(12, round(picture.height * scale)))
    grey = np.asarray(picture.convert("L").resize(size, Image.Resampling.LANCZOS), np.float64) / 255
    if np.ptp(grey) < 1 / 255:
        return 1.0
    return float(np.clip(np.nan_to_num(blur_effect(grey), nan=1.0), 0, 1))
