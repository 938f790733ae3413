"""Canny's edges as OpenCV finds them, for ControlNets were trained on those; without OpenCV.

Canny 1986, "A Computational Approach to Edge Detection": Sobel gradients (no blur before them, the sum of
both sides as their length), the ridge of each edge by integer arithmetic on its direction, then hysteresis.
"""

from __future__ import annotations

import numpy as np

TANGENT_22_5 = 13573  # of 22.5 degrees, times 2**15
NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def canny(picture: np.ndarray, low: float = 100, high: float = 200) -> np.ndarray:
    """uint8 (H, W, 3) or (H, W) -> uint8 (H, W), 255 on edges; `low` and `high` on gradients 0 to 2040.

    An edge begins where the gradient is above `high` and goes on while it is above `low`.
    """
    low, high = sorted((int(low), int(high)))
    across, down = _gradients(picture)
    length = np.abs(across) + np.abs(down)
    ridge = _ridges(across, down, length) & (length > low)
    return _grown(ridge & (length > high), ridge).astype(np.uint8) * 255


def _gradients(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel of the band where it is steepest, int32 (H, W) each."""
    bands = picture[..., None] if picture.ndim == 2 else picture
    p = np.pad(bands.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    sideways, downwards = p[:, 2:] - p[:, :-2], p[2:] - p[:-2]
    across = sideways[:-2] + 2 * sideways[1:-1] + sideways[2:]
    down = downwards[:, :-2] + 2 * downwards[:, 1:-1] + downwards[:, 2:]
    steepest = (np.abs(across) + np.abs(down)).argmax(axis=2)[..., None]
    return tuple(np.take_along_axis(one, steepest, axis=2)[..., 0] for one in (across, down))


def _ridges(across: np.ndarray, down: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Where the gradient is longest along its own direction, rounded to one of four."""
    padded = np.pad(length, 1)

    def beside(dy: int, dx: int) -> np.ndarray:
        height, width = length.shape
        return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    x, y = np.abs(across).astype(np.int64), np.abs(down).astype(np.int64) << 15
    flat, steep = x * TANGENT_22_5, x * TANGENT_22_5 + (x << 16)
    falls = (across ^ down) < 0
    slanted = np.where(
        falls,
        (length > beside(-1, 1)) & (length > beside(1, -1)),
        (length > beside(-1, -1)) & (length > beside(1, 1)),
    )
    sideways = (length > beside(0, -1)) & (length >= beside(0, 1))
    upwards = (length > beside(-1, 0)) & (length >= beside(1, 0))
    return np.where(y < flat, sideways, np.where(y > steep, upwards, slanted))


def _grown(sure: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """What is possible and hangs together with what is sure, diagonals included."""
    height, width = sure.shape
    found = np.pad(sure, 1)
    left = np.pad(possible & ~sure, 1).ravel()
    flat = found.ravel()
    steps = np.array([dy * (width + 2) + dx for dy, dx in NEIGHBOURS])
    front = np.flatnonzero(flat)
    while front.size:
        near = (front[:, None] + steps).ravel()
        front = np.unique(near[left[near]])
        left[front] = False
        flat[front] = True
    return flat.reshape(height + 2, width + 2)[1:-1, 1:-1]
