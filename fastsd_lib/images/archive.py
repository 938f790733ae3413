"""Zips of photos: what core refuses is a PhotoError here."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastsd_lib.core import archives
from fastsd_lib.images.load import PhotoError


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip all of whose entries are harmless; PhotoError with the reason for any other file."""
    with _as_photo_errors(), archives.open_zip(path) as archive:
        yield archive


def unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, into: Path) -> None:
    """Write one entry to the file `into`; PhotoError when it is damaged."""
    with _as_photo_errors():
        archives.unpack(archive, entry, into)


@contextmanager
def _as_photo_errors() -> Iterator[None]:
    try:
        yield
    except archives.ArchiveRefused as error:
        raise PhotoError(error.code, error.message, error.fix) from None
