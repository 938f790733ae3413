"""How much a session takes, what of it can be deleted without losing anything, and the deleting.

Only what fastsd made can go, and only below the session; whoever works in a session is not disturbed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.core.text import escaped
from fastsd_lib.sessions import checkpoints, intake
from fastsd_lib.sessions.archive import size_text
from fastsd_lib.sessions.contents import Item, contents
from fastsd_lib.sessions.lock import session_lock, who_works_on
from fastsd_lib.sessions.session import Session, sessions_dir

SCRATCH_KEPT_S = 3600  # a younger scratch file may be somebody's save under way
_OUR_CACHE = re.compile(r"cache/(latents[^/]*|base-[0-9a-f]{16}/.*)")
DRIVE_TRASH = (
    "Drive moves what is deleted to its trash for 30 days, where it still counts: empty it at "
    "https://drive.google.com/drive/trash"
)


@dataclass(frozen=True)
class Candidate:
    """Something that can go: one file, or one folder of a checkpoint."""

    kind: str  # "older checkpoint", "unfinished save", "cache", "scratch file", "unfinished import"
    path: Path
    bytes: int


@dataclass(frozen=True)
class Usage:
    """What one session takes, and what of it can go."""

    session: Session
    parts: dict[str, int]  # part: bytes
    checkpoints: dict[str, int]  # folder name: bytes, oldest first
    candidates: tuple[Candidate, ...] = ()
    busy: str = ""  # who works in it: then nothing of it goes

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def free_bytes(self) -> int:
        return sum(one.bytes for one in self.candidates)

    def lines(self) -> list[str]:
        """The sizes, then what can go."""
        name = escaped(self.session.name)
        parts = ", ".join(f"{part} {size_text(size)}" for part, size in self.parts.items())
        said = [f"{name}: {size_text(self.bytes)}" + (f" ({parts})" if parts else "")]
        said += [f"  checkpoint {step}: {size_text(size)}" for step, size in self.checkpoints.items()]
        if self.busy:
            said.append(f"  nothing of it can go now: it is in use ({self.busy})")
        return said + [_line(one, self.session) for one in self.candidates]


@dataclass(frozen=True)
class Freed:
    """What was deleted."""

    deleted: tuple[Candidate, ...]
    kept: tuple[str, ...]  # a line for each candidate that stayed after all

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.deleted)


def usage(session: Session, keep: int = 1) -> Usage:
    """Sizes and candidates; nothing is changed. Of each run the newest `keep` checkpoints are no candidates."""
    items = contents(session)
    parts: dict[str, int] = defaultdict(int)
    for item in items:
        if item.part != "link":
            parts[item.part] += item.bytes
    steps = _step_bytes(items)
    busy = who_works_on(session.path)
    found = () if busy else tuple(_candidates(session, items, steps, keep))
    largest_first = dict(sorted(parts.items(), key=lambda pair: -pair[1]))
    return Usage(session, largest_first, dict(sorted(steps.items())), found, busy)


def free(session: Session, keep: int = 1) -> Freed:
    """Delete what `usage` would call a candidate now. The session is locked meanwhile.

    Checkpoints are unsealed before they are deleted, and go only when a newer one was read and found intact.
    UserError when somebody works in the session.
    """
    deleted: list[Candidate] = []
    kept: list[str] = []
    with session_lock(session.path, "freeing space"), plain_disk_errors("free space"):
        items = contents(session)
        found = _candidates(session, items, _step_bytes(items), keep)
        older = {one.path.name: one for one in found if one.kind == "older checkpoint"}
        gone: set[str] = set()
        if _is_real_folder(session.checkpoints):
            for run in {one.run for one in checkpoints.list_checkpoints(session.checkpoints)}:
                gone |= set(checkpoints.prune(session.checkpoints, run, keep, confirmed=_is_intact))
            gone |= set(checkpoints.clear_unfinished(session.checkpoints))
        for one in found:
            if one.kind in ("older checkpoint", "unfinished save"):
                if one.path.name in gone:
                    deleted.append(one)
                else:
                    why = (
                        "no newer one is intact"
                        if one.path.name in older
                        else "fastsd cannot tell that it made it"
                    )
                    kept.append(f"{one.path.name} was kept: {why}")
            else:
                one.path.unlink(missing_ok=True)
                deleted.append(one)
        _remove_empty_folders(session.path / "cache")
        _remove_empty_folders(session.path / "trash")
    return Freed(tuple(deleted), tuple(kept))


def _candidates(session: Session, items: Iterable[Item], steps: dict[str, int], keep: int) -> list[Candidate]:
    if keep < 1:
        raise UserError(
            f"{keep} checkpoints cannot be kept.", fix="keep at least 1: the run goes on from it."
        )
    found = []
    if _is_real_folder(session.checkpoints):
        runs: dict[str, list[str]] = defaultdict(list)
        for one in checkpoints.list_checkpoints(session.checkpoints):
            runs[one.run].append(one.path.name)
        older = {name for names in runs.values() for name in names[:-keep]}
        sealed = {name for names in runs.values() for name in names}
        for name, size in steps.items():
            kind = "older checkpoint" if name in older else "" if name in sealed else "unfinished save"
            if kind and (kind == "older checkpoint" or _is_ours(session.checkpoints / name)):
                found.append(Candidate(kind, session.checkpoints / name, size))
    for item in items:
        if item.part == "cache" and _OUR_CACHE.fullmatch(item.name):
            found.append(Candidate("cache", item.path, item.bytes))
        elif item.part == "trash" and item.name.startswith("trash/step_"):  # saves that broke off on a Drive
            found.append(Candidate("unfinished save in its trash", item.path, item.bytes))
        elif item.part == "scratch" and time.time() - item.path.lstat().st_mtime > SCRATCH_KEPT_S:
            found.append(Candidate("scratch file", item.path, item.bytes))
    return [one for one in found if _lies_in(one.path, session.path)]


def _is_intact(checkpoint: checkpoints.Checkpoint) -> bool:
    return not checkpoints.find_damage(checkpoint.path)


def _is_ours(step: Path) -> bool:
    """A save of this library that broke off: it says so in its first file, or has none yet."""
    names = {path.name for path in step.iterdir()}
    return checkpoints.BEGUN in names or not names


def _is_real_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _lies_in(path: Path, folder: Path) -> bool:
    """By its real place: a link in between could lead anywhere."""
    return path.resolve().is_relative_to(folder.resolve())


def _step_bytes(items: Iterable[Item]) -> dict[str, int]:
    steps: dict[str, int] = defaultdict(int)
    for item in items:
        if item.name.startswith("checkpoints/step_") and item.name.count("/") >= 2:
            steps[item.name.split("/")[1]] += item.bytes
    return steps


def _remove_empty_folders(top: Path) -> None:
    for parent, _, _ in os.walk(top, topdown=False):
        if parent != str(top) and not os.listdir(parent):
            os.rmdir(parent)


def _line(one: Candidate, session: Session) -> str:
    inside = escaped(one.path.relative_to(session.path).as_posix())
    return f"  can go: {inside} ({one.kind}, {size_text(one.bytes)})"


def on_drive(path: Path) -> bool:
    return bool({"MyDrive", "My Drive", "Shareddrives"} & set(path.resolve().parts))


def trash_dir(root: Path) -> Path:
    """Beside Sessions/: what `session remove` took away."""
    return sessions_dir(root).parent / "trash"


def trash_bytes(root: Path) -> int:
    total = 0
    for parent, _, names in os.walk(trash_dir(root)):
        total += sum(os.lstat(os.path.join(parent, name)).st_size for name in names)
    return total


def empty_trash(root: Path) -> int:
    """Delete what `session remove` moved away; the bytes freed. A link instead of the folder is left alone."""
    trash, size = trash_dir(root), trash_bytes(root)
    if _is_real_folder(trash):
        with plain_disk_errors("empty the trash"):
            for path in trash.iterdir():
                shutil.rmtree(path) if _is_real_folder(path) else path.unlink()
    return size


def forgotten_imports(root: Path) -> list[Candidate]:
    """What imports left whose program was killed."""
    return [
        Candidate(
            "unfinished import", path, sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
        )
        for path in intake.forgotten(sessions_dir(root))
    ]


def remove(session: Session, root: Path, for_good: bool = False) -> Path | None:
    """Move the session to the trash beside Sessions/ and return its place there, or delete it for good.

    UserError while somebody works in it, and for a link to a folder elsewhere.
    """
    if session.path.is_symlink():
        raise UserError(
            f"{session.path} is only a link, to {os.readlink(session.path)}.",
            fix=f"remove the link yourself: rm {shlex.quote(str(session.path))}",
        )
    with session_lock(session.path, "removing it"), plain_disk_errors("remove the session"):
        if not for_good:
            place = _free_place(trash_dir(root), session.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(session.path, place)
            return place
        for manifest in session.path.glob("checkpoints/step_*/manifest*.json"):
            manifest.unlink()  # half a checkpoint must not look like a whole one, should this break off
        session.manifest.unlink(missing_ok=True)
        shutil.rmtree(session.path)
    return None


def _free_place(trash: Path, name: str) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        place = trash / (f"{name}-{stamp}" + (f"-{number}" if number > 1 else ""))
        if not os.path.lexists(place):
            return place
    raise AssertionError("a thousand removals in one second")


def freed_lines(freed: Freed) -> list[str]:
    """A line for each thing that stayed after all."""
    return [f"  note: {line}" for line in freed.kept]


def clear_imports(root: Path) -> int:
    """Delete what killed imports left; the bytes freed."""
    size = sum(one.bytes for one in forgotten_imports(root))
    intake.clear_forgotten(sessions_dir(root))
    return size
