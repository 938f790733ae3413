"""What a file is by its first bytes: names lie, `.jpg` may hold a web page."""

from __future__ import annotations

import os
import stat
from pathlib import Path

HEAD_BYTES = 512
UNKNOWN = "file of an unknown kind"
JUNK_NAMES = {"thumbs.db", "desktop.ini", "__macosx", ".ds_store", ".ipynb_checkpoints", "ehthumbs.db"}

PICTURE_KINDS = {
    "JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "HEIC", "AVIF", "JPEG 2000", "ICO", "PSD", "QOI",
    "PPM", "DDS",
}  # fmt: skip

_SPOKEN_WITH_A_VOWEL = ("AVI", "ICO", "MP3", "MP4", "Ogg", "SVG", "empty", "xz")

_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\1\0", "ICO"),
    (b"8BPS", "PSD"),
    (b"qoif", "QOI"),
    (b"DDS ", "DDS"),
    (b"%PDF", "PDF document"),
    (b"PK\3\4", "zip archive"),
    (b"PK\5\6", "zip archive"),
    (b"Rar!\x1a\x07", "RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"\x1f\x8b", "gzip archive"),
    (b"BZh", "bzip2 archive"),
    (b"\xfd7zXZ\0", "xz archive"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (b"\x7fELF", "program"),
    (b"MZ", "Windows program"),
    (b"OggS", "Ogg sound or video"),
    (b"ID3", "MP3 sound"),
    (b"\x80\x02}", "Python pickle"),
    (b"SQLite format 3", "SQLite database"),
)


def kind_of(head: bytes) -> str:
    """The kind of a file from its first `HEAD_BYTES` bytes: "JPEG", "web page", "text file".

    Pictures yield one of `PICTURE_KINDS`. An empty `head` is an "empty file".
    """
    if not head:
        return "empty file"
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": "WebP", b"WAVE": "WAV sound", b"AVI ": "AVI video"}.get(head[8:12], UNKNOWN)
    if head[4:8] == b"ftyp":
        return _iso_media_kind(head)
    if head[:2] == b"BM" and len(head) > 14 and head[14] in (12, 40, 52, 56, 64, 108, 124):
        return "BMP"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return _text_kind(head)


def with_article(kind: str) -> str:
    """A kind inside a sentence: "a JPEG", "an MP4 video"."""
    return f"{'an' if kind.startswith(_SPOKEN_WITH_A_VOWEL) else 'a'} {kind}"


def kind_of_file(path: Path) -> str:
    """`kind_of` a regular file; raises OSError when it cannot be read."""
    with path.open("rb") as handle:
        return kind_of(handle.read(HEAD_BYTES))


def is_junk(name: str) -> bool:
    """What file managers, cameras and notebooks leave in folders; dot files are theirs as well."""
    return name.startswith(".") or name.casefold() in JUNK_NAMES


def list_photos(folder: Path) -> list[Path]:
    """The picture files in `folder`, sorted by name; judged by content, without junk, links and sub-folders.

    A folder that does not exist holds no photos.
    """
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if not is_junk(entry.name) and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode)
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in sorted(names) if _is_readable_picture(folder / name)]


def _is_readable_picture(path: Path) -> bool:
    try:
        return kind_of_file(path) in PICTURE_KINDS
    except OSError:
        return False


def _iso_media_kind(head: bytes) -> str:
    brands = {head[8:12]} | {
        head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4], "big"), 64), 4)
    }
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}:
        return "HEIC"
    return "QuickTime video" if head[8:12] == b"qt  " else "MP4 video"


def _text_kind(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "web page"
    if start.startswith(b"<svg") or (start.startswith(b"<?xml") and b"<svg" in start):
        return "SVG drawing"
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "text file"
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    return "text file" if controls == 0 and b"\x7f" not in head else UNKNOWN
