"""Find photos and captions in files, folders and zips, without opening a single picture."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import is_junk
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped, same_name
from fastsd_lib.images import archive
from fastsd_lib.images.captions import MAX_BYTES as MAX_CAPTION_BYTES
from fastsd_lib.images.load import PhotoError
from fastsd_lib.images.report import PhotoNote, Rejected


@dataclass(frozen=True)
class FoundPhoto:
    """A file that may be a photo; `open` yields a path that is good within its `with` block."""

    name: str
    folder: str
    open: Callable[[], AbstractContextManager[Path]]


@dataclass(frozen=True)
class FoundText:
    """A file that may be a caption; `read` yields at most one byte more than a caption may have."""

    name: str
    folder: str
    read: Callable[[], bytes]


@dataclass
class Gathered:
    photos: list[FoundPhoto] = field(default_factory=list)
    texts: list[FoundText] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    notes: list[PhotoNote] = field(default_factory=list)
    ignored: int = 0


def gather(
    sources: Iterable[Path], *, recursive: bool, scratch: Path, keep_out: Path, stack: ExitStack
) -> Gathered:
    """What `sources` hold, in a fixed order. Zips stay open on `stack`; each photo unpacks to `scratch` alone.

    `keep_out` is the folder that is being filled: it is no source. UserError for a source that is not there.
    """
    found = Gathered()
    for source in sources:
        path = expanded(source)
        if not os.path.lexists(path):
            raise UserError(f"There is no file or folder {escaped(str(source))}.", fix="check the path.")
        if path.is_dir():
            if path.resolve().is_relative_to(keep_out.resolve()):
                raise UserError(
                    f"{escaped(str(source))} is the session's own folder.", fix="add photos from elsewhere."
                )
            _gather_folder(path, recursive, keep_out, found)
        elif path.suffix.lower() == ".zip" and path.is_file():
            _gather_zip(path, scratch, stack, found)
        else:
            _gather_file(path, path.name, found)
            _gather_caption_beside(path, found)
    return found


def _gather_file(path: Path, name: str, found: Gathered) -> None:
    """A file that was named, or seen in a folder."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        code = "broken_link" if path.is_symlink() else "unreadable"
        reason = (
            f"{escaped(name)} leads nowhere." if path.is_symlink() else f"{escaped(name)}: {error.strerror}."
        )
        found.rejected.append(Rejected(escaped(name), code, reason))
        return
    if not stat.S_ISREG(mode):
        reason = f"{escaped(name)} is {_special(mode)}, not a photo."
        found.rejected.append(Rejected(escaped(name), "not_a_file", reason))
    elif path.suffix.lower() == ".txt":
        found.texts.append(FoundText(name, str(path.parent), partial(_first_bytes, path)))
    else:
        found.photos.append(FoundPhoto(name, str(path.parent), partial(nullcontext, path)))


def _gather_caption_beside(photo: Path, found: Gathered) -> None:
    """`cat.txt` beside a `cat.jpg` that was named alone."""
    for text in (photo.with_suffix(".txt"), photo.with_name(photo.name + ".txt")):
        if text != photo and text.is_file():
            found.texts.append(FoundText(text.name, str(text.parent), partial(_first_bytes, text)))


def _gather_folder(top: Path, recursive: bool, keep_out: Path, found: Gathered) -> None:
    """Streams the listing; folders are walked once, links are followed only to files inside `top`."""
    real_top, closed = top.resolve(), keep_out.resolve()
    waiting, not_entered = [top], 0
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            name = escaped(folder.name)
            found.rejected.append(
                Rejected(name, "unreadable", f"The folder {name} cannot be read: {error.strerror}.")
            )
            continue
        inner = []
        for entry in entries:
            path = folder / entry.name
            if is_junk(entry.name):
                found.ignored += 1
            elif entry.is_symlink():
                _gather_link(path, real_top, found)
            elif entry.is_dir(follow_symlinks=False):
                if path.resolve() != closed:
                    inner.append(path)
            else:
                _gather_file(path, entry.name, found)
        if recursive:
            waiting += reversed(inner)
        else:
            not_entered += len(inner)
    if not_entered:
        folders = "1 folder in it was" if not_entered == 1 else f"{not_entered} folders in it were"
        text = f"{folders} not entered; ask for sub-folders to be added as well (recursive)"
        found.notes.append(PhotoNote(escaped(top.name), "not_entered", text))


def _gather_link(path: Path, real_top: Path, found: Gathered) -> None:
    name = escaped(path.name)
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
        found.rejected.append(
            Rejected(name, "broken_link", f"{name} is a link that leads nowhere or in a circle.")
        )
        return
    if not target.is_relative_to(real_top):
        found.rejected.append(
            Rejected(name, "link_outside", f"{name} is a link out of the folder you named.")
        )
    elif target.is_dir():
        found.ignored += 1  # its target is walked under its own name
    else:
        _gather_file(path, path.name, found)


def _gather_zip(path: Path, scratch: Path, stack: ExitStack, found: Gathered) -> None:
    try:
        zipped = stack.enter_context(archive.open_zip(path))
    except PhotoError as error:
        found.rejected.append(Rejected(escaped(path.name), error.code, error.message))
        return
    except OSError as error:
        name = escaped(path.name)
        found.rejected.append(Rejected(name, "unreadable", f"{name} cannot be read: {error.strerror}."))
        return
    for entry in sorted(zipped.infolist(), key=lambda entry: entry.filename):
        inside = PurePosixPath(entry.filename)
        if entry.is_dir():
            continue
        if any(is_junk(part) for part in inside.parts):
            found.ignored += 1
            continue
        folder = f"{path}!{inside.parent}"
        if inside.suffix.lower() == ".txt":
            found.texts.append(FoundText(inside.name, folder, partial(_first_bytes_in, zipped, entry)))
        else:
            found.photos.append(FoundPhoto(inside.name, folder, partial(_unpacked, zipped, entry, scratch)))


@contextmanager
def _unpacked(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo, scratch: Path) -> Iterator[Path]:
    # Messages show the name of the file, so the scratch copy bears the entry's, as far as one may write it.
    name = "".join(
        "_" if letter in '/\\:*?"<>|' or not letter.isprintable() else letter for letter in entry.filename
    )
    path = scratch / name[-60:].lstrip(".")
    try:
        archive.unpack(zipped, entry, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as handle:
        return handle.read(MAX_CAPTION_BYTES + 1)


def _first_bytes_in(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with zipped.open(entry) as handle:
        return handle.read(MAX_CAPTION_BYTES + 1)


def text_key(name: str) -> str:
    """What pairs a caption with its photo: the name without suffix, as every file system would compare it."""
    return same_name(PurePosixPath(name).stem)


def _special(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a folder" if stat.S_ISDIR(mode) else "a device"
