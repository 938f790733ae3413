"""Photographs of a camera's size, made of the real pictures that skimage and scikit-learn bring."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = (  # 2 to 12 megapixels, lying and standing
    (1920, 1080), (1632, 1224), (2592, 1944), (3264, 2448), (4000, 3000), (2448, 3264), (4032, 3024), (3024, 4032),
)  # fmt: skip
_NOISE_SIDE = 512


def make_photos(
    folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = SIZES, quality: int = 90
) -> list[Path]:
    """`count` different JPEGs; those that are there already are kept. Grain is added: enlarged pictures have none."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _pictures()
    grain = np.random.default_rng(0).normal(0, 3, (_NOISE_SIDE, _NOISE_SIDE, 1)).astype(np.int16)

    def make(number: int) -> Path:
        path = folder / f"photo_{number:04d}.jpg"
        if path.is_file():
            return path
        random = np.random.default_rng(number)
        whole, (width, height) = pictures[number % len(pictures)], sizes[number % len(sizes)]
        share = random.uniform(0.6, 1.0)
        box = share * whole.width, share * whole.height
        left, top = random.uniform(0, whole.width - box[0]), random.uniform(0, whole.height - box[1])
        piece = whole.resize(
            (width, height), Image.Resampling.BICUBIC, box=(left, top, left + box[0], top + box[1])
        )
        tiles = (-(-height // _NOISE_SIDE), -(-width // _NOISE_SIDE), 1)
        noise = np.tile(np.roll(grain, number, axis=1), tiles)[:height, :width]
        noisy = np.clip(np.asarray(piece).astype(np.int16) + noise, 0, 255).astype(np.uint8)
        scratch = path.with_suffix(".part")
        Image.fromarray(noisy).save(scratch, format="JPEG", quality=quality)
        scratch.rename(path)
        return path

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(make, range(count)))


def megapixels(paths: list[Path]) -> list[float]:
    sizes = []
    for path in paths:
        with Image.open(path) as image:
            sizes.append(image.width * image.height / 1e6)
    return sizes


def _pictures() -> list[Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "coffee", "cat", "rocket", "retina", "hubble_deep_field", "immunohistochemistry")
    arrays = [getattr(data, name)() for name in names] + list(load_sample_images().images)
    return [Image.fromarray(array).convert("RGB") for array in arrays]
