"""Photos out of training and back, by their names: moved within the session, never deleted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fastsd_lib.core import disk
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.core.text import escaped
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.lock import session_lock
from fastsd_lib.sessions.session import Session

FOLDER = "set_aside"
LEAST_LEFT = 1


def set_aside(session: Session, names: Iterable[str]) -> list[str]:
    """Move these photos and their captions to set_aside/; training no longer sees them. Returns the names.

    UserError for a name that is not a photo of the session (then none is moved), when no photo would be left, and
    when somebody works in the session.
    """
    here = {path.name for path in list_photos(session.instance_images)}
    wanted = _known(names, here, f"Session {session.name!r} has no photo")
    if wanted and len(here) - len(wanted) < LEAST_LEFT:
        raise UserError("No photo would be left to train on.", fix="keep at least one.")
    aside = session.path / FOLDER
    _move(session, wanted, (session.instance_images, aside), (session.captions, aside), "photos set aside")
    return wanted


def bring_back(session: Session, names: Iterable[str] | None = None) -> list[str]:
    """Move photos from set_aside/ back to where training sees them; all of them without `names`."""
    aside = session.path / FOLDER
    there = {path.name for path in list_photos(aside)}
    wanted = sorted(there) if names is None else _known(names, there, f"{FOLDER}/ holds no photo")
    _move(session, wanted, (aside, session.instance_images), (aside, session.captions), "photos brought back")
    return wanted


def photos_set_aside(session: Session) -> list[Path]:
    return list_photos(session.path / FOLDER)


def _known(names: Iterable[str], there: set[str], what: str) -> list[str]:
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in there:  # also whatever leads out of the folder
            shown = ", ".join(escaped(one) for one in sorted(there)[:20]) or "none"
            raise UserError(f"{what} {escaped(name)!r} (there: {shown}).", fix="choose among these.")
    return wanted


def _move(
    session: Session, names: list[str], photo: tuple[Path, Path], caption: tuple[Path, Path], event: str
) -> None:
    if not names:
        return
    with session_lock(session.path, event), plain_disk_errors("move the photos"):
        for name in names:
            if (photo[1] / name).exists():
                raise UserError(
                    f"{photo[1].name}/ holds another photo {escaped(name)!r} already.",
                    fix="rename or move that one first.",
                )
        photo[1].mkdir(exist_ok=True)
        for name in names:
            # The photo last: what a break leaves is a photo without a caption, never one that is nowhere.
            text = f"{Path(name).stem}.txt"
            if (caption[0] / text).is_file() and not (caption[1] / text).exists():
                disk.rename(caption[0] / text, caption[1] / text)
            disk.rename(photo[0] / name, photo[1] / name)
        sessions.record(session, event, photos=names)
