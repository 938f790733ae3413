"""From an intake to a session: verified, every file given a name that all systems take, then moved in by one rename."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import kind_of_file
from fastsd_lib.core.files import fingerprint, fsync_path, plain_disk_errors, read_json, write_json
from fastsd_lib.core.text import escaped, safe_stem, same_name
from fastsd_lib.sessions import checkpoints
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.archive import SCHEMA, count, size_text
from fastsd_lib.sessions.contents import MANIFEST, part_of
from fastsd_lib.sessions.intake import Intake, Piece, session_top
from fastsd_lib.sessions.names import check_name
from fastsd_lib.sessions.safe_names import model_name, safe_names
from fastsd_lib.sessions.session import Session

MAX_JSON_BYTES = 16 << 20
_DROPPED = ("cache", "scratch", "lock", "trash", "unfinished")


@dataclass(frozen=True)
class Imported:
    """A session that arrived."""

    session: Session
    files: int
    bytes: int
    verified: bool  # by the hashes that its sender wrote
    ignored: int
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One sentence, then one line for each thing to know."""
        said = [f"Imported {self.session.name!r}: {count(self.files, 'file')}, {size_text(self.bytes)}."]
        if self.verified:
            said.append("  every file is as its sender wrote it (SHA-256)")
        else:
            said.append("  note: it came without hashes, so damage on the way would not be noticed")
        if self.ignored:
            said.append(
                f"  left out: {count(self.ignored, 'file')} that no session needs (junk, caches, tokens)"
            )
        said += [f"  renamed: {escaped(old)} -> {new}" for old, new in self.renamed.items()]
        return [*said, *(f"  note: {note}" for note in self.notes)]


def settle(
    root: Path, intake: Intake, name: str | None, default_name: str, verified: bool = False
) -> Imported:
    """Make a session of what arrived, under `name` or its own.

    Nothing of `root` but the intake's folder is touched before the last rename. UserError when it is no session,
    does not match its manifest, or a session of that name is there.
    """
    folder = sessions.sessions_dir(root)
    top = session_top(intake.label, (piece.name for piece in intake.pieces))
    manifest = _read_manifest(intake, top)
    if manifest is not None:
        _verify(intake, top, manifest)
    old_names = _old_names(intake, top, manifest, default_name)
    new_name = free_name(root, name or old_names[0], given=bool(name))
    staged = Session(intake.folder / "session" / new_name)
    places, ignored, renamed = _places(intake, top, old_names, new_name)
    moved_in = int(time.time())
    for piece, place in places:
        target = staged.path / place
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(piece.path, target)
        # One age for all: nobody is to take the file that was unpacked last for the newest.
        os.utime(target, (moved_in, moved_in))
    for part in sessions.FOLDERS:
        (staged.path / part).mkdir(parents=True, exist_ok=True)
    _translate_crops(staged, renamed)
    _check_manifest(intake, staged)
    notes = [*intake.notes, *_notes(staged)]
    sessions.set_facts(staged, name=new_name)
    sessions.record(
        staged, "imported", source=intake.label, files=len(places), verified=verified or manifest is not None,
        **({"renamed": renamed} if renamed else {}),
    )  # fmt: skip
    _move_in(staged, folder / new_name)
    return Imported(
        session=Session(folder / new_name),
        files=len(places),
        bytes=sum(piece.bytes for piece, _ in places),
        verified=verified or manifest is not None,
        ignored=intake.ignored + ignored,
        renamed=renamed,
        notes=tuple(notes),
    )


def free_name(root: Path, name: str, given: bool) -> str:
    """`name` when a new session may have it; else UserError that says which name to type."""
    try:
        name = check_name(name)
    except UserError as error:
        if given:
            raise
        offer = safe_stem(name) or "imported"
        raise UserError(error.message, fix=f"choose a name for it: --name {offer}") from None
    taken = {same_name(path.name): path.name for path in _entries(sessions.sessions_dir(root))}
    if twin := taken.get(same_name(name)):
        number = next(n for n in range(2, len(taken) + 3) if same_name(f"{name}-{n}") not in taken)
        raise UserError(
            f"There is a session {escaped(twin)!r} already; nothing was changed.",
            fix=f"choose another name for the new one: --name {shlex.quote(f'{name}-{number}')}",
        )
    return name


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _inside(piece: Piece, top: PurePosixPath) -> PurePosixPath | None:
    path = PurePosixPath(piece.name)
    return path.relative_to(top) if path.is_relative_to(top) and path != top else None


def _read_manifest(intake: Intake, top: PurePosixPath) -> dict[str, Any] | None:
    piece = next((one for one in intake.pieces if PurePosixPath(one.name) == top / MANIFEST), None)
    if piece is None:
        return None
    try:
        if piece.bytes > MAX_JSON_BYTES:
            raise ValueError
        manifest = json.loads(piece.path.read_bytes())
        seal = manifest.pop("seal")
        intact = seal == fingerprint(manifest)
        schema, files = manifest["schema"], manifest["files"]
        session = manifest["session"]
        if not (
            isinstance(session, str) and type(schema) is int and all(len(f) == 2 for f in files.values())
        ):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"The {MANIFEST} in {intake.label} is damaged.", fix="ask for the archive again."
        ) from None
    if schema > SCHEMA:
        raise UserError(f"{intake.label} was made by a newer fastsd.", fix="update fastsd.")
    if not intact:
        raise UserError(
            f"The {MANIFEST} in {intake.label} was changed after it was sealed.",
            fix="ask for the archive again.",
        )
    return manifest


