"""Zips from strangers: looked through before a byte is unpacked, and unpacked one file at a time."""

from __future__ import annotations

import shutil
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fastsd_lib.core.file_kinds import kind_of_file, with_article
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.text import escaped
from fastsd_lib.images.load import PhotoError

MAX_ENTRIES = 50_000
MAX_BYTES = 20 * 10**9
MAX_RATIO = 100  # photos hardly shrink in a zip
_SMALL_BYTES = 50 * 10**6  # below this the ratio does not matter: drawings on white shrink well
_FIX = "unpack it yourself, look at what is in it, and add the folder."


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip all of whose entries are harmless; PhotoError with the reason for any other file."""
    kind = kind_of_file(path)
    if kind != "zip archive":
        raise PhotoError(
            "not_a_zip",
            f"{escaped(path.name)} is not a zip: it is {with_article(kind)}.",
            "make a zip of it.",
        )
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        raise PhotoError(
            "damaged_zip",
            f"{escaped(path.name)} is damaged or cut short.",
            "copy it again.",
        ) from None
    with archive:
        if reason := _danger(archive, path.stat().st_size):
            raise PhotoError("unsafe_zip", f"{escaped(path.name)} is refused: {reason}.", _FIX)
        yield archive


def _danger(archive: zipfile.ZipFile, packed_bytes: int) -> str:
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_ENTRIES:
        return f"it holds {len(entries)} files, more than {MAX_ENTRIES}"
    if total > MAX_BYTES:
        return f"it unpacks to {total / 1e9:.0f} GB, more than {MAX_BYTES / 1e9:.0f}"
    if total > max(_SMALL_BYTES, MAX_RATIO * packed_bytes):
        return f"it unpacks to {total / packed_bytes:.0f} times its size"
    for entry in entries:
        name, mode = entry.orig_filename, entry.external_attr >> 16
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if ".." in parts or name.startswith(("/", "\\")) or name[1:2] == ":" or "\0" in name:
            return f"the entry {escaped(name[:80])!r} points out of the archive"
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"the entry {escaped(name[:80])!r} is a link or a device"
        if entry.flag_bits & 1:
            return "it is encrypted"
    return ""


def unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, into: Path) -> None:
    """Write one entry to the file `into`; PhotoError when it is damaged.

    An entry that lies about its size ends there: zipfile stops at the declared size, and its CRC is wrong.
    """
    try:
        with archive.open(entry) as packed, into.open("wb") as plain:
            shutil.copyfileobj(packed, plain, CHUNK_BYTES)
    except Exception as error:  # each codec has an error class of its own
        if isinstance(error, OSError) and error.errno:  # our disk, not the archive
            raise
        name, reason = escaped(PurePosixPath(entry.filename).name), escaped(str(error)[:100])
        message = f"{name} is damaged in its zip: {reason or type(error).__name__}."
        raise PhotoError("damaged", message, "make the zip again.") from None
