"""What the older fast-DreamBooth notebooks left in a session: read, used, and never changed.

Beside the folders instance_images/ and captions/ there may be a zip of each, the trained model <name>.ckpt and
snapshots <name>_step_<N>.ckpt. A photo is named after its subject: "phtmejhn (1).jpg".
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fastsd_lib.core.file_kinds import is_junk, kind_of_file, list_photos
from fastsd_lib.core.photo_names import caption_from_filename

ZIPS = ("instance_images.zip", "captions.zip")
_STEP = re.compile(r"_step_(\d+)$")
_OLD_PICKLE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # PyTorch's own format before its zips


def trained_models(folder: Path) -> list[Path]:
    """Its .ckpt files, the one to go on from last: the newest that is whole, the final one among equals."""
    found = [path for path in folder.glob("*.ckpt") if path.is_file() and not is_junk(path.name)]
    return sorted(found, key=lambda path: (not damage(path), int(path.stat().st_mtime), _steps(path)))


def damage(checkpoint: Path) -> str:
    """What is wrong with a .ckpt by its first and last bytes; "" when it looks whole. No weight is read."""
    try:
        if checkpoint.stat().st_size == 0:
            return "is empty"
        kind = kind_of_file(checkpoint)
        if kind == "zip archive":
            return "" if zipfile.is_zipfile(checkpoint) else "is cut short"
        with checkpoint.open("rb") as handle:
            old = handle.read(len(_OLD_PICKLE)) == _OLD_PICKLE
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if old else "is no PyTorch checkpoint"


def zips(folder: Path) -> list[Path]:
    """The zips of photos and captions that the older notebooks made for sharing."""
    return [folder / name for name in ZIPS if (folder / name).is_file()]


def zips_to_unpack(folder: Path) -> list[Path]:
    """Those zips whose content is not there unpacked: their folder is missing or holds nothing of its kind."""
    here = {
        "instance_images.zip": bool(list_photos(folder / "instance_images")),
        "captions.zip": any((folder / "captions").glob("*.txt")),
    }
    return [path for path in zips(folder) if not here[path.name]]


def photos_to_come(folder: Path) -> list[Path]:
    """The photos of a session by name; those in instance_images.zip while that is not unpacked yet."""
    zipped = folder / ZIPS[0]
    if zipped not in zips_to_unpack(folder):
        return list_photos(folder / "instance_images")
    try:
        with zipfile.ZipFile(zipped) as archive:
            names = [Path(name) for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError):
        return []
    return sorted(name for name in names if not any(is_junk(part) for part in name.parts))


def is_legacy(folder: Path) -> bool:
    """Whether a folder is a session of the older notebooks by what only they made."""
    return bool(zips(folder)) or (folder / f"{folder.name}.ckpt").is_file()


def identifiers(photos: Iterable[Path]) -> dict[str, int]:
    """The words that name subjects in photo names, and how many photos each has; most photos first.

    A name is read by `caption_from_filename`. Its first word is an identifier when it is the whole name of a
    photo ("phtmejhn (1).jpg") or mixes letters and digits ("mafk4 smiling.png"); what cameras write is none.
    """
    names = [words for photo in photos if (words := caption_from_filename(photo.stem).split())]
    alone = {words[0] for words in names if len(words) == 1}
    count = Counter(words[0] for words in names if words[0] in alone or _is_mixed(words[0]))
    return dict(sorted(count.items(), key=lambda item: (-item[1], item[0])))


def instance_prompt_for(photos: Iterable[Path]) -> str:
    """An instance prompt that suits the photo names: "photo of phtmejhn"; "" when they name nothing.

    With several subjects it is "photo": each photo's own name follows as its caption, "photo, phtmejhn".
    """
    found = list(identifiers(photos))
    if not found:
        return ""
    return f"photo of {found[0]}" if len(found) == 1 else "photo"


def _steps(path: Path) -> float:
    match = _STEP.search(path.stem)
    return int(match[1]) if match else float("inf")


def _is_mixed(word: str) -> bool:
    return any(letter.isalpha() for letter in word) and any(letter.isdigit() for letter in word)
