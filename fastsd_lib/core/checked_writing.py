"""A large file written and compared with what it was made of in one go, in constant memory.

Two threads work side by side, each on blocks of its own from beginning to end: read one (or have it computed), write
it, read it back while it is still in the processor's cache, compare it byte by byte. Nothing is handed from one to the
other, so two free cores are busy all the time, and checking costs little more than the second look at the bytes.
Meanwhile the disk is given what is done, so that a later fsync has little left to wait for.
(The kernel's own copying, copy_file_range(2), is no faster: measured on ext4 it needs 1.5 times the processor time of
write(2) wherever the bytes come to lie at another place within their pages, as they do behind another header; and the
comparison would have to read the source once more.)
"""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsd_lib.core.byte_range import MADE_FROM_BYTES, ByteRange, Made, cut_short
from fastsd_lib.core.crc import joined_crc32
from fastsd_lib.core.heap import physical_bytes

BLOCK_BYTES = 512 << 10  # read and compared at once: twice that stays in the cache of one core
# A longer write(2) makes ext4 look for longer stretches of memory: where there were none it took three times as long.
_WRITTEN_BYTES = 256 << 10
_THREADS = 2
_BATCH_BYTES = 4 << 20  # given to a thread at once
_BATCH_BLOCKS = 64
_WAITING = 3  # batches that are asked for and not done
_FLUSHED_BYTES = 16 << 20  # the disk is told of so many at a time
# A file of more than this share of the memory would push out what others read, and each fresh page costs more than
# writing it does where a host lends memory to virtual machines: 2.6 s in place of 13 for 5 GB. Of such a file only the
# last bytes stay in memory; a smaller one stays whole, for whoever opens it next.
_LARGE_SHARE = 1 / 5
_KEPT_BYTES = 256 << 20


@dataclass(frozen=True)
class Piece:
    """Bytes for one place of a new file: `content` itself, where it lies, or what it is computed from."""

    owner: str  # the tensor that they belong to
    at: int
    content: bytes | memoryview | ByteRange | Made

    @property
    def size_bytes(self) -> int:
        return self.content.size_bytes if isinstance(self.content, ByteRange | Made) else len(self.content)


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
    path: Path, pieces: Iterable[Piece], checksums: bool = False, sha256: bool = False, size_bytes: int = 0
) -> Written:
    """Write `pieces` into the existing file `path`, each at its place, and read them back.

    `size_bytes`: of all of them, where known; the system is asked not to keep much of a very large file in memory.
    `pieces` is gone through in the calling thread; what it raises ends the writing and comes out here. Raises
    ReadsBackDifferently, UserError for a source that is too short, OSError for a disk that is full.

    What is read back comes from the system's memory as a rule, not from the disk: this finds bytes that went wrong on
    their way, and disks and network drives that forget, not a disk that will forget later.
    """
    written, digest = Written(), hashlib.sha256()
    waiting: deque[tuple[list[_Block], Future[list[int]]]] = deque()
    with ExitStack() as opened, ThreadPoolExecutor(_THREADS, thread_name_prefix="write") as workers:
        writer = _Writer(path, checksums, opened)
        file = opened.enter_context(path.open("r+b", buffering=0)).fileno()
        flusher = _Flusher(file, forgets=0 < physical_bytes() * _LARGE_SHARE < size_bytes)

        def finish_one() -> None:
            batch, done = waiting.popleft()
            for block, crc in zip(batch, done.result(), strict=True):
                if checksums:
                    before = written.checksums.get(block.owner, 0)
                    written.checksums[block.owner] = joined_crc32(before, crc, block.size_bytes)
                if sha256:  # from the new file: the bytes are still in memory
                    for chunk in ByteRange(path, block.at, block.at + block.size_bytes).chunks():
                        digest.update(chunk)
            flusher.is_done(batch)

        for batch in _batches(_blocks(pieces, one_owner=checksums)):
            waiting.append((batch, workers.submit(writer, batch)))
            if len(waiting) > _WAITING:
                finish_one()
        while waiting:
            finish_one()
    written.sha256 = digest.hexdigest() if sha256 else ""
    return written


@dataclass
class _Block:
    """Neighbouring bytes on their way to `at`."""

    owner: str
    at: int
    parts: list[memoryview | ByteRange | Made] = field(default_factory=list)
    size_bytes: int = 0


def _blocks(pieces: Iterable[Piece], one_owner: bool) -> Iterator[_Block]:
    """Small neighbours in one block, large pieces in several; what is computed stands alone.

    Copied blocks end at multiples of their length: the kernel then keeps each in memory in one piece.
    `one_owner`: no block holds bytes of two owners, so that each has a checksum of its own.
    """
    block = _Block("", 0)
    for piece in pieces:
        content = piece.content
        if isinstance(content, Made):
            if block.size_bytes:
                yield block
                block = _Block("", 0)
            yield _Block(piece.owner, piece.at, [content], content.size_bytes)
            continue
        done = 0
        while done < piece.size_bytes:
            here = piece.at + done
            apart = block.at + block.size_bytes != here or (one_owner and block.owner != piece.owner)
            if block.size_bytes and (apart or here % BLOCK_BYTES == 0):
                yield block
                block = _Block(piece.owner, here)
            if not block.size_bytes:
                block = _Block(piece.owner, here)
            count = min(piece.size_bytes - done, BLOCK_BYTES - here % BLOCK_BYTES)
            if isinstance(content, ByteRange):
                start = content.start + done
                block.parts.append(ByteRange(content.path, start, start + count))
            else:
                block.parts.append(memoryview(content).cast("B")[done : done + count])
            block.size_bytes, done = block.size_bytes + count, done + count
    if block.size_bytes:
        yield block


