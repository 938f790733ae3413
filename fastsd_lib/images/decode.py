"""A picture for a model to look at: upright RGB from a file or from bytes, decoded no larger than it is needed.

Unlike a training photo it may be of any size and shape. Colour profiles of RGB pictures are passed over, as the
programs did that prepared the models' own training pictures.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageOps

from fastsd_lib.core.file_kinds import HEAD_BYTES
from fastsd_lib.images.load import (
    WHITE,
    PhotoLimits,
    as_photo_errors,
    kind_of_photo,
    need_plugin_for,
    photo_kind,
    refuse_by_size,
    to_rgb,
)

ANY_SHAPE = PhotoLimits(min_side_px=1, max_aspect=float("inf"))
#: No EPS, PDF or WMF: they would start other programs. MPO is opened as JPEG.
FORMATS = (
    "JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "ICO", "JPEG2000", "PPM", "TGA",
    "PSD", "QOI", "DDS",
)  # fmt: skip
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
Needed = Callable[
    [int, int], tuple[int, int]
]  # (width, height) of the picture -> (width, height) that will do

# Pillow warns of what our own limits judge; a filter set while pictures are read would not be safe among threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(
    source: Path | bytes,
    name: str = "",
    needed: Needed | None = None,
    limits: PhotoLimits = ANY_SHAPE,
) -> Image.Image:
    """The picture upright in RGB; transparency shows white, 16 bits become 8, of several frames the first.

    With `needed`, a JPEG is decoded at 1/2, 1/4 or 1/8 where that still is as large as `needed` says. `name` is for
    messages about bytes. Raises PhotoError for whatever is no whole picture, or too large.
    """
    path = source if isinstance(source, Path) else Path(name or "picture")
    kind = photo_kind(source) if isinstance(source, Path) else kind_of_photo(source[:HEAD_BYTES], path)
    need_plugin_for(kind, path)
    file = source if isinstance(source, Path) else io.BytesIO(source)
    with as_photo_errors(path, kind, limits), Image.open(file, formats=_openable()) as image:
        refuse_by_size(image.size, limits, path)
        orientation = _orientation(image)
        if needed is not None:
            turned = orientation in _TURNED
            width, height = needed(*(image.size[::-1] if turned else image.size))
            image.draft(None, (height, width) if turned else (width, height))
        image.load()
        return _rgb(image, orientation)


def _openable() -> list[str]:
    """Pillow stumbles over formats that it was built without, or whose plugin nobody has registered."""
    Image.init()
    return [one for one in FORMATS if one in Image.OPEN]


def rgb(image: Image.Image) -> Image.Image:
    """An image that is already open, upright in RGB by the same rules. PhotoError when its file is damaged."""
    with as_photo_errors(Path(getattr(image, "filename", "") or "picture"), "picture", ANY_SHAPE):
        refuse_by_size(image.size, ANY_SHAPE, Path("picture"))
        if image.mode == "RGB" and _orientation(image) == 1 and not image.has_transparency_data:
            return image
        return _rgb(image.copy(), _orientation(image))


def _rgb(image: Image.Image, orientation: int) -> Image.Image:
    if orientation != 1:
        ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data or image.mode not in ("RGB", "L", "P", "1"):
        return to_rgb(image, WHITE, [])
    return image if image.mode == "RGB" else image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block must not cost the picture
        return 1
    return found if found in range(1, 9) else 1
