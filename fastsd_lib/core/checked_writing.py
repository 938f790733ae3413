"""A large file written and compared with its source in one go.

The kernel copies in one thread; a second follows behind it, reads both files back while they are still in memory and
compares them byte by byte, so that checking costs no time of its own where two cores are free. A third takes the
sha256 where one is asked for.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from fastsd_lib.core.byte_range import ByteRange, cut_short
from fastsd_lib.core.raw_copy import RawCopier

WINDOW_BYTES = 16 << 20  # copied at once: the follower finds it in the processor's memory, or nearly
BUFFER_BYTES = 256 << 10  # compared at once: both sides fit into the cache of one core
_WAITING = 16  # pieces that the follower may lag behind; computed ones stay in memory so long


@dataclass(frozen=True)
class Piece:
    """Bytes for one place of a new file: `content` itself, or where it lies."""

    owner: str  # the tensor that they belong to
    at: int
    content: bytes | memoryview | ByteRange

    @property
    def size_bytes(self) -> int:
        return self.content.size_bytes if isinstance(self.content, ByteRange) else len(self.content)


@dataclass
class Written:
    """What was learned of the bytes on their way."""

    checksums: dict[str, int] = field(default_factory=dict)  # owner -> CRC-32, where asked for
    sha256: str = ""  # of all pieces in their order, where asked for


class ReadsBackDifferently(Exception):
    """The file does not hold what was written: the byte at `at` is the first that is wrong."""

    def __init__(self, at: int) -> None:
        super().__init__(f"byte {at} reads back differently")
        self.at = at


def write_checked(
    path: Path, pieces: Iterable[Piece], checksums: bool = False, sha256: bool = False
) -> Written:
    """Write `pieces` into the existing file `path`, each at its place, and read them back.

    `pieces` is gone through in the calling thread; what it raises ends the writing and comes out here. Memory stays
    constant. Raises ReadsBackDifferently, UserError for a source that is too short, OSError for a disk that is full.
    """
    written = Written()
    with path.open("r+b", buffering=0) as out, path.open("rb", buffering=0) as back, RawCopier(out) as copier:
        checker = _Checker(back, written.checksums if checksums else None)
        check = _Lane(checker.check, _WAITING)
        digest = hashlib.sha256()
        hashing = [_Lane(lambda piece: _hash(path, piece, digest), 0)] if sha256 else []

        def write(piece: Piece) -> None:
            for window in _windows(piece):
                _write(out, copier, window)
                for lane in (check, *hashing):
                    lane.put(window)

        lanes = [_Lane(write, 2), check, *hashing]
        try:
            for piece in pieces if checksums else _joined(pieces):
                if any(lane.error for lane in lanes):
                    break
                lanes[0].put(piece)
            lanes[0].finish()
            if sha256:  # the disk writes while the hash catches up
                with suppress(OSError):
                    os.fsync(out.fileno())
            for lane in lanes:
                lane.finish()
        finally:
            for lane in lanes:
                lane.abandon()
            checker.close()
    for lane in lanes:
        if lane.error:
            raise lane.error
    written.sha256 = digest.hexdigest() if sha256 else ""
    return written


class _Lane:
    """Works off a queue in a thread of its own; after a failure, or when abandoned, it only empties it."""

    def __init__(self, work: Callable[[Any], None], longest: int) -> None:
        self.error: BaseException | None = None
        self._work, self._given_up = work, False
        self._queue: queue.Queue[Any] = queue.Queue(longest)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, item: Any) -> None:
        self._queue.put(item)

    def finish(self) -> None:
        """Wait until all that was put in is done."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def abandon(self) -> None:
        """End soon, whatever waits."""
        self._given_up = True
        self.finish()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self.error or self._given_up:
                continue
            try:
                self._work(item)
            except BaseException as error:  # raised again where the caller waits
                self.error = error


class _Checker:
    """Compares the new file with where its bytes came from; adds up checksums if there is a place for them."""

    def __init__(self, back: BinaryIO, checksums: dict[str, int] | None) -> None:
        self._back, self._checksums = back, checksums
        self._sources: dict[Path, BinaryIO] = {}
        self._expected, self._found = bytearray(BUFFER_BYTES), bytearray(BUFFER_BYTES)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()

    def check(self, piece: Piece) -> None:
        for start in range(0, piece.size_bytes, BUFFER_BYTES):
            count = min(BUFFER_BYTES, piece.size_bytes - start)
            expected = self._part(piece.content, start, count)
            read = _fill(self._back, piece.at + start, self._found, count)
            # bytearrays compare as fast as memory is read, memoryviews value by value
            found = self._found if count == BUFFER_BYTES else self._found[:count]
            if read != count or found != expected:
                differing = (n for n in range(read) if found[n] != expected[n])
                raise ReadsBackDifferently(piece.at + start + next(differing, read))
            if self._checksums is not None:
                self._checksums[piece.owner] = zlib.crc32(found, self._checksums.get(piece.owner, 0))

    def _part(
        self, content: bytes | memoryview | ByteRange, start: int, count: int
    ) -> bytearray | memoryview:
        if not isinstance(content, ByteRange):
            return memoryview(content)[start : start + count]
        if content.path not in self._sources:
            self._sources[content.path] = content.path.open("rb", buffering=0)
        if _fill(self._sources[content.path], content.start + start, self._expected, count) != count:
            raise cut_short(content.path)
        return self._expected if count == BUFFER_BYTES else self._expected[:count]


def _write(out: BinaryIO, copier: RawCopier, piece: Piece) -> None:
    if isinstance(piece.content, ByteRange):
        copier.copy(piece.content, piece.at)
        return
    out.seek(piece.at)
    left = memoryview(piece.content)
    while left:
        left = left[out.write(left) :]


def _hash(path: Path, piece: Piece, digest: Any) -> None:
    for chunk in ByteRange(path, piece.at, piece.at + piece.size_bytes).chunks():
        digest.update(chunk)


def _joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Ranges that are neighbours in their file and in the new one become one, so that the kernel is called less."""
    last: Piece | None = None
    for piece in pieces:
        if last is not None and _follows(last, piece):
            last = replace(last, content=replace(last.content, end=piece.content.end))  # type: ignore[union-attr,type-var]
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _follows(first: Piece, then: Piece) -> bool:
    one, other = first.content, then.content
    return (
        isinstance(one, ByteRange)
        and isinstance(other, ByteRange)
        and one.path == other.path
        and one.end == other.start
        and first.at + one.size_bytes == then.at
        and one.size_bytes < WINDOW_BYTES  # enough for one call; and progress goes on
    )


def _windows(piece: Piece) -> Iterator[Piece]:
    content = piece.content
    if not isinstance(content, ByteRange):
        yield piece
        return
    for start in range(0, content.size_bytes, WINDOW_BYTES):
        end = min(start + WINDOW_BYTES, content.size_bytes)
        part = ByteRange(content.path, content.start + start, content.start + end)
        yield Piece(piece.owner, piece.at + start, part)


def _fill(handle: BinaryIO, start: int, buffer: bytearray, count: int) -> int:
    """Read `count` bytes from `start` into the buffer; returns how many there were."""
    handle.seek(start)
    view, done = memoryview(buffer), 0
    while done < count:
        read = handle.readinto(view[done:count])  # type: ignore[attr-defined]
        if not read:
            break
        done += read
    return done
