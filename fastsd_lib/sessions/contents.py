"""What lies in a session's folder, sorted by what it is for: sharing and freeing space both go by this."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from fastsd_lib.core.file_kinds import is_junk
from fastsd_lib.core.text import same_name
from fastsd_lib.sessions import checkpoints
from fastsd_lib.sessions.session import Session

Part = Literal[
    "about", "photos", "model", "class-images", "checkpoints", "samples", "logs", "cache",
    "unfinished", "scratch", "trash", "secret", "lock", "junk", "link", "other",
]  # fmt: skip
MANIFEST = "export.json"  # in an archive: what is in it, with hashes
PHOTO_LEDGER = ".photos.jsonl"
_ABOUT = {"session.json", "recipe.yaml", "readme.md"}
_PHOTO_FILES = {"crops.json", "concepts.json", "instance_images.zip", "captions.zip"}
_FOLDERS: dict[str, Part] = {
    "instance_images": "photos",
    "captions": "photos",
    "set_aside": "photos",  # photos that curation took out of training; they are photos still
    "class_images": "class-images",
    "samples": "samples",
    "logs": "logs",
    "cache": "cache",
    "trash": "trash",
}
#: Sheets that show the photos themselves: whoever shares no photos does not share these either.
SHOWS_PHOTOS = {"samples/crops.png", "samples/before_after.png", "samples/curation.png"}
_SCRATCH = re.compile(r"\..*\.partial[^/]*")
_SECRET = re.compile(
    r"token(\.txt)?|\.env(\..*)?|\.?netrc|.*\.pem|id_[a-z0-9]+|(client_secret|credentials).*\.json|kaggle\.json"
    r"|\.git-credentials|cookies\.txt|.*\.key",
    re.IGNORECASE,
)
_LOCK = re.compile(r"\.?lock(\..*)?|.*\.lock(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One file of a session."""

    path: Path
    name: str  # below the session, "/" between its parts
    part: Part
    bytes: int


def contents(session: Session) -> list[Item]:
    """Every file by name; links are listed, never followed. A file that vanishes meanwhile is left out."""
    sealed = {one.path.name for one in checkpoints.list_checkpoints(session.checkpoints)}
    found = []
    for parent, folders, names in os.walk(session.path):
        links = [folder for folder in folders if os.path.islink(os.path.join(parent, folder))]
        for name in [*names, *links]:
            path = Path(parent, name)
            try:
                status = path.lstat()
            except OSError:
                continue
            inside = path.relative_to(session.path).as_posix()
            part = part_of(inside, session.name, sealed)
            if not stat.S_ISREG(status.st_mode):
                part = "link" if stat.S_ISLNK(status.st_mode) else "junk"
            found.append(Item(path, inside, part, status.st_size))
    return sorted(found, key=lambda item: item.name)


def part_of(name: str, session_name: str, sealed: Iterable[str] = ()) -> Part:
    """What the file `name` of a session is for, by its place and name. `sealed`: the checkpoints that count."""
    parts = PurePosixPath(name).parts
    top, last = parts[0], parts[-1]
    if any(_SCRATCH.fullmatch(part) for part in parts):
        return "scratch"
    if is_secret(last):
        return "secret"
    if _LOCK.fullmatch(last):
        return "lock"
    if any(is_junk(part) for part in parts) and last != PHOTO_LEDGER:
        return "junk"
    if len(parts) == 1:
        return _top_part(last, session_name)
    if top == "checkpoints" and re.match(r"step_\d+", parts[1]):
        return "checkpoints" if parts[1] in sealed else "unfinished"
    return _FOLDERS.get(top, "other")


def is_secret(name: str) -> bool:
    """Tokens and keys, as the older notebooks, Hugging Face, Kaggle and ssh call their files."""
    return bool(_SECRET.fullmatch(name))


def _top_part(name: str, session_name: str) -> Part:
    if name.casefold() in _ABOUT:
        return "about"
    if name in _PHOTO_FILES:
        return "photos"
    stem, suffix = os.path.splitext(name)
    if suffix.lower() in (".safetensors", ".ckpt") and same_name(stem).startswith(same_name(session_name)):
        # <name>_step_500.ckpt of the older notebooks: one of many on the way
        return "checkpoints" if re.search(r"_step_\d+$", stem) else "model"
    return "other"
