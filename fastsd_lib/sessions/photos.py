"""The photos of a session."""

from __future__ import annotations

from pathlib import Path

from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.sessions.session import Session


def photos(session: Session) -> list[Path]:
    """Its photos by name: picture files only, without dot files and junk."""
    return list_photos(session.instance_images)
