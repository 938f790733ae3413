"""The few disk operations that checkpoints are made of, one call of `os` each.

Checkpoints and their carrier touch the disk through this file only, so that a test that stands between it and `os` sees
every mkdir, open, write, fsync, rename, unlink and rmdir, and can break each. Every OSError names its file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WRITE_BYTES = 8 << 20  # one write: larger ones gain nothing and hold up a stop
READ_BYTES = 1 << 20
#: Hosts that cannot fsync a directory say so in these words; any other error there is a real one.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}
_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """os.write and os.fsync know a number only: their errors get the file's name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def make_folder(path: Path) -> None:
    """One new folder; FileExistsError when the name is taken, by whatever."""
    with _named(path):
        os.mkdir(path)


def make_folders(path: Path, root: Path | None = None) -> None:
    """`path` with the parents it lacks, each entered in its parent for good.

    FileNotFoundError when `root` would have to be made: a Drive that is gone must not come back as a local folder.
    """
    if is_folder(path):
        return
    if path == root:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.parent != path:
        make_folders(path.parent, root)
    try:
        make_folder(path)
    except FileExistsError:  # somebody else was quicker, or a file stands there
        if not is_folder(path):
            raise
    sync_folder(path.parent)


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """A new file of these bytes, on the disk when this returns: its size in bytes, its SHA-256.

    FileExistsError when the name is taken: nothing is ever written over. The hash is of what was handed to the disk,
    so that a buffer that changes meanwhile is found when the file is read back.
    """
    digest, size = hashlib.sha256(), 0
    with _named(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
        try:
            for chunk in chunks:
                rest = memoryview(chunk)
                rest = rest.cast("B") if rest.nbytes else memoryview(b"")
                while rest:
                    written = os.write(handle, rest[:WRITE_BYTES])
                    digest.update(rest[:written])
                    size += written
                    rest = rest[written:]
            os.fsync(handle)
        finally:
            os.close(handle)
    return size, digest.hexdigest()


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, from the disk and not from memory where the system can be asked for that."""
    with _named(path):
        handle = os.open(path, os.O_RDONLY | _BINARY)
        try:
            if hasattr(os, "posix_fadvise"):
                with suppress(OSError):  # only a wish
                    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := os.read(handle, READ_BYTES):
                yield chunk
        finally:
            os.close(handle)


def read_bytes(path: Path) -> bytes:
    return b"".join(read_chunks(path))


def read_back(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of what a file holds now."""
    digest, size = hashlib.sha256(), 0
    for chunk in read_chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


def sync_folder(path: Path) -> None:
    """Enter for good what was made, renamed or deleted in this folder."""
    if os.name == "nt":  # opens no directory
        return
    with _named(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise
        finally:
            os.close(handle)


def rename(old: Path, new: Path) -> None:
    """Rename a file over `new`, or a folder to a free name."""
    with _named(old):
        os.replace(old, new)


def unlink(path: Path) -> None:
    """Delete a file; one that is not there is fine."""
    with _named(path), suppress(FileNotFoundError):
        os.unlink(path)


def remove_folder(path: Path) -> None:
    """Delete an empty folder; OSError (ENOTEMPTY) when something is left in it."""
    with _named(path):
        os.rmdir(path)


def names_in(path: Path) -> list[str]:
    """What lies in a folder, by name; nothing where there is no folder."""
    try:
        with _named(path):
            return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def file_size(path: Path) -> int | None:
    """Bytes of a file; None where there is no file of this name."""
    found = _status(path)
    return found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None


def changed_at(path: Path) -> float | None:
    """When a file or folder was last changed, in seconds since 1970; None where there is none."""
    found = _status(path)
    return None if found is None else found.st_mtime


def is_folder(path: Path) -> bool:
    found = _status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_link(path: Path) -> bool:
    found = _status(path, follow=False)
    return found is not None and stat.S_ISLNK(found.st_mode)


def _status(path: Path, follow: bool = True) -> os.stat_result | None:
    try:
        with _named(path):
            return os.stat(path, follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError):
        return None
