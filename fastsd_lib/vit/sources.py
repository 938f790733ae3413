"""What a user calls pictures, as a stream of items: files, folders, patterns, zips, addresses, images and arrays."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastsd_lib.core.archives import ArchiveRefused, Budget, open_zip, zip_members
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import PICTURE_KINDS, is_junk, kind_of_file
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped

MAX_FILE_BYTES = 128 << 20  # of one picture in a zip or on the network
SUFFIXES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic",
    ".heif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".tga", ".ico", ".psd", ".qoi", ".dds",
}  # fmt: skip
_KINDS = "a file, a folder, a pattern such as photos/*.jpg, a zip, an https address, an image or an array"


Source = Path | bytes | Image.Image | np.ndarray | str


@dataclass(frozen=True)
class Item:
    """One picture: what it is called, and where its pixels come from (a `str` is an https address)."""

    key: str
    source: Source


def items_of(what: Any, *, recursive: bool = True) -> Iterator[Item]:
    """The pictures that `what` means, in a fixed order: by name within a folder, as given in a list.

    `what`: a path, folder, glob pattern, zip, https address, PIL image, array (one picture, or four dimensions for
    several), bytes of a file, or any iterable of these. Nothing is opened that is not asked for. UserError for what
    is not there or holds no pictures; one file of several that is missing or no picture is told when it is read.
    """
    yield from _Naming(recursive).items(what)


def count_of(what: Any, *, recursive: bool = True) -> int | None:
    """How many pictures `what` has, without opening them; None for a stream, which only its end can tell."""
    if isinstance(what, (list, tuple)):
        counts = [_count(one, recursive, len(what) > 1) for one in what]
        return None if None in counts else sum(one for one in counts if one is not None)
    return _count(what, recursive, among=False)


def _count(what: Any, recursive: bool, among: bool) -> int | None:
    if isinstance(what, (list, tuple)):
        return count_of(what, recursive=recursive)
    if isinstance(what, np.ndarray):
        return len(what) if what.ndim == 4 else 1
    if isinstance(what, (bytes, bytearray, memoryview, Image.Image, Item)) or _is_address(what):
        return 1
    if isinstance(what, (str, os.PathLike)):
        return sum(1 for _ in _paths(str(os.fspath(what)), recursive, among, counting=True))
    return None


class _Naming:
    """Gives what has no name of its own a number."""

    def __init__(self, recursive: bool) -> None:
        self._recursive, self._given = recursive, 0

    def items(self, what: Any, among: bool = False) -> Iterator[Item]:
        self._given += 1
        if _is_address(what):
            yield Item(what, what)
        elif isinstance(what, (str, os.PathLike)):
            yield from _from_path(str(os.fspath(what)), self._recursive, among)
        elif isinstance(what, (bytes, bytearray, memoryview)):
            yield Item(f"picture {self._given}", bytes(what))
        elif isinstance(what, Image.Image):
            yield Item(escaped(str(getattr(what, "filename", "") or f"picture {self._given}")), what)
        elif isinstance(what, Item):
            yield what
        elif isinstance(what, np.ndarray) or hasattr(what, "__array__"):
            yield from self._from_array(np.asarray(what))
        elif isinstance(what, Iterable):
            self._given -= 1
            several = not isinstance(what, (list, tuple)) or len(what) > 1
            for one in what:
                yield from self.items(one, among=several)
        else:
            raise UserError(f"{type(what).__name__} is nothing that has pictures.", fix=f"give {_KINDS}.")

    def _from_array(self, array: np.ndarray) -> Iterator[Item]:
        if array.ndim != 4:
            yield Item(f"picture {self._given}", array)
            return
        for picture in array:
            yield Item(f"picture {self._given}", picture)
            self._given += 1
        self._given -= 1


def _is_address(what: Any) -> bool:
    if not isinstance(what, str) or "://" not in what[:12]:
        return False
    if not what.lower().startswith("https://"):
        raise UserError(
            f"{escaped(what[:80])} is not fetched.", fix="give an https address, or the file itself."
        )
    return True


def _from_path(text: str, recursive: bool, among: bool) -> Iterator[Item]:
    for path in _paths(text, recursive, among):
        if path.suffix.lower() == ".zip" and path.is_file():
            yield from _from_zip(path)
        else:
            yield Item(escaped(str(path)), path)


def _paths(text: str, recursive: bool, among: bool, counting: bool = False) -> Iterator[Path]:
    """The files behind a path or a pattern. While counting, a zip counts as often as it has pictures.

    A file that is not there is told when it is read if it is one `among` several.
    """
    path = expanded(text)
    if not os.path.lexists(path) and glob.has_magic(text):
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise UserError(
                f"No file fits {escaped(text)}.", fix="check the pattern; ** stands for any folders."
            )
        for one in found:
            if Path(one).is_file():
                yield from _file(Path(one), counting)
        return
    if path.is_dir():
        none = True
        for file in _walk(path, recursive):
            none = False
            yield file
        if none:
            deeper = "" if recursive else " (folders in it were not entered)"
            raise UserError(
                f"There are no pictures in {escaped(text)}{deeper}.",
                fix="name the folder that holds the JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF files.",
            )
        return
    if not path.exists() and not among:
        raise UserError(f"There is no file or folder {escaped(text)}.", fix="check the path.")
    yield from _file(path, counting)


def _file(path: Path, counting: bool) -> Iterator[Path]:
    if counting and path.suffix.lower() == ".zip" and path.is_file():
        yield from (path for _ in _zip_names(path))
    else:
        yield path


def _walk(top: Path, recursive: bool) -> Iterator[Path]:
    """Picture files by name, folder after folder; linked folders are not entered."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if folder == top:
                raise UserError(
                    f"The folder {escaped(str(folder))} cannot be read: {error.strerror}.",
                    fix="check its permissions.",
                ) from None
            continue
        entries = [entry for entry in entries if not is_junk(entry.name)]
        yield from (
            folder / one.name for one in entries if one.is_file() and _named_like_a_picture(folder / one.name)
        )
        if recursive:
            inner = [folder / one.name for one in entries if one.is_dir(follow_symlinks=False)]
            waiting += reversed(inner)