def _batches(blocks: Iterable[_Block]) -> Iterator[list[_Block]]:
    """Several at once: handing over costs as much as writing a small one."""
    batch: list[_Block] = []
    size = 0
    for block in blocks:
        batch.append(block)
        size += block.size_bytes
        if size >= _BATCH_BYTES or len(batch) == _BATCH_BLOCKS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Flusher:
    """Has the system write to the disk what has been compared, and does not wait for it."""

    def __init__(self, file: int, forgets: bool) -> None:
        """`forgets`: what lies far enough behind does not stay in memory."""
        self._file, self._forgets = file, forgets
        self._start = self._end = 0
        self._kept: deque[tuple[int, int]] = deque()  # start and length
        self._kept_bytes = 0

    def is_done(self, batch: list[_Block]) -> None:
        for block in batch:
            if not self._start <= block.at <= self._end + BLOCK_BYTES:  # elsewhere; headers leave small gaps
                self._start = block.at
            self._end = block.at + block.size_bytes
        if self._end - self._start >= _FLUSHED_BYTES:
            self._flush()
            self._start = self._end

    def _flush(self) -> None:
        place = self._start, self._end - self._start
        self._advise(*place)
        if self._forgets:
            self._kept.append(place)
            self._kept_bytes += place[1]
            while self._kept_bytes > _KEPT_BYTES:
                self._advise(*self._kept[0])  # once more: by now it is on the disk
                self._kept_bytes -= self._kept.popleft()[1]

    def _advise(self, start: int, length: int) -> None:
        """Linux forgets what is on the disk already, and begins to write what is not."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a hint: fsync comes in any case
                os.posix_fadvise(self._file, start, length, os.POSIX_FADV_DONTNEED)


class _Writer:
    """Takes one batch after another in each thread that calls it, with buffers and files of that thread's own."""

    def __init__(self, out: Path, checksums: bool, opened: ExitStack) -> None:
        """`opened` closes the files when no thread works any more."""
        self._out, self._checksums, self._opened = out, checksums, opened
        self._own = threading.local()

    def __call__(self, batch: list[_Block]) -> list[int]:
        """Write and compare; the CRC-32 of each block, if there are to be any."""
        if not hasattr(self._own, "out"):
            self._own.buffer = bytearray(max(BLOCK_BYTES, MADE_FROM_BYTES))
            self._own.found = bytearray(BLOCK_BYTES)
            self._own.sources = {}
            self._own.out = self._open(self._out, "r+b")
        return [self._write(block) for block in batch]

    def _write(self, block: _Block) -> int:
        data = self._bytes_of(block)
        for start in range(0, len(data), BLOCK_BYTES):
            part = data[start : start + BLOCK_BYTES]
            _write(self._own.out, part, block.at + start)
            self._compare(part, block.at + start)
        return zlib.crc32(data) if self._checksums else 0

    def _open(self, path: Path, mode: str) -> Any:
        return self._opened.enter_context(path.open(mode, buffering=0))

    def _bytes_of(self, block: _Block) -> memoryview:
        buffer, used, only = memoryview(self._own.buffer), 0, block.parts[0]
        if isinstance(only, Made):
            given = buffer[: only.source.size_bytes]
            self._fill(given, only.source)
            data = memoryview(only.make(given)).cast("B")
            if len(data) != only.size_bytes:
                raise ValueError(f"{block.owner}: {len(data)} bytes made, {only.size_bytes} expected")
            return data
        if len(block.parts) == 1 and isinstance(only, memoryview):
            return only
        for part in block.parts:
            size = part.size_bytes if isinstance(part, ByteRange) else len(part)
            place = buffer[used : used + size]
            if isinstance(part, ByteRange):
                self._fill(place, part)
            else:
                place[:] = part
            used += size
        return buffer[:used]

    def _fill(self, place: memoryview, part: ByteRange) -> None:
        sources = self._own.sources
        if part.path not in sources:
            sources[part.path] = self._open(part.path, "rb")
        if _read(sources[part.path], place, part.start) < part.size_bytes:
            raise cut_short(part.path)

    def _compare(self, expected: memoryview, at: int) -> None:
        found = self._own.found if len(expected) == BLOCK_BYTES else bytearray(len(expected))
        read = _read(self._own.out, memoryview(found), at)
        if (
            read < len(expected) or found != expected
        ):  # a bytearray on the left: memoryviews compare value by value
            differing = (n for n in range(read) if found[n] != expected[n])
            raise ReadsBackDifferently(at + next(differing, read))


def _write(handle: Any, data: memoryview, at: int) -> None:
    while data:
        if hasattr(os, "pwrite"):  # one call in place of two; Windows has none
            written = os.pwrite(handle.fileno(), data[:_WRITTEN_BYTES], at)
        else:
            handle.seek(at)
            written = handle.write(data[:_WRITTEN_BYTES])
        data, at = data[written:], at + written


def _read(handle: Any, buffer: memoryview, at: int) -> int:
    """Read until the buffer is full or the file ends; returns how many bytes there were."""
    done = 0
    while done < len(buffer):
        if hasattr(os, "preadv"):
            read = os.preadv(handle.fileno(), [buffer[done:]], at + done)
        else:
            handle.seek(at + done)
            read = handle.readinto(buffer[done:])
        if not read:
            break
        done += read
    return done
