"""What a fetched file is called: never a path, never a name that is taken, with the suffix that its content has."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fastsd_lib.core.text import safe_stem

PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,12}")
_STARRED = re.compile(r"filename\*\s*=\s*([\w-]+)'[^']*'([^;\s]+)", re.IGNORECASE)
_QUOTED = re.compile(r'filename\s*=\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_BARE = re.compile(r"filename\s*=\s*([^;\s\"]+)", re.IGNORECASE)


def name_in_disposition(header: str) -> str:
    """The file name that a Content-Disposition (RFC 6266) tells, as it stands there; "" when it tells none."""
    if found := _STARRED.search(header):
        try:
            return unquote(found[2], encoding=found[1], errors="replace")
        except LookupError:  # a character set nobody knows
            return unquote(found[2], errors="replace")
    found = _QUOTED.search(header) or _BARE.search(header)
    text = re.sub(r"\\(.)", r"\1", found[1]) if found else ""
    try:
        return text.encode("latin-1").decode("utf-8")  # headers are read as Latin-1
    except ValueError:
        return text


def name_in_url(url: str) -> str:
    try:
        return PurePosixPath(unquote(urlsplit(url).path, errors="replace")).name
    except ValueError:
        return ""


def chosen_name(wanted: str, told: str, url: str, key: str) -> str:
    """The first of these that leaves a name when all that is no name is taken away; else one made of `key`."""
    for text in (wanted, told, name_in_url(url)):
        last = re.split(r"[/\\]", text)[-1]
        suffix = PurePosixPath(last).suffix
        suffix = suffix if _SUFFIX.fullmatch(suffix) else ""
        stem = safe_stem(last.removesuffix(suffix) if suffix else last)
        if stem:
            return stem + suffix
    return f"download-{key[:8]}"


def with_true_suffix(name: str, path: Path) -> str:
    """`name` with the suffix of what is in `path`, where that is a format of models and the name says another."""
    stem, suffix = (PurePosixPath(name).stem, PurePosixPath(name).suffix.lower())
    with path.open("rb") as handle:
        head = handle.read(16)
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return name if suffix == ".safetensors" else f"{stem if suffix in PICKLED else name}.safetensors"
    if head.startswith(b"GGUF"):
        return name if suffix == ".gguf" else f"{name}.gguf"
    pickled = head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04")) or (
        head.startswith(b"PK\3\4") and suffix != ".zip"
    )
    if pickled and suffix not in PICKLED:
        return f"{stem if suffix == '.safetensors' else name}.pt"
    return name


def free_place(folder: Path, name: str) -> Path:
    """`folder / name`, or NAME-2, NAME-3 ... where that is taken."""
    path, number = folder / name, 2
    while path.exists() or path.is_symlink():
        path = folder / f"{PurePosixPath(name).stem}-{number}{PurePosixPath(name).suffix}"
        number += 1
    return path
