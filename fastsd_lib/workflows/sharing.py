"""Sessions from and to other people: import from a file, a folder, Drive or Hugging Face; export; remove."""

from __future__ import annotations

import difflib
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.text import escaped
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.environment.tokens import hub_token
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.archive import Exported, export_session
from fastsd_lib.sessions.arrival import Imported, free_name, settle
from fastsd_lib.sessions.intake import Intake, from_archive, from_folder, staging
from fastsd_lib.workflows import drive_links, hub

_ARCHIVE_SUFFIXES = re.compile(r"(-session)?\.(zip|tar|tgz|tar\.gz)$", re.IGNORECASE)


def import_session(
    source: str | Path, name: str | None = None, root: str | Path | None = None, report: Report = silent
) -> Imported:
    """A new session from an archive, a folder, a Drive link or a Hugging Face repository.

    It appears whole or not at all, and never over another one. Nothing of it is run or unpickled. UserError with the
    reason for whatever cannot be imported.
    """
    place = expanded(root) if root else default_root()
    if name is not None:
        name = free_name(place, name, given=True)  # before a gigabyte is fetched
    with plain_disk_errors("import the session"), _stopped_like_ctrl_c():
        with staging(sessions.sessions_dir(place)) as folder:
            intake, default_name, verified = _fetch(str(source).strip(), place, folder, report)
            return settle(place, intake, name, default_name, verified)


def _fetch(source: str, root: Path, folder: Path, report: Report) -> tuple[Intake, str, bool]:
    """What arrived, a name for it, and whether hashes were compared on the way."""
    path = expanded(source)
    if source and os.path.lexists(path):
        if path.is_dir():
            return from_folder(path, folder, report), path.resolve().name, False
        return from_archive(_plain_file(path), folder, report), _ARCHIVE_SUFFIXES.sub("", path.name), False
    if "://" in source:
        return _fetch_link(source, root, folder, report)
    if hub.is_repository(source) and not path.suffix:
        return (*hub.fetch(source, "model", folder, hub_token(root), report), True)
    raise _nowhere(source, path)


def _fetch_link(source: str, root: Path, folder: Path, report: Report) -> tuple[Intake, str, bool]:
    try:
        parts = urlsplit(source)
    except ValueError:
        raise UserError(
            f"{escaped(source[:80])} is no link.", fix="copy it from the browser again."
        ) from None
    if drive_links.is_drive(source):
        found = drive_links.fetch(source, folder, report)
        if isinstance(found, Path):
            intake = from_archive(found, folder, report)
            return intake, _ARCHIVE_SUFFIXES.sub("", found.name), False
        return (*found, False)
    if repository := hub.repository_of(source):
        return (*hub.fetch(*repository, folder, hub_token(root), report), True)
    if parts.scheme not in ("http", "https"):
        raise UserError(
            f"Links that begin with {escaped(parts.scheme)}: are not opened.", fix="name the file itself."
        )
    raise UserError(
        f"{escaped(parts.hostname or source[:80])} is neither Google Drive nor Hugging Face.",
        fix="download the archive yourself and import the file.",
    )


def _plain_file(path: Path) -> Path:
    if not path.exists():
        raise UserError(f"{escaped(str(path))} is a link that leads nowhere.", fix="check the path.")
    if not path.is_file():
        raise UserError(f"{escaped(str(path))} is neither a file nor a folder.", fix="check the path.")
    with plain_read_errors(path):
        path.open("rb").close()
    return path


@contextmanager
def plain_read_errors(path: Path) -> Iterator[None]:
    """A source that may not be read is another matter than a root that may not be written."""
    try:
        yield
    except PermissionError:
        raise UserError(
            f"{escaped(str(path))} may not be read.", fix="ask for the right to read it."
        ) from None


def _nowhere(source: str, path: Path) -> UserError:
    try:
        near = difflib.get_close_matches(path.name, [one.name for one in path.parent.iterdir()], 1)
    except OSError:
        near = []
    hint = (
        f"did you mean {escaped(str(path.with_name(near[0])))}?"
        if near
        else (
            "name a .zip or .tar, a folder, a Google Drive link or a Hugging Face repository such as org/name."
        )
    )
    return UserError(f"There is no file or folder {escaped(source[:200])!r}.", fix=hint)


@contextmanager
def _stopped_like_ctrl_c() -> Iterator[None]:
    """A runtime that is shut down sends SIGTERM: then, too, nothing is left of half an import."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


__all__ = ["Exported", "Imported", "export_session", "import_session"]
