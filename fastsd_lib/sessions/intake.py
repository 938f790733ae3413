"""Files from elsewhere, laid under numbers into a hidden folder beside the sessions until all is known of them.

No name that a stranger chose touches the disk here; sessions/arrival.py gives each file its place.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fastsd_lib.core import archives
from fastsd_lib.core.archives import ArchiveRefused, Budget, Member
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import is_junk, kind_of_file, with_article
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.tarballs import is_tar, open_tar
from fastsd_lib.core.text import escaped
from fastsd_lib.sessions.contents import PHOTO_LEDGER, is_secret

STAGING = ".import-"
_SIGN_FILE = re.compile(r"session\.json|recipe\.yaml|instance_images\.zip|[^.].*\.ckpt", re.IGNORECASE)
_SIGN_FOLDER = re.compile(r"instance_images", re.IGNORECASE)
_FORGOTTEN_S = 24 * 3600  # on a shared Drive the other machine may still be at it


@dataclass(frozen=True)
class Piece:
    """One file that arrived, whole: its name where it came from, and where its bytes lie now."""

    name: str  # "/" between its parts
    bytes: int
    sha256: str
    path: Path


@dataclass
class Intake:
    """What arrived, and what was not taken."""

    folder: Path
    label: str  # how messages call the source
    pieces: list[Piece] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ignored: int = 0  # junk and secrets
    _given: int = 0

    def wants(self, name: str) -> bool:
        """Whether a file of this name is taken; what is not is counted."""
        parts = PurePosixPath(name).parts
        junk = any(is_junk(part) for part in parts) and parts[-1] != PHOTO_LEDGER
        if junk or is_secret(parts[-1]):
            self.ignored += 1
            return False
        return True

    def take(self, name: str, blocks: Iterable[bytes]) -> Piece:
        """Write one file; its hash is of what was written."""
        path = self.free_path()
        digest, size = hashlib.sha256(), 0
        with path.open("xb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
                size += len(block)
        piece = Piece(name, size, digest.hexdigest(), path)
        self.pieces.append(piece)
        return piece

    def free_path(self) -> Path:
        self._given += 1
        return self.folder / f"{self._given:06d}"


@contextmanager
def staging(sessions: Path) -> Iterator[Path]:
    """A new hidden folder in `sessions` that is gone after the block, whatever happens in it."""
    sessions.mkdir(parents=True, exist_ok=True)
    clear_forgotten(sessions)
    folder = sessions / f"{STAGING}{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_forgotten(sessions: Path) -> list[Path]:
    """Delete what imports left whose program was killed; those of other machines only after a day."""
    gone = forgotten(sessions)
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    return gone


def forgotten(sessions: Path) -> list[Path]:
    """Staging folders that nobody works in any more."""
    import psutil

    found = []
    for path in sessions.glob(f"{STAGING}*"):
        host, _, rest = path.name.removeprefix(STAGING).partition("-")
        pid = rest.split("-")[0]
        if path.is_symlink() or not pid.isdigit():
            continue
        old = time.time() - path.stat().st_mtime > _FORGOTTEN_S
        if old or (host == _host() and not psutil.pid_exists(int(pid))):
            found.append(path)
    return found


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def from_archive(path: Path, folder: Path, report: Report = silent) -> Intake:
    """Unpack a zip, a tar or a gzipped tar into `folder`, each byte counted. ArchiveRefused with the reason."""
    intake = Intake(folder, escaped(path.name))
    budget = Budget(intake.label, path.stat().st_size)
    kind = kind_of_file(path)
    if kind == "zip archive":
        with archives.open_zip(path) as archive:
            session_top(intake.label, (entry.filename.replace("\\", "/") for entry in archive.infolist()))
            _check_space(folder, sum(entry.file_size for entry in archive.infolist()))
            _take_members(intake, archives.zip_members(archive, budget), len(archive.infolist()), report)
    elif is_tar(path):
        with open_tar(path, budget) as members:  # looked through first, as a zip is
            names = [member.name for member in members]
        session_top(intake.label, names)
        _check_space(folder, budget.bytes)
        with open_tar(path, Budget(intake.label, path.stat().st_size)) as members:
            _take_members(intake, members, len(names), report)
    else:
        raise ArchiveRefused(
            "not_an_archive",
            f"{intake.label} is no archive that can be imported: it is {with_article(kind)}.",
            "name a .zip, .tar or .tar.gz, or unpack it and name the folder.",
        )
    return intake


def session_top(label: str, names: Iterable[str]) -> PurePosixPath:
    """The folder inside a source that is the session: the shallowest with the signs of one.

    UserError when there is none, or more than one.
    """
    signs: dict[PurePosixPath, int] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        for depth, part in enumerate(parts):
            last = depth == len(parts) - 1
            if (_SIGN_FILE if last else _SIGN_FOLDER).fullmatch(part):
                signs[PurePosixPath(*parts[:depth])] = depth
                break
    if not signs:
        raise UserError(
            f"{label} holds no session: no session.json, instance_images/ or recipe.yaml.",
            fix="for photos alone: python3 -m fastsd_lib session add-images SESSION PHOTOS",
        )
    found = sorted(path for path, depth in signs.items() if depth == min(signs.values()))
    if len(found) > 1:
        shown = ", ".join(escaped(path.name) for path in found[:10])
        raise UserError(
            f"{label} holds {len(found)} sessions: {shown}.", fix="unpack it and import one folder."
        )
    return found[0]


def _take_members(intake: Intake, members: Iterable[Member], total: int, report: Report) -> None:
    for number, member in enumerate(members):
        facts = {"file": escaped(member.name[-60:])}
        report(
            ProgressEvent("unpacked", number, max(total, number + 1), facts)
        )  # a tar does not say how many
        if intake.wants(member.name):
            intake.take(member.name, member.blocks())
    report(ProgressEvent("unpacked", total, total))


def from_folder(source: Path, folder: Path, report: Report = silent) -> Intake:
    """Copy a folder's files. Links that lead out of it or nowhere, and what is no file, are left with a note."""
    intake = Intake(folder, escaped(source.name or str(source)))
    top = source.resolve()
    if folder.resolve().is_relative_to(top):
        raise UserError(
            f"The sessions themselves lie in {escaped(str(source))}.", fix="name the folder of one session."
        )
    found = _walk(top, intake)
    session_top(intake.label, (name for name, _ in found))  # before somebody's whole home folder is copied
    for number, (name, path) in enumerate(found):
        report(ProgressEvent("copied", number, len(found), {"file": escaped(name[-60:])}))
        try:
            with path.open("rb") as file:
                intake.take(name, iter(lambda: file.read(CHUNK_BYTES), b""))
        except (PermissionError, FileNotFoundError) as error:
            if error.filename != str(path):
                raise
            intake.notes.append(f"{escaped(name)} is left out: {error.strerror}")
    if found:
        report(ProgressEvent("copied", len(found), len(found)))
    return intake


