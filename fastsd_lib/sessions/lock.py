"""One writer per session: a second one is told who works there, and a dead one holds nothing for ever.

The file `.lock.json` in the session stays; what it says counts. Its holder has an flock on it, so that two programs of
one machine cannot take it at once, and rewrites it every minute, which is all that another machine (or another mount of
the same Drive) can see. Between machines that start within the same minute Drive offers nothing better: the one that was
overwritten finds out at its next beat and says so. Checkpoints do not collide even then: each has a folder of its own.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: the record alone must do
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock.json"
BEAT_S = 60.0
STALE_S = 300.0
_RECORD_BYTES = 1024  # always as long, so that one write replaces it
_SETTLE_S = 0.3
_handles: set[int] = set()


def _forget_in_child() -> None:
    for handle in _handles:  # a data loader that outlives its parent must not keep the lock
        with suppress(OSError):
            os.close(handle)
    _handles.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class SessionLock:
    """Held while its `with` block runs."""

    def __init__(self, path: Path, record: dict[str, Any], note: str) -> None:
        self.path, self.note = path, note  # the note: whose lock was taken over, or ""
        self.lost = ""  # set when another machine took it over: stop writing
        self._record, self._stop = record, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="session lock", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        """Drive may be away for a while, and its mount replaced: each beat opens the file anew."""
        while not self._stop.wait(BEAT_S):
            with suppress(OSError):
                if not self._is_ours():
                    return
                _write(self.path, self._record | {"beat": time.time()})
        with suppress(OSError):
            if self._is_ours():
                _write(self.path, {})

    def _is_ours(self) -> bool:
        found = _read(self.path)
        if found.get("token", self._record["token"]) != self._record["token"]:
            self.lost = f"This session was taken over by {_owner(found)}."
        return not self.lost

    def release(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)  # a Drive that hangs must not hold up the end


@contextmanager
def session_lock(
    session_path: Path, doing: str = "training", report: Callable[[str], None] | None = None
) -> Iterator[SessionLock]:
    """Hold the session while the block runs; UserError naming the other one where somebody works on it already.

    `report` is told when the lock of a dead owner was taken over (also in `.note`).
    """
    path = Path(session_path) / LOCK_FILE
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(path, error) from None
    _handles.add(handle)
    try:
        try:
            note = _judge(_read(path), _flock(handle), path)
            record = _new_record(doing)
            _write(path, record)
            if fcntl is None or _flock(handle) is None:  # nothing else settles a race
                time.sleep(_SETTLE_S)
                if (winner := _read(path)).get("token") != record["token"]:
                    raise _busy(winner)
        except OSError as error:
            raise _unwritable(path, error) from None
        if note and report:
            report(note)
        lock = SessionLock(path, record, note)
        try:
            yield lock
        finally:
            lock.release()
    finally:
        if handle in _handles:
            _handles.remove(handle)
            os.close(handle)


def who_works_on(session_path: Path) -> str:
    """Who holds the session now: "training, process 4711 on this machine, since 14:02"; empty for nobody.

    OSError when Drive does not answer: then nobody knows.
    """
    record = _read(Path(session_path) / LOCK_FILE)
    return f"{record['doing']}, {_owner(record)}" if record and _holds(record) else ""


def _judge(record: dict[str, Any], got_it: bool | None, path: Path) -> str:
    """A word on the dead owner that is followed, or ""; UserError when the owner lives."""
    if got_it is False or (record and _holds(record)):
        raise _busy(record)
    if not record:
        return ""
    return f"The lock that {_owner(record)}, left on this session is taken over: it is gone."


def _holds(record: dict[str, Any]) -> bool:
    if record["host"] == _host() and record["boot"] == _boot():
        return _started(record["pid"]) == record["started"] != ""
    return abs(time.time() - record["beat"]) < STALE_S


def _flock(handle: int) -> bool | None:
    """Got it; somebody else has it; None where the file system has no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _new_record(doing: str) -> dict[str, Any]:
    now = time.time()
    pid = os.getpid()
    return {
        "doing": doing,
        "host": _host(),
        "boot": _boot(),
        "pid": pid,
        "started": _started(pid),
        "since": now,
        "beat": now,
        "token": uuid.uuid4().hex,
    }


def _read(path: Path) -> dict[str, Any]:
    """The record; {} when nobody left one or it cannot be understood."""
    try:
        record = json.loads(path.read_bytes())
        kinds = {"doing": str, "host": str, "boot": str, "pid": int, "started": str, "token": str}
        good = all(isinstance(record[key], kind) for key, kind in kinds.items())
        return record if good and record["since"] + record["beat"] > 0 else {}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _write(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record) if record else ""
    handle = os.open(path, os.O_RDWR)
    try:
        os.write(handle, text.encode().ljust(_RECORD_BYTES))
        os.fsync(handle)
    finally:
        os.close(handle)


def _busy(record: dict[str, Any]) -> UserError:
    if not record:
        return UserError("Somebody else just began to work on this session.", fix="wait until it is free.")
    if record["host"] != _host() or record["boot"] != _boot():
        silent_s = max(0, time.time() - record["beat"])
        return UserError(
            f"This session is in use: {record['doing']}, {_owner(record)}, last heard of {silent_s:.0f} s ago.",
            fix=f"stop it there; once it has been silent for {STALE_S / 60:.0f} minutes this one takes over.",
        )
    if record["pid"] == os.getpid():
        fix = "stop the cell that runs it, or wait until it ends."
    else:
        fix = f"wait until it ends, or stop it: close its notebook or tab, or kill {record['pid']}."
    return UserError(f"This session is in use: {record['doing']}, {_owner(record)}.", fix=fix)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"The session cannot be locked for writing: {error.strerror} ({path}).",
        fix="choose a session in a folder that can be written to; if it lies on Drive, mount Drive again.",
    )


def _owner(record: dict[str, Any]) -> str:
    here = record["host"] == _host() and record["boot"] == _boot()
    where = "this machine" if here else f"another machine ({record['host']})"
    today = time.strftime("%F") == time.strftime("%F", time.localtime(record["since"]))
    since = time.strftime("%H:%M" if today else "%F %H:%M", time.localtime(record["since"]))
    return f"process {record['pid']} on {where}, since {since}"


def _host() -> str:
    return socket.gethostname()


def _boot() -> str:
    """Tells a machine from one that took its name after a restart; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When this process began: a number that came back as another process is told apart. Empty when it is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if after_name[0] in "ZX" else after_name[19]
    except (OSError, IndexError):
        if os.path.isdir("/proc/self"):
            return ""
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return ""
