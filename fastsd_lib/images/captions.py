"""Captions: from file names, in `.txt` files beside the photos, and in the training prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import write_text
from fastsd_lib.core.photo_names import caption_from_filename
from fastsd_lib.core.text import escaped, one_line, same_name

MAX_BYTES = 64 * 1024
READ_TOKENS = 75  # of 77 that CLIP takes, two are marks of its own
_CLIP_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


def propose_caption(photo: Path, instance_prompt: str) -> str:
    """A caption without any model: the file name, unless the instance prompt says all of it already."""
    caption = caption_from_filename(photo.stem)
    said = set(_words(instance_prompt))
    return "" if all(word in said for word in _words(caption)) else caption


def training_prompt(instance_prompt: str, caption: str) -> str:
    """ "photo of sks cat" and "on a sofa" -> "photo of sks cat, on a sofa"; a caption that repeats the
    instance prompt at its start stands alone. Braces and percent signs are plain letters."""
    instance_prompt, caption = one_line(instance_prompt), one_line(caption)
    if not instance_prompt or same_name(caption).startswith(same_name(instance_prompt)):
        return caption or instance_prompt
    return f"{instance_prompt}, {caption}" if caption else instance_prompt


def least_tokens(prompt: str) -> int:
    """How many tokens CLIP makes of `prompt` at the very least: every word, digit and run of signs is one or more.

    Counted without a tokenizer, which a session has none of before its base model is chosen.
    """
    return len(_CLIP_PIECES.findall(prompt))


def caption_file(captions_dir: Path, photo: Path) -> Path:
    return captions_dir / f"{photo.stem}.txt"


def read_caption(captions_dir: Path, photo: Path) -> str:
    """The caption of `photo`, one clean line; "" when there is none. Raises UserError over 64 kB."""
    path = caption_file(captions_dir, photo)
    try:
        return load_text(path)[0]
    except FileNotFoundError:
        return ""


def has_caption(captions_dir: Path, photo: Path) -> bool:
    """True also for a caption that was left empty on purpose."""
    return caption_file(captions_dir, photo).is_file()


def write_caption(captions_dir: Path, photo: Path, text: str) -> str:
    """Store a caption whole or not at all; returns it as stored, one clean line."""
    caption = one_line(text)
    if len(caption.encode()) > MAX_BYTES:
        raise UserError(
            f"The caption of {escaped(photo.name)} is larger than 64 kB.",
            fix="shorten it: 77 tokens are read.",
        )
    write_text(caption_file(captions_dir, photo), caption + "\n" if caption else "")
    return caption


def load_text(path: Path) -> tuple[str, str]:
    """(caption, warning) of a text file in UTF-8 or UTF-16, BOM or not. UserError over 64 kB."""
    with path.open("rb") as handle:
        data = handle.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(
            f"{escaped(path.name)} is larger than 64 kB: that is no caption.",
            fix="write one sentence into it.",
        )
    return decode_caption(data)


def decode_caption(data: bytes) -> tuple[str, str]:
    """(caption, warning) of raw bytes; bytes that are no UTF-8 or UTF-16 become replacement characters."""
    encoding = "utf-8-sig"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif data.count(0) * 3 > len(data):  # Latin text in UTF-16 without a BOM: every other byte is zero
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    try:
        return one_line(data.decode(encoding)), ""
    except UnicodeDecodeError:
        return one_line(
            data.decode(encoding, errors="replace")
        ), "it is not UTF-8 text: unreadable letters became \ufffd"


@dataclass(frozen=True)
class CaptionCheck:
    """Captions and photos that do not pair up, by file name."""

    without_photo: tuple[str, ...]
    without_caption: tuple[str, ...]
    several: tuple[str, ...]  # photos that two caption files claim, such as cat.txt and CAT.txt


def check_captions(captions_dir: Path, photos: Iterable[Path]) -> CaptionCheck:
    """Compare a captions folder with the photos it belongs to."""
    texts = sorted(
        path for path in captions_dir.glob("*") if path.suffix.lower() == ".txt" and path.name[0] != "."
    )
    by_stem: dict[str, list[str]] = {}
    for text in texts:
        by_stem.setdefault(same_name(text.stem), []).append(text.name)
    photos = list(photos)
    stems = {same_name(photo.stem) for photo in photos}
    return CaptionCheck(
        without_photo=tuple(text.name for text in texts if same_name(text.stem) not in stems),
        without_caption=tuple(photo.name for photo in photos if same_name(photo.stem) not in by_stem),
        several=tuple(photo.name for photo in photos if len(by_stem.get(same_name(photo.stem), [])) > 1),
    )


def replace_in_captions(
    captions_dir: Path, photos: Iterable[Path], find: str, replace: str
) -> dict[str, tuple[str, str]]:
    """Plain text replaced in every caption; returns what changed, photo name -> (before, after)."""
    if not find:
        raise UserError("Nothing to find was given.", fix="type the words to replace.")
    return _edit_all(captions_dir, photos, lambda caption: caption.replace(find, replace))


def add_to_captions(
    captions_dir: Path, photos: Iterable[Path], prefix: str = "", suffix: str = ""
) -> dict[str, tuple[str, str]]:
    """`prefix` and `suffix` put around every caption, once; returns photo name -> (before, after)."""

    def edit(caption: str) -> str:
        before = "" if caption.startswith(prefix) else prefix
        after = "" if suffix and caption.endswith(suffix) else suffix
        return f"{before}{caption}{after}"

    return _edit_all(captions_dir, photos, edit)


def _edit_all(
    captions_dir: Path, photos: Iterable[Path], edit: Callable[[str], str]
) -> dict[str, tuple[str, str]]:
    """All captions are read and edited before the first is written: a bad one spoils none of the others."""
    before = {photo: read_caption(captions_dir, photo) for photo in photos}
    after = {photo: one_line(edit(caption)) for photo, caption in before.items()}
    changed = {photo: (before[photo], after[photo]) for photo in before if before[photo] != after[photo]}
    for photo, (_, caption) in changed.items():
        write_caption(captions_dir, photo, caption)
    return {photo.name: pair for photo, pair in changed.items()}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
