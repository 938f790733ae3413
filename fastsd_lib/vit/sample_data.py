"""Real pictures that are on every machine, as ImageFolders: what demos, tests and benchmarks learn from.

They come out of the wheels of scikit-learn and scikit-image, so nothing is downloaded. Each folder is written whole or
not at all, and the same bytes each time; where it already stands it is taken as it is.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import plain_disk_errors

DIGIT_PX = 32  # four times the 8 pixels of the scans, so that viewers show something
#: File of scikit-image's (or scikit-learn's) wheel -> the class that its crops have.
SCENES = {
    "astronaut.png": "astronaut",
    "brick.png": "brick",
    "camera.png": "cameraman",
    "chelsea.png": "cat",
    "cell.png": "cell",
    "china.jpg": "temple",
    "clock_motion.png": "clock",
    "coffee.png": "coffee",
    "coins.png": "coins",
    "flower.jpg": "flower",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "galaxies",
    "ihc.png": "tissue",
    "moon.png": "moon",
    "motorcycle_left.png": "motorcycle",
    "page.png": "page",
    "retina.jpg": "retina",
    "rocket.jpg": "rocket",
    "text.png": "handwriting",
}
_CROP_PX = (40, 72)  # sides of the crops, smallest and largest


def write_digits(folder: Path) -> Path:
    """scikit-learn's 1,797 handwritten digits (UCI, 8x8 pixels) as PNGs of 32x32 in `0/` to `9/`; returns `folder`.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998 (CC BY 4.0).
    """
    require("sklearn", group="vit")
    from sklearn.datasets import load_digits

    def pictures() -> Iterator[tuple[str, bytes]]:
        data = load_digits()
        for number, (grey, digit) in enumerate(zip(data.images, data.target, strict=True)):
            picture = Image.fromarray(np.round(grey * (255 / 16)).astype(np.uint8))
            picture = picture.resize((DIGIT_PX, DIGIT_PX), Image.Resampling.BICUBIC)
            yield f"{digit}/{number:04d}.png", _png(picture)

    return _write_whole(folder, pictures())


def write_faces(folder: Path) -> Path:
    """scikit-image's 200 grey crops of 25x25 pixels (from LFW) as PNGs in `face/` and `no_face/`; returns `folder`."""
    require("skimage", group="vit")
    from skimage import data

    def pictures() -> Iterator[tuple[str, bytes]]:
        for number, grey in enumerate(data.lfw_subset()):
            grey = np.asarray(grey, dtype=np.float64)
            scale = 255.0 if grey.max() <= 1.0 else 1.0
            picture = Image.fromarray(np.round(grey * scale).astype(np.uint8))
            yield f"{'face' if number < 100 else 'no_face'}/{number:03d}.png", _png(picture)

    return _write_whole(folder, pictures())


def write_scenes(folder: Path, *, train_per_class: int = 120, test_per_class: int = 40) -> Path:
    """Crops of 40 to 72 pixels out of 20 photographs, as JPEGs in `train/<class>/` and `test/<class>/`.

    Training crops come from the left 60 % of a photograph, test crops from the right 38 %: no pixel is in both.
    """
    require("skimage", group="vit")
    require("sklearn", group="vit")

    def pictures() -> Iterator[tuple[str, bytes]]:
        for order, (file, name) in enumerate(SCENES.items()):
            with Image.open(_wheel_file(file)) as opened:
                photo = opened.convert("RGB")
            left, right = int(photo.width * 0.60), int(photo.width * 0.62)
            parts = {
                "train": (photo.crop((0, 0, left, photo.height)), train_per_class),
                "test": (photo.crop((right, 0, photo.width, photo.height)), test_per_class),
            }
            for part_order, (part, (region, count)) in enumerate(parts.items()):
                random = np.random.default_rng([order, part_order])
                for number in range(count):
                    yield f"{part}/{name}/{number:03d}.jpg", _crop(region, random)

    return _write_whole(folder, pictures())


def _crop(region: Image.Image, random: np.random.Generator) -> bytes:
    width, height = (int(random.integers(_CROP_PX[0], _CROP_PX[1] + 1)) for _ in range(2))
    width, height = min(width, region.width), min(height, region.height)
    x = int(random.integers(0, region.width - width + 1))
    y = int(random.integers(0, region.height - height + 1))
    held = io.BytesIO()
    region.crop((x, y, x + width, y + height)).save(held, "JPEG", quality=90)
    return held.getvalue()


def _wheel_file(name: str) -> Path:
    import skimage
    import sklearn

    places = (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images")
    for place in places:
        if (place / name).is_file():
            return place / name
    raise UserError(
        f"The sample picture {name} is not in this scikit-image.", fix="python3 -m fastsd_lib install vit"
    )


def _png(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


def _write_whole(folder: Path, pictures: Iterator[tuple[str, bytes]]) -> Path:
    """All of `pictures` (name, bytes) under `folder`, or nothing."""
    folder = Path(folder)
    held = dict(pictures)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if all((folder / name).is_file() for name in held):
            return folder
        raise UserError(f"{folder} holds something else already.", fix="name a folder that is not there yet.")
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with plain_disk_errors("write the sample pictures"):
            for name, data in held.items():
                (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                (scratch / name).write_bytes(data)
            os.replace(scratch, folder)  # over an empty folder too
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
