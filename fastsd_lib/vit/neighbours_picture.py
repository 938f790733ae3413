"""Pictures of what a search, clusters, duplicates and outliers found: thumbnails on a page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from fastsd_lib.core.archives import Budget, open_zip, zip_members
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.images.grid import contact_sheet
from fastsd_lib.images.load import PhotoLimits, read_photo
from fastsd_lib.vit.image_search import Neighbour

_ANY = PhotoLimits(min_side_px=1, max_aspect=1e9, max_pixels=400_000_000)
_SMALL_PX = 64  # such pictures are shown with their pixels


def neighbours_picture(
    found: Sequence[Neighbour] | Sequence[Sequence[Neighbour]],
    asked: Image.Image | Path | Sequence[Image.Image | Path] | None = None,
    *,
    cell_px: int = 128,
    title: str = "Nearest pictures",
    subtitle: str = "",
) -> Image.Image:
    """A row for each picture that was asked for: itself, then its neighbours with key and score. RGB page.

    One search or several (then `asked` is as many). UserError when there is nothing to show.
    """
    lists = [list(found)] if not found or isinstance(found[0], Neighbour) else [list(one) for one in found]
    questions = [asked] if asked is None or isinstance(asked, (Image.Image, str, Path)) else list(asked)
    if not any(lists):
        raise UserError("There are no neighbours to show.", fix="search in an index that holds pictures.")
    wide = max(map(len, lists))
    pictures, labels = [], []
    for question, row in zip(questions, lists, strict=True):
        if asked is not None:
            pictures.append(thumbnail(question, cell_px))
            labels.append("asked for")
        for place in range(wide):
            one = row[place] if place < len(row) else None
            pictures.append(thumbnail(one.place or one.key, cell_px) if one else None)
            labels.append(f"{one.score:.3f} {short(one.key)}" if one else "")
    if len(lists) == 1:
        columns = None
    else:
        columns = wide + (asked is not None)
    return sheet(pictures, labels, columns, cell_px, title, subtitle)


def sheet(
    pictures: Sequence[Image.Image | None],
    labels: Sequence[str] | None,
    columns: int | None,
    cell_px: int,
    title: str,
    subtitle: str = "",
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """contact_sheet, with tiny pictures blown up pixel by pixel."""
    sizes = [max(one.size) for one in pictures if one is not None]
    return contact_sheet(
        pictures, labels, columns, cell_px, title, subtitle=subtitle, row_labels=row_labels,
        pixels=bool(sizes) and max(sizes) <= _SMALL_PX,
    )  # fmt: skip


def thumbnail(source: Image.Image | str | Path | None, side_px: int) -> Image.Image | None:
    """An RGB picture of at most `side_px` at its long side; None for what is not there or cannot be read.

    A key such as "photos.zip!cats/1.jpg", as pictures in a zip have it, is looked up in the zip.
    """
    if source is None:
        return None
    try:
        if isinstance(source, Image.Image):
            picture = source.convert("RGB")
        elif ".zip!" in str(source):
            with Image.open(io.BytesIO(_in_zip(str(source)))) as opened:
                opened.draft("RGB", (side_px, side_px))
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        else:
            return read_photo(Path(source), limits=_ANY, max_side_px=side_px).image
    except (UserError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    picture.thumbnail((side_px, side_px))
    return picture


def _in_zip(key: str) -> bytes:
    """UserError or OSError where there is no such zip or nothing of this name in it."""
    archive, _, name = key.partition(".zip!")
    path = Path(f"{archive}.zip")
    with open_zip(path) as opened:
        for member in zip_members(opened, Budget(path.name, path.stat().st_size)):
            if escaped(member.name) == name:
                return b"".join(member.blocks())
    raise FileNotFoundError(key)


def short(key: str) -> str:
    """The last two parts of a path: folder and file."""
    return "/".join(key.replace("\\", "/").split("/")[-2:])
