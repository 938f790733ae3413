"""Bytes from file to file by the kernel: none of them passes through this process, so memory stays as it is.

Linux copies with copy_file_range(2) or, where a file system refuses that, sendfile(2); everywhere else, and between
file systems that refuse both, a buffer of one mebibyte goes to and fro.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import BinaryIO

from fastsd_lib.core.byte_range import ByteRange, cut_short
from fastsd_lib.core.files import CHUNK_BYTES

# What kernels and sandboxes say when a way of copying is not for these two files.
_NOT_THIS_WAY = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EPERM, errno.EBADF, errno.ETXTBSY,
}  # fmt: skip

# Copies up to `count` bytes from `start` of one open file to `at` of another; returns how many it were.
Way = Callable[[int, int, int, int, int], int]


class RawCopier:
    """Copies ranges into one open file, and remembers which way of copying this pair of disks allows."""

    def __init__(self, out: BinaryIO) -> None:
        """`out`: open for writing, unbuffered."""
        self._out = out
        self._sources: dict[str, BinaryIO] = {}
        self._ways = list(WAYS)

    def __enter__(self) -> RawCopier:
        return self

    def __exit__(self, *_: object) -> None:
        for source in self._sources.values():
            source.close()

    def copy(self, piece: ByteRange, at: int) -> None:
        """Copy `piece` to where `at` stands in the file; UserError when its file ends before it."""
        source = self._opened(piece)
        done = 0
        while done < piece.size_bytes:
            copied = self._some(source.fileno(), piece.start + done, at + done, piece.size_bytes - done)
            if not copied:
                raise cut_short(piece.path)
            done += copied

    def _opened(self, piece: ByteRange) -> BinaryIO:
        key = str(piece.path)
        if key not in self._sources:
            self._sources[key] = piece.path.open("rb", buffering=0)
        return self._sources[key]

    def _some(self, source: int, start: int, at: int, count: int) -> int:
        while True:
            try:
                copied = self._ways[0](source, start, self._out.fileno(), at, count)
            except OSError as error:
                if len(self._ways) == 1 or error.errno not in _NOT_THIS_WAY:
                    raise
                copied = 0
            # Some file systems answer 0 instead of an error: only plain reading is believed about an end.
            if copied or len(self._ways) == 1:
                return copied
            self._ways.pop(0)


def _by_copy_file_range(source: int, start: int, out: int, at: int, count: int) -> int:
    return os.copy_file_range(source, out, count, start, at)


def _by_sendfile(source: int, start: int, out: int, at: int, count: int) -> int:
    os.lseek(out, at, os.SEEK_SET)
    return os.sendfile(out, source, start, count)


def _by_reading(source: int, start: int, out: int, at: int, count: int) -> int:
    os.lseek(source, start, os.SEEK_SET)
    data = memoryview(os.read(source, min(count, CHUNK_BYTES)))
    os.lseek(out, at, os.SEEK_SET)
    written = 0
    while written < len(data):
        written += os.write(out, data[written:])
    return written


_LINUX = (_by_copy_file_range, _by_sendfile) if sys.platform == "linux" else ()
WAYS: tuple[Way, ...] = (*_LINUX, _by_reading)  # the fastest first
