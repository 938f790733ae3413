"""A folder of files that gets its name only when every file in it is whole."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsd_lib.core import disk
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fsync_path


@contextmanager
def whole_folder(final: Path, *, ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield a scratch folder beside `final`; it becomes `final` only if the block succeeds.

    A folder that has the name already is replaced if `ours` says that this program made it; an empty one, too.
    UserError for any other: nobody's files are thrown away.
    """
    if final.exists() and not _may_be_replaced(final, ours):
        raise UserError(
            f"{final} holds other files already.", fix="name a new folder, or move that one away first."
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    _delete_left_behind(final)
    scratch, old = (final.with_name(f".{final.name}.{os.getpid()}.{end}") for end in ("partial", "old"))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
        for path in sorted(scratch.rglob("*"), reverse=True):
            fsync_path(path)
        fsync_path(scratch)
        if final.exists():
            disk.rename(final, old)
        disk.rename(scratch, final)
        fsync_path(final.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _may_be_replaced(final: Path, ours: Callable[[Path], bool]) -> bool:
    return final.is_dir() and (not any(final.iterdir()) or ours(final))


def _delete_left_behind(final: Path) -> None:
    """What a killed program left goes; a living one's stays."""
    pattern = re.compile(rf"\.{re.escape(final.name)}\.(\d+)\.(partial|old)")
    for path in final.parent.iterdir():
        found = pattern.fullmatch(path.name)
        if found and not _runs(int(found[1])):
            with suppress(OSError):
                shutil.rmtree(path)


def _runs(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid)
