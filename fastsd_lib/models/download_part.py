"""What is there of a download that is not whole yet: `.KEY.part`, and beside it `.KEY.json` that says which bytes.

The note never claims bytes that are not on the disk, so a machine that loses power loses at most what came since the
note was last written.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json, write_json

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK}  # what Drive and some networks answer
_BINARY = getattr(os, "O_BINARY", 0)


class OwnDisk(UserError):
    """The disk here is the trouble: another source would not help."""


class Part:
    """The bytes of one download. Several threads may write; one at a time changes what is known of the file."""

    def __init__(self, folder: Path, key: str) -> None:
        self.path, self.note = folder / f".{key}.part", folder / f".{key}.json"
        self.size: int | None = None  # bytes of the whole file
        self.validator = ""  # ETag or Last-Modified: the same as long as the file is
        self.origin = ""  # fingerprint of the address that gave the validator
        self.name = ""  # as the server calls the file
        self._runs: list[list[int]] = []  # [first byte, byte after the last] of what is there
        self._handle = -1
        self._writing = threading.Lock()

    @contextmanager
    def opened(self) -> Iterator[Part]:
        """Ours alone until the block ends. UserError when another program fetches the same file."""
        with own_disk(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
            for scratch in self.path.parent.glob(f".{self.note.stem}.*.partial.json"):
                scratch.unlink(missing_ok=True)  # of one who was killed while he wrote the note
        try:
            self._read_note()
            yield self
        finally:
            with self._writing:
                os.close(self._handle)
                self._handle = -1

    def _open(self) -> None:
        while True:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
            if fcntl is None:
                return
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._handle)
                raise UserError(
                    f"Another program is fetching this very file into {self.path.parent}.",
                    fix="wait until it is done, or stop it.",
                ) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._handle), self.path.stat()):
                    return
            os.close(self._handle)  # whoever held it finished and gave the file its name

    def write(self, run: list[int], data: bytes) -> None:
        """Put `data` at the end of `run`; nothing once the part is closed."""
        with own_disk(self.path), self._writing:
            if self._handle < 0:
                return
            os.lseek(self._handle, run[1], os.SEEK_SET)
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            run[1] += len(data)

    def run_from(self, start: int) -> list[int]:
        """A new stretch of bytes, to be grown by `write`."""
        run = [start, start]
        self._runs.append(run)
        return run

    @property
    def done(self) -> list[list[int]]:
        """What is there, in order and merged."""
        merged: list[list[int]] = []
        for start, end in sorted(run[:] for run in self._runs):
            if start == end:
                continue
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        return merged

    @property
    def bytes_done(self) -> int:
        return sum(end - start for start, end in self.done)

    def missing(self) -> list[tuple[int, int]]:
        """What is not there, in order; `size` must be known."""
        gaps, at = [], 0
        for start, end in [*self.done, [self.size or 0, self.size or 0]]:
            if start > at:
                gaps.append((at, start))
            at = max(at, end)
        return gaps

    def record(self) -> None:
        """Write down what is there, once it is on the disk."""
        done = self.done
        with own_disk(self.path):
            os.fsync(self._handle)
            write_json(
                self.note,
                {"size": self.size, "validator": self.validator, "origin": self.origin, "name": self.name,
                 "done": done},
            )  # fmt: skip

    def forget(self) -> None:
        """Begin afresh."""
        self.size, self.validator, self.origin, self.name, self._runs = None, "", "", "", []
        with own_disk(self.path):
            self.note.unlink(missing_ok=True)
            os.ftruncate(self._handle, 0)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self, final: Path) -> None:
        """Give the whole file its name; nothing stands there."""
        with own_disk(final):
            os.ftruncate(self._handle, self.size or 0)  # whatever an older, longer try left behind
            os.fsync(self._handle)
            os.rename(self.path, final)
            self.note.unlink(missing_ok=True)

    def _read_note(self) -> None:
        try:
            note = read_json(self.note) if self.note.is_file() else {}
            self._take(note, os.fstat(self._handle).st_size)
        except (UserError, KeyError, TypeError, ValueError, OSError):
            self.forget()  # not written by us, or damaged: the bytes are fetched again

    def _take(self, note: dict[str, Any], there: int) -> None:
        if not note:
            return self.forget()
        size = None if note["size"] is None else int(note["size"])
        runs = [[int(start), int(end)] for start, end in note["done"]]
        if any(not 0 <= start < end <= min(there, size or there) for start, end in runs):
            raise ValueError("the note claims more than is there")
        self.size, self._runs = size, runs
        self.validator, self.origin, self.name = (str(note[key]) for key in ("validator", "origin", "name"))
        return None


@contextmanager
def own_disk(path: Path) -> Iterator[None]:
    """A disk that is full or read-only, said so that nobody blames the server."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OwnDisk(
                f"The disk of {path.parent} is full.",
                fix="free some space: what was fetched so far is kept and gone on with.",
            ) from None
        raise OwnDisk(
            f"Nothing can be written into {path.parent}: {os.strerror(error.errno or 0)}.",
            fix="choose a folder that you may write to.",
        ) from None
