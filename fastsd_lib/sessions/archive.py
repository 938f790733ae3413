"""A session as one file that another person can open: a zip with the hash of everything in it."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.archives import MAX_BYTES, MAX_ENTRIES, path_danger
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import CHUNK_BYTES, atomic_path, fingerprint, plain_disk_errors
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped
from fastsd_lib.sessions.contents import MANIFEST, SHOWS_PHOTOS, Item, contents
from fastsd_lib.sessions.session import Session, read_manifest

SCHEMA = 1
#: What another person needs to look at a session, repeat it and use its model.
DEFAULT_PARTS = ("about", "photos", "model")
MORE_PARTS = ("checkpoints", "class-images", "samples", "logs", "other")
_TEXT_SUFFIXES = (".json", ".jsonl", ".txt", ".yaml", ".yml", ".md", ".csv")
_SAME_DAY = (1980, 1, 1, 0, 0, 0)  # so that the same session gives the same file, byte by byte


@dataclass(frozen=True)
class Exported:
    """The archive of a session, and what of the session is not in it."""

    path: Path
    bytes: int
    files: int
    left_out: dict[str, tuple[int, int]]  # part: (files, bytes)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One sentence, then what was left out and why."""
        said = [f"Wrote {self.path}: {count(self.files, 'file')}, {size_text(self.bytes)}."]
        for part, (files, size) in self.left_out.items():
            if part == "lock":
                continue
            how = f" (add it: --with {part})" if part in MORE_PARTS else _WHY.get(part, "")
            said.append(f"  left out: {part}, {count(files, 'file')}, {size_text(size)}{how}")
        return [*said, *(f"  note: {note}" for note in self.notes)]


_WHY = {
    "secret": ": tokens and keys are never shared",
    "photos": ": as you asked",
    "link": ": links are not followed",
    "cache": ": made again when it is needed",
    "scratch": ": left by something that broke off",
    "unfinished": ": saves that broke off",
}


def export_session(
    session: Session,
    target: Path | None = None,
    *,
    more: Collection[str] = (),
    photos: bool = True,
    overwrite: bool = False,
    report: Report = silent,
) -> Exported:
    """Write the session's shareable parts to the zip `target` (a file, a folder, or <name>-session.zip here).

    `more` are names of MORE_PARTS. The session is only read; the same session gives the same bytes. UserError for
    an unknown part, a target that is there or inside the session, a full disk.
    """
    unknown = sorted(set(more) - set(MORE_PARTS))
    if unknown:
        raise UserError(
            f"There is no part {', '.join(map(repr, unknown))}.", fix=f"one of: {', '.join(MORE_PARTS)}"
        )
    read_manifest(session)
    target = _target(session, target, overwrite)
    chosen, left, notes = choose(session, {*DEFAULT_PARTS, *more} - ({"photos"} if not photos else set()))
    total = sum(item.bytes for item in chosen)
    if total > MAX_BYTES or len(chosen) > MAX_ENTRIES:
        notes.append(
            "import takes at most 20 GB and 50,000 files: this archive is larger, leave something out"
        )
    with plain_disk_errors("write the archive"):
        _check_space(target, total)
        _write(session, target, chosen, report)
    return Exported(target, target.stat().st_size, len(chosen), left, tuple(notes))


def choose(
    session: Session, parts: Collection[str]
) -> tuple[list[Item], dict[str, tuple[int, int]], list[str]]:
    """The items of `parts`, (files, bytes) of each part that is left out, and notes on single files."""
    chosen, notes = [], []
    left: dict[str, list[int]] = defaultdict(list)
    for item in contents(session):
        shows_photos = item.name in SHOWS_PHOTOS and "photos" not in parts
        if item.part not in parts or shows_photos or item.name == MANIFEST:
            left["photos" if shows_photos else item.part].append(item.bytes)
        elif problem := _cannot_travel(item.name):
            notes.append(f"{escaped(item.name)} is left out: {problem}")
        else:
            chosen.append(item)
    return chosen, {part: (len(sizes), sum(sizes)) for part, sizes in sorted(left.items())}, notes


def manifest_of(name: str, files: dict[str, list]) -> dict[str, Any]:
    """What stands in an archive's export.json; `files`: name -> [bytes, SHA-256]."""
    content = {"schema": SCHEMA, "made_by": "fastsd session export", "session": name, "files": files}
    return {**content, "seal": fingerprint(content)}


def _cannot_travel(name: str) -> str:
    if "\\" in name:
        return "a backslash in a name divides folders elsewhere"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not text"
    return path_danger(name)


def _target(session: Session, target: Path | None, overwrite: bool) -> Path:
    target = expanded(target) if target else Path()
    if target.is_dir():
        target = target / f"{session.name}-session.zip"
    elif target.suffix.lower() != ".zip":
        target = target.with_name(target.name + ".zip")
    target = target.absolute()
    if target.resolve().is_relative_to(session.path.resolve()):
        raise UserError(
            f"{target} lies in the session itself.", fix="write the archive to a folder outside of it."
        )
    if target.exists() and not overwrite:
        raise UserError(f"{target} is there already.", fix="choose another file, or add --overwrite.")
    return target


def _check_space(target: Path, needed_bytes: int) -> None:
    folder = next(parent for parent in target.parents if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"The archive needs {size_text(needed_bytes)}, and {folder} has {size_text(free)} free.",
            fix="choose another folder, or free some space.",
        )


def _write(session: Session, target: Path, chosen: list[Item], report: Report) -> None:
    files: dict[str, list] = {}
    with atomic_path(target) as scratch:
        with zipfile.ZipFile(scratch, "w") as archive:
            for number, item in enumerate(chosen):
                report(ProgressEvent("packed", number, len(chosen), {"file": escaped(item.name[-60:])}))
                digest, size = hashlib.sha256(), 0
                with _reading(session, item) as source, archive.open(_entry(session, item), "w") as packed:
                    while block := source.read(CHUNK_BYTES):
                        packed.write(block)
                        digest.update(block)
                        size += len(block)
                files[item.name] = [size, digest.hexdigest()]
            manifest = json.dumps(manifest_of(session.name, files), indent=1, ensure_ascii=False)
            last = Item(session.path, MANIFEST, "about", len(manifest))
            archive.writestr(_entry(session, last), manifest + "\n")
    report(ProgressEvent("packed", len(chosen), len(chosen)))


def _reading(session: Session, item: Item):
    try:
        return item.path.open("rb")
    except FileNotFoundError:
        again = shlex.quote(session.name)
        raise UserError(
            f"{escaped(item.name)} vanished while the session was packed.",
            fix=f"wait until nothing runs in it, then: python3 -m fastsd_lib session export {again}",
        ) from None


def _entry(session: Session, item: Item) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(f"{session.name}/{item.name}", _SAME_DAY)
    entry.create_system, entry.external_attr = (
        3,
        0o100644 << 16,
    )  # a plain file, on whatever system it is made
    entry.file_size = item.bytes  # decides about zip64
    packs = item.name.endswith(_TEXT_SUFFIXES)
    entry.compress_type = zipfile.ZIP_DEFLATED if packs else zipfile.ZIP_STORED
    return entry


def count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def size_text(size: int) -> str:
    """1234567 -> "1.2 MB"."""
    for unit, digits in (("B", 0), ("kB", 0), ("MB", 1), ("GB", 1)):
        if size < 1000 or unit == "GB":
            return f"{size:.{digits}f} {unit}"
        size /= 1000
    raise AssertionError
