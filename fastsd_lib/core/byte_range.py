"""A stretch of a file, named before anything of it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import CHUNK_BYTES

MADE_FROM_BYTES = 1 << 20


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` up to `end` of a file."""

    path: Path
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start

    def chunks(self) -> Iterator[bytes]:
        """The bytes, a mebibyte at a time; UserError when the file ends before them."""
        with self.path.open("rb") as handle:
            handle.seek(self.start)
            left = self.size_bytes
            while left:
                chunk = handle.read(min(left, CHUNK_BYTES))
                if not chunk:
                    raise cut_short(self.path)
                left -= len(chunk)
                yield chunk


@dataclass(frozen=True)
class Made:
    """`size_bytes` bytes that are computed from those of `source`, at most MADE_FROM_BYTES of them."""

    source: ByteRange
    size_bytes: int
    make: Callable[[memoryview], memoryview]  # called in a thread; its argument is only lent

    def chunks(self) -> Iterator[memoryview]:
        yield self.make(memoryview(b"".join(self.source.chunks())))


def cut_short(path: Path) -> UserError:
    """What to say of a file whose header promises more than is there."""
    return UserError(
        f"{path} ends in the middle of its tensors: it was cut short.", fix="download or copy it again."
    )