def _verify(intake: Intake, top: PurePosixPath, manifest: Mapping[str, Any]) -> None:
    """Exactly the files that the sender listed, each as it was."""
    found = {
        inside.as_posix(): [piece.bytes, piece.sha256]
        for piece in intake.pieces
        if (inside := _inside(piece, top)) and inside.as_posix() != MANIFEST
    }
    fix = f"ask for the archive again; if you changed it on purpose, unpack it, delete {MANIFEST} and import the folder."
    listed = manifest["files"]
    for name in sorted(found.keys() | listed.keys()):
        if name not in found:
            raise UserError(f"{escaped(name)} is missing in {intake.label}.", fix=fix)
        if name not in listed:
            raise UserError(f"{escaped(name)} in {intake.label} is not listed in its {MANIFEST}.", fix=fix)
        if found[name] != listed[name]:
            raise UserError(f"{escaped(name)} in {intake.label} is damaged: its hash is another.", fix=fix)


def _old_names(
    intake: Intake, top: PurePosixPath, manifest: Mapping[str, Any] | None, default_name: str
) -> list[str]:
    """What it may have been called, the likeliest first: by its manifest, its folder, session.json, its source."""
    listed = [manifest["session"]] if manifest is not None else []
    piece = next((one for one in intake.pieces if PurePosixPath(one.name) == top / "session.json"), None)
    said = None
    if piece is not None and piece.bytes < MAX_JSON_BYTES:
        try:
            said = read_json(piece.path).get("name")
        except (UserError, AttributeError):  # spoken of when it lies in its place
            said = None
    return [*listed, *filter(None, [top.name, said if isinstance(said, str) else "", default_name])]


def _places(
    intake: Intake, top: PurePosixPath, old_names: list[str], new_name: str
) -> tuple[list[tuple[Piece, str]], int, dict[str, str]]:
    """(piece, its name in the new session), how many are not taken, and {old: new} of those that were renamed."""
    inside = [(piece, path) for piece in intake.pieces if (path := _inside(piece, top))]
    steps = _step_folders(inside)
    ours = [
        (piece, path)
        for piece, path in inside
        if path.as_posix() != MANIFEST and part_of(path.as_posix(), old_names[0], steps) not in _DROPPED
    ]
    ignored = sum(PurePosixPath(piece.name) != top / MANIFEST for piece in intake.pieces) - len(ours)
    names = safe_names([path for _, path in ours])
    places, renamed = [], {}
    used: set[str] = set()
    for piece, path in sorted(ours, key=lambda pair: pair[1].as_posix()):
        place = names[path]
        if place != path.as_posix():
            renamed[path.as_posix()] = place
        if len(path.parts) == 1:
            place = model_name(place, old_names, new_name)
        if same_name(place) in used or any(
            same_name(str(one)) in used for one in PurePosixPath(place).parents
        ):
            raise UserError(
                f"{intake.label} is refused: it holds {escaped(path.as_posix())!r} twice, or as file and folder.",
                fix="unpack it yourself and import the folder.",
            )
        used.add(same_name(place))
        places.append((piece, place))
    return places, ignored, renamed


def _step_folders(inside: list[tuple[Piece, PurePosixPath]]) -> set[str]:
    """Checkpoints that came with a manifest; whether it is sealed is seen when they lie in their place."""
    return {
        path.parts[1]
        for _, path in inside
        if len(path.parts) == 3 and path.parts[0] == "checkpoints" and path.name.startswith("manifest")
    }


def _translate_crops(staged: Session, renamed: Mapping[str, str]) -> None:
    """Crops are kept by photo name, so they go along with a photo that was renamed."""
    photos = {
        PurePosixPath(old).name: PurePosixPath(new).name
        for old, new in renamed.items()
        if old.startswith("instance_images/")
    }
    if not photos or not staged.crops_file.is_file():
        return
    try:
        crops = read_json(staged.crops_file)
        crops["photos"] = {photos.get(name, name): box for name, box in crops["photos"].items()}
    except (UserError, TypeError, KeyError, AttributeError):
        return  # `session verify` speaks of damaged crops
    write_json(staged.crops_file, crops)


def _check_manifest(intake: Intake, staged: Session) -> None:
    """session.json is read now, with the words that suit a session that is not here yet."""
    if staged.manifest.is_file() and staged.manifest.stat().st_size > MAX_JSON_BYTES:
        size = size_text(staged.manifest.stat().st_size)
        raise UserError(
            f"The session.json in {intake.label} is no session.json: it has {size}.",
            fix="delete it there: it is made anew.",
        )
    try:
        sessions.read_manifest(staged)
    except UserError as error:
        message = error.message.replace(str(staged.manifest), f"The session.json in {intake.label}")
        raise UserError(message, fix=error.fix) from None


def _notes(staged: Session) -> list[str]:
    notes = []
    for checkpoint in checkpoints.list_checkpoints(staged.checkpoints):
        if damage := checkpoints.find_damage(checkpoint.path):
            notes.append(f"checkpoint {checkpoint.path.name}: {damage}; training passes it over")
    for path in sorted(staged.path.iterdir()):
        if path.suffix.lower() in (".ckpt", ".pt", ".bin", ".pkl"):
            notes.append(f"{path.name} may hold a pickle: it is kept, and nothing in it was run")
        elif path.suffix.lower() == ".safetensors" and kind_of_file(path) == "web page":
            notes.append(f"{path.name} is a web page, not a model: download it again")
    return notes


def _move_in(staged: Session, target: Path) -> None:
    with plain_disk_errors(f"move the session to {target.parent}"):
        for parent, _, names in os.walk(staged.path, topdown=False):
            for name in names:
                fsync_path(Path(parent, name))
            fsync_path(Path(parent))
        try:
            os.rename(staged.path, target)
        except OSError:
            if not target.exists():
                raise
            raise UserError(
                f"There is a session {target.name!r} already; nothing was changed.", fix="add --name NEW."
            ) from None
        fsync_path(target.parent)
