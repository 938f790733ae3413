"""Sessions of the older fast-DreamBooth notebooks, made ready to train: added to, never changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastsd_lib.core.progress import Report, silent
from fastsd_lib.sessions import legacy
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.session import Session

if TYPE_CHECKING:
    from fastsd_lib.images.store import PhotoReport


def go_on_from(session: Session) -> str:
    """What to type to go on from the session's own .ckpt; "" when it has none that is whole."""
    whole = [path for path in legacy.trained_models(session.path) if not legacy.damage(path)]
    return f'go on from its own model: add --model "{whole[-1]}"' if whole else ""


def complete(session: Session, report: Report = silent) -> PhotoReport | None:
    """Unpack photos and captions that are there as zips only, and add the parts that `session` lacks.

    The zips, and every file that was there, stay as they are; done again it changes nothing. Returns what became
    of the zips' photos, None when there was nothing to unpack.
    """
    outcome = None
    if zips := legacy.zips_to_unpack(session.path):
        from fastsd_lib.images.store import add_photos

        outcome = add_photos(zips, session.instance_images, session.captions, report)
    sessions.complete_session(session)
    if outcome and (outcome.accepted or outcome.captions):
        sessions.record(
            session,
            "zips unpacked",
            zips=[path.name for path in zips],
            photos=len(outcome.accepted),
            captions=outcome.captions,
        )
    return outcome
