"""Stand between core/disk.py and `os`: count every call that changes the disk, record it, break it, or die in it.

    with watching(Recorder()) as seen: save()
    for point in points(seen.calls): kill_in_child(work, Killer(point))

Nothing of the library is replaced: `disk.os` passes every call on to the real `os`. Only Python's standard library and
the store are imported, so that a process can be forked here without a thought for torch's threads.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastsd_lib.core import disk

CHANGES = ("mkdir", "open", "write", "fsync", "replace", "unlink", "rmdir")
READS = ("read", "listdir", "stat")
ERRNOS = {
    name: getattr(errno, name)
    for name in ("ENOSPC", "EIO", "ENOTCONN", "ECONNABORTED", "EDQUOT", "EROFS", "ETIMEDOUT")
}
WRITE_BYTES = 256  # so that a file of 2 kB takes eight writes, each of which can be torn


@dataclass(frozen=True)
class Call:
    """One call of `os`: its name, the path that it is about, and what it writes or the new name."""

    name: str
    path: str
    data: Any = b""
    failed: bool = False  # as mkdir does where the name is taken


@dataclass(frozen=True)
class Point:
    """Where to die: before, after or in the middle ("torn": half the bytes are written) of the n-th change."""

    number: int
    moment: str


class PassOn:
    """What happens at each call; this one lets all pass. `number` counts the calls of interest from 0."""

    interesting = CHANGES
    below = ""  # only calls on paths that start so

    def at(self, number: int, call: Call, run: Callable[[], Any], half: Callable[[], Any]) -> Any:
        return run()


@dataclass
class Recorder(PassOn):
    calls: list[Call] = field(default_factory=list)
    below: str = ""

    def at(self, number: int, call: Call, run: Callable[[], Any], half: Callable[[], Any]) -> Any:
        try:
            result = run()
        except OSError:
            self.calls.append(replace(call, failed=True))
            raise
        self.calls.append(call)
        return result

    def mark(self, what: Any) -> None:
        self.calls.append(Call("mark", "", what))


@dataclass
class Killer(PassOn):
    """SIGKILL to this very process at one point."""

    point: Point
    below: str = ""

    def at(self, number: int, call: Call, run: Callable[[], Any], half: Callable[[], Any]) -> Any:
        if number != self.point.number:
            return run()
        if self.point.moment == "torn":
            half()
        elif self.point.moment == "after":
            with suppress(OSError):
                run()
        os.kill(os.getpid(), signal.SIGKILL)
        return None  # not reached


@dataclass
class Breaker(PassOn):
    """The n-th call fails, once or from then on for good (until `mended`); a write is half done by then."""

    number: int
    code: int
    for_good: bool = False
    below: str = ""
    interesting: tuple[str, ...] = (*CHANGES, *READS)
    mended: bool = False
    hits: int = 0

    def at(self, number: int, call: Call, run: Callable[[], Any], half: Callable[[], Any]) -> Any:
        due = number >= self.number if self.for_good else number == self.number
        if not due or self.mended:
            return run()
        self.hits += 1
        half()
        raise OSError(self.code, os.strerror(self.code))  # without a file name, as write and fsync have it


@dataclass
class Liar(PassOn):
    """The n-th write reports success and stores other bytes."""

    number: int
    interesting: tuple[str, ...] = ("write",)

    def at(self, number: int, call: Call, run: Callable[[], Any], half: Callable[[], Any]) -> Any:
        return half("flip") if number == self.number else run()  # type: ignore[call-arg]


class WatchedOs:
    """`os`, with an eye on it. Folders that are opened to be read or synced do not change the disk: not counted."""

    def __init__(self, watcher: PassOn) -> None:
        self._watcher, self._count, self._names = watcher, 0, {}
        self._guard = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _watch(
        self, name: str, path: Any, run: Callable[[], Any], data: Any = b"", half: Any = lambda *_: None
    ) -> Any:
        if name not in self._watcher.interesting:
            return run()
        if not str(path).startswith(self._watcher.below):
            return run()
        with self._guard:
            number, self._count = self._count, self._count + 1
        return self._watcher.at(number, Call(name, str(path), data), run, half)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        def run() -> int:
            handle = os.open(path, flags, mode)
            self._names[handle] = str(path)
            return handle

        return self._watch("open", path, run) if flags & os.O_CREAT else run()

    def write(self, handle: int, data: Any) -> int:
        data = bytes(data)

        def half(how: str = "torn") -> int:
            if how == "flip":
                return os.write(handle, bytes([data[0] ^ 1]) + data[1:])
            return os.write(handle, data[: len(data) // 2])

        return self._watch("write", self._names[handle], lambda: os.write(handle, data), data, half)

    def fsync(self, handle: int) -> None:
        return self._watch("fsync", self._names[handle], lambda: os.fsync(handle))

    def read(self, handle: int, size: int) -> bytes:
        return self._watch("read", self._names[handle], lambda: os.read(handle, size))

    def mkdir(self, path: Any) -> None:
        return self._watch("mkdir", path, lambda: os.mkdir(path))

    def replace(self, old: Any, new: Any) -> None:
        return self._watch("replace", old, lambda: os.replace(old, new), str(new))

    def unlink(self, path: Any) -> None:
        return self._watch("unlink", path, lambda: os.unlink(path))

    def rmdir(self, path: Any) -> None:
        return self._watch("rmdir", path, lambda: os.rmdir(path))

    def listdir(self, path: Any) -> list[str]:
        return self._watch("listdir", path, lambda: os.listdir(path))

    def stat(self, path: Any, **options: Any) -> os.stat_result:
        return self._watch("stat", path, lambda: os.stat(path, **options))


@contextmanager
def watching(watcher: PassOn, write_bytes: int = WRITE_BYTES) -> Iterator[Any]:
    """While the block runs, the library's disk calls go through `watcher`."""
    before = disk.os, disk.WRITE_BYTES
    disk.os, disk.WRITE_BYTES = WatchedOs(watcher), write_bytes  # type: ignore[assignment]
    try:
        yield watcher
    finally:
        disk.os, disk.WRITE_BYTES = before


def points(calls: list[Call]) -> list[Point]:
    """Every point of these calls: before and after each, and in the middle of each write."""
    changes = [call for call in calls if call.name in CHANGES]
    found = []
    for number, call in enumerate(changes):
        moments = ("before", "torn", "after") if call.name == "write" else ("before", "after")
        found += [Point(number, moment) for moment in moments]
    return found


def kill_in_child(
    work: Callable[[Callable[[str], None]], Any], killer: Killer, write_bytes: int = WRITE_BYTES
) -> tuple[list[str], bool]:
    """Fork, let the child do `work` and be killed: the lines that it announced, and whether it was killed.

    `work` is given the function to announce with: what it said before its death arrives, as on a screen.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            with watching(killer, write_bytes):
                work(lambda line: os.write(writing, f"{line}\n".encode()) and None)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode().splitlines()
    _, status = os.waitpid(child, 0)
    return said, os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def quick_folder() -> Path | None:
    """A folder in memory, where thousands of small files cost little; None where the system has none."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else None