def _walk(top: Path, intake: Intake) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for parent, folders, names in os.walk(top, onerror=lambda error: intake.notes.append(_unread(error))):
        prefix = "" if parent == str(top) else Path(parent).relative_to(top).as_posix() + "/"
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = [name for name in folders if not is_junk(name)]
        for name in sorted([*names, *links]):
            path = Path(parent, name)
            inside = prefix + name
            if not intake.wants(inside):
                continue
            if problem := _cannot_copy(path, top):
                intake.notes.append(f"{escaped(inside)} is left out: {problem}")
            else:
                found.append((inside, path))
            if len(found) > archives.MAX_ENTRIES:
                raise archives.unsafe(intake.label, f"it holds more than {archives.MAX_ENTRIES} files")
    return found


def _cannot_copy(path: Path, top: Path) -> str:
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        return str(error.strerror)
    if stat.S_ISLNK(mode):
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: a loop, before Python 3.13
            return "it is a link that leads nowhere or in a circle"
        if not target.is_relative_to(top):
            return "it is a link out of the folder"
        if target.is_dir():
            return "it is a link to a folder, which is copied under its own name"
        mode = target.stat().st_mode
    return "" if stat.S_ISREG(mode) else "it is a pipe, a socket or a device"


def _unread(error: OSError) -> str:
    return f"the folder {escaped(Path(error.filename).name)} is left out: {error.strerror}"


def _check_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        found = f"it needs {needed_bytes / 1e9:.2f} GB, {free_bytes / 1e9:.2f} GB are free"
        raise UserError(f"The session does not fit here: {found}.", fix="free some space, or use --root.")