def _named_like_a_picture(path: Path) -> bool:
    """By its suffix; a file without one by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:
        return kind_of_file(path) in PICTURE_KINDS
    except OSError:
        return False


def _zip_names(path: Path) -> list[str]:
    with open_zip(path) as archive:
        return [
            one.name
            for one in zip_members(archive, Budget(path.name, path.stat().st_size))
            if _wanted(one.name)
        ]


def _from_zip(path: Path) -> Iterator[Item]:
    """Its pictures by name, each unpacked when its turn comes."""
    with open_zip(path) as archive:
        budget = Budget(escaped(path.name), path.stat().st_size)
        members = sorted(zip_members(archive, budget), key=lambda member: member.name)
        wanted = [member for member in members if _wanted(member.name)]
        if not wanted:
            raise UserError(
                f"There are no pictures in {escaped(path.name)}.", fix="zip the picture files themselves."
            )
        for member in wanted:
            key = f"{escaped(str(path))}!{escaped(member.name)}"
            try:
                data = b"".join(_bounded(member.blocks()))
            except ArchiveRefused as error:
                if error.code != "damaged":
                    raise
                data = b""  # told as an empty file, the others are read
            yield Item(key, data)


def _bounded(blocks: Iterable[bytes]) -> Iterator[bytes]:
    left = MAX_FILE_BYTES
    for block in blocks:
        left -= len(block)
        if left < 0:
            return  # what is cut short is told as damaged
        yield block


def _wanted(name: str) -> bool:
    parts = Path(name).parts
    return not any(is_junk(part) for part in parts) and Path(name).suffix.lower() in SUFFIXES
