"""Is everything there that a session speaks of?"""

from __future__ import annotations

import shlex
import zipfile
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import is_junk, list_photos
from fastsd_lib.core.files import read_json
from fastsd_lib.core.text import escaped, same_name
from fastsd_lib.sessions import legacy
from fastsd_lib.sessions.session import Session, read_manifest


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong in a session, and what to do about it."""

    file: str
    problem: str
    fix: str


def verify(session: Session) -> list[Finding]:
    """What is missing or left over, by file; an empty list means that all is well. Nothing is changed."""
    found: list[Finding] = []
    try:
        read_manifest(session)
    except UserError as error:
        found.append(Finding("session.json", error.message, error.fix))
    photos = list_photos(session.instance_images)
    if not photos and legacy.zips_to_unpack(session.path)[:1] != [session.path / legacy.ZIPS[0]]:
        add = f"python3 -m fastsd_lib session add-images {shlex.quote(session.name)} FOLDER"
        found.append(Finding("instance_images", "holds no photos", f"add some: {add}"))
    names = {photo.name for photo in photos}
    for path in sorted(session.instance_images.glob("*")):
        if path.is_file() and path.name not in names and not is_junk(path.name):
            found.append(
                Finding(_shown(session, path), "is not a photo", "move it elsewhere; training passes it over")
            )
    found += _crops(session, names)
    found += _captions(session, {same_name(photo.stem) for photo in photos})
    for path in sorted(session.checkpoints.glob("step_*")):
        if path.is_dir() and not (path / "manifest.json").is_file():
            found.append(Finding(_shown(session, path), "was not written to its end", "delete it"))
    for path in sorted(session.path.rglob(".*.partial*")):
        found.append(
            Finding(
                _shown(session, path),
                "was left by a run that broke off",
                "delete it, if nothing runs here now",
            )
        )
    for path in legacy.trained_models(session.path):
        if wrong := legacy.damage(path):
            found.append(
                Finding(_shown(session, path), wrong, "copy it again from where it came; it is passed over")
            )
    for path in legacy.zips(session.path):
        if not zipfile.is_zipfile(path):
            found.append(Finding(_shown(session, path), "is no whole zip", "make the zip again"))
    if session.model_file.exists() and session.model_file.stat().st_size == 0:
        found.append(Finding(session.model_file.name, "is empty", "delete it and export again"))
    return found


def _crops(session: Session, photos: set[str]) -> list[Finding]:
    if not session.crops_file.exists():
        return []
    fix = "crop the photos again"
    try:
        crops = read_json(session.crops_file)
    except UserError as error:
        return [Finding("crops.json", error.message, error.fix)]
    if not isinstance(crops, dict) or not isinstance(crops.get("photos"), dict):
        return [Finding("crops.json", "is not a crops file", f"delete it and {fix}")]
    gone = sorted(set(crops["photos"]) - photos)
    return [Finding("crops.json", f"speaks of {escaped(name)}, which is not there", fix) for name in gone]


def _captions(session: Session, stems: set[str]) -> list[Finding]:
    return [
        Finding(_shown(session, path), "is a caption without a photo", "delete it, or add its photo")
        for path in sorted(session.captions.glob("*.txt"))
        if not is_junk(path.name) and same_name(path.stem) not in stems
    ]


def _shown(session: Session, path: Path) -> str:
    return escaped(path.relative_to(session.path).as_posix())
