"""Names for files that came from elsewhere: every system can hold them and tell them apart."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from fastsd_lib.core.text import name_problem, safe_stem, same_name
from fastsd_lib.sessions.contents import PHOTO_LEDGER

_STEM_BYTES = 110
_FIXED_NAMES = {PHOTO_LEDGER, "session.json", "crops.json", "recipe.yaml"}


def safe_names(paths: list[PurePosixPath]) -> dict[PurePosixPath, str]:
    """Names that every system can hold and tell apart.

    Where two would be one, all but the first are marked with a hash of their stem, so that a photo and its caption
    stay a pair.
    """
    groups: dict[str, set[tuple[bool, str]]] = defaultdict(set)
    for path in (path for path in paths if path.name not in _FIXED_NAMES):
        stem, clean, _ = _split(path.name)
        groups[_key(path)].add((stem != clean, stem))
    first = {key: min(found)[1] for key, found in groups.items()}  # a name that needs no change keeps it
    names = {}
    for path in paths:
        stem, clean, suffix = _split(path.name)
        if stem != first.get(_key(path), stem):
            clean += "~" + hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        last = path.name if path.name in _FIXED_NAMES else clean + suffix
        names[path] = "/".join([*("".join(_split(part)[1:]) for part in path.parts[:-1]), last])
    return names


def _key(path: PurePosixPath) -> str:
    # Photos and captions are one group: what is a twin among the photos has a twin's caption.
    _, clean, suffix = _split(path.name)
    if path.parts[0] in ("instance_images", "captions"):
        return f"photos/{same_name(clean)}"
    return f"{same_name(str(path.parent))}/{same_name(clean + suffix)}"


def _split(name: str) -> tuple[str, str, str]:
    """(stem, stem that every disk takes, suffix) of a file name; a name without a problem stays as it is."""
    path = PurePosixPath(name.rstrip(" .") or "file")
    if not name_problem(name) and not name_problem(path.stem):  # "a .txt" goes with "a .png "
        return path.stem, path.stem, path.suffix
    stem, suffix = safe_stem(path.stem), safe_stem(path.suffix.lstrip("."))[:16]
    while len(stem.encode()) > _STEM_BYTES:
        stem = stem[:-1].rstrip(" .")
    clean, suffix = stem or "file", f".{suffix}" if suffix else ""
    return path.stem, clean if not name_problem(clean + suffix) else f"file {clean}", suffix


def model_name(place: str, old_names: Iterable[str], new_name: str) -> str:
    """The model file bears the session's name, so it is renamed with it."""
    stem, suffix = os.path.splitext(place)
    for old in old_names:
        rest = stem.removeprefix(old)
        if suffix in (".safetensors", ".ckpt") and stem.startswith(old) and rest[:1] in ("", "_", "-"):
            return f"{new_name}{rest}{suffix}"
    return place
