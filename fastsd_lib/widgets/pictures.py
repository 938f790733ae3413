"""Pictures small enough to travel to the page inside a widget."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

SMALL_PX = 128  # up to here a picture is enlarged with sharp pixels: the embedded model draws 64 x 64


def data_uri(picture: Any, max_px: int = 320) -> str:
    """A `data:` address of a path or PIL image, its longer side at most `max_px`."""
    import base64
    import io

    from fastsd_lib.images.load import PhotoLimits, read_photo

    if isinstance(picture, (str, Path)):
        any_shape = PhotoLimits(min_side_px=1, max_aspect=1e6)  # our own grids and samples, too
        image = read_photo(Path(picture), limits=any_shape, max_side_px=max_px).image
    else:
        image = picture.convert("RGB")
        image.thumbnail((max_px, max_px))
    small = max(image.size) <= SMALL_PX
    encoded = io.BytesIO()
    image.save(encoded, "PNG" if small else "JPEG", quality=88)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(encoded.getvalue()).decode()}"


def image_tag(picture: Any, max_px: int = 320, *, alt: str = "", style: str = "") -> str:
    """An `<img>`; tiny PNG pictures are marked so that they are enlarged with sharp edges."""
    uri = data_uri(picture, max_px)
    small = ' class="fsd-small"' if uri.startswith("data:image/png") else ""
    return f'<img{small} src="{uri}" alt="{escape(alt, quote=True)}" style="{style}">'


def tile(picture: Any, label: str, *, chosen: bool = False, max_px: int = 320) -> str:
    """One picture with its label below; long labels are shortened and shown whole on hover."""
    mark = " fsd-chosen" if chosen else ""
    title = escape(label, quote=True)
    return (
        f'<div class="fsd-tile{mark}" title="{title}">{image_tag(picture, max_px, alt=label)}'
        f"<span>{escape(label)}</span></div>"
    )


def tiles(pictures: list[tuple[Any, str]], *, max_px: int = 320) -> str:
    return (
        '<div class="fsd-tiles">' + "".join(tile(p, label, max_px=max_px) for p, label in pictures) + "</div>"
    )
