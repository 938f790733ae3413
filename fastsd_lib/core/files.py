"""Files that are written whole or not at all, and told apart by their content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError

CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a scratch path beside `final`; it becomes `final` only if the block succeeds.

    A Colab disconnect halfway leaves the old file whole, never half of the new one.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two notebooks apart; savers read the suffix.
    scratch = final.with_name(f".{final.stem}.{os.getpid()}.partial{final.suffix}")
    try:
        yield scratch
        fsync_path(scratch)
        os.replace(scratch, final)
        fsync_path(final.parent)
    finally:
        with suppress(OSError):  # a Drive that is gone: the error on its way says so
            scratch.unlink(missing_ok=True)


def remove_leftovers(final: Path) -> None:
    """Remove what `atomic_path(final)` of processes that were killed have left; nothing else has such a name.

    Folders too, of those who write a whole folder beside its name. The scratch of a process that still runs stays.
    (One on another computer that shares the disk looks like a dead one: it then fails to give its file its name, and
    says so.)
    """
    name = re.compile(re.escape(f".{final.stem}.") + r"(\d+)" + re.escape(f".partial{final.suffix}"))
    if (
        os.name != "posix" or not final.parent.is_dir()
    ):  # elsewhere a question of this kind ends the process asked
        return
    for scratch in final.parent.iterdir():
        match = name.fullmatch(scratch.name)
        if not match or scratch.is_symlink() or _runs(int(match[1])):
            continue
        if scratch.is_dir():  # of a model that was to become a folder
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True


def fsync_path(path: Path) -> None:
    """Push one file or directory to the disk; hosts that cannot fsync a directory are forgiven."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows opens no directory
        return
    try:
        os.fsync(handle)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as scratch:
        scratch.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file, or raise a UserError with the line and column of the damage."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}.",
            fix="restore the file from a backup, or delete it to start afresh.",
        ) from None
    except UnicodeDecodeError:
        fix = "restore it from a backup, or delete it."
        raise UserError(f"{path} is not a text file.", fix=fix) from None
    except (ValueError, RecursionError):  # a number of 5,000 digits, ten thousand brackets
        raise UserError(
            f"{path} is not JSON that any program wrote.", fix="restore it, or delete it."
        ) from None


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """16 hex digits that change when any part of a JSON-like `value` changes."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


@contextmanager
def plain_disk_errors(doing: str) -> Iterator[None]:
    """A full disk, a read-only folder and their like become a UserError; `doing`: "create the session"."""
    try:
        yield
    except OSError as error:
        fix = _DISK_FIXES.get(error.errno or 0)
        if fix is None:
            raise
        where = f" {error.filename}" if error.filename else ""
        raise UserError(f"Could not {doing}: {os.strerror(error.errno)}{where}.", fix=fix) from None


_DISK_FIXES = {
    errno.ENOSPC: "free some space there, or choose another folder with --root.",
    errno.EDQUOT: "your quota is used up: free some space, or choose another folder with --root.",
    errno.EACCES: "choose a folder you may write to with --root.",
    errno.EPERM: "choose a folder you may write to with --root.",
    errno.EROFS: "this disk is read-only: choose another folder with --root.",
    errno.ENOTDIR: "a file stands where a folder should be: move it, or choose another folder with --root.",
    errno.EEXIST: "a file stands where a folder should be: move it, or choose another folder with --root.",
    errno.ENAMETOOLONG: "choose a shorter name or folder.",
    errno.ENOTCONN: "Drive is no longer mounted: mount it again and run this again.",
    errno.ECONNABORTED: "Drive has gone away: mount it again and run this again.",
    errno.ETIMEDOUT: "the disk or Drive does not answer: wait a moment and run this again.",
    errno.EIO: "the disk or Drive gave an error: wait a moment and run this again.",
}
