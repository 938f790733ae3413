"""A resumable state on disk: a folder of files, sealed by a manifest that is written last. docs/checkpoints.md says why.

Nothing here knows what the files hold. Nothing is written twice: each save has a folder of its own, each file is made
anew, synced and read back, and only then comes the manifest with every size and hash and its own seal.
"""

from __future__ import annotations

import errno
import itertools
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from fastsd_lib.core import disk
from fastsd_lib.core.files import fingerprint
from fastsd_lib.sessions import sealed_folder
from fastsd_lib.sessions.sealed_folder import BEGUN, MANIFEST, SCHEMA, Content, Facts

SPACE_FACTOR = 1.3  # free space asked for, over the size of a save
UNFINISHED_KEPT_S = 24 * 3600  # on a remote place, where another machine may be writing still
_proven: dict[Path, str] = {}  # seals of what this program wrote and read back, or hashed, itself
_held: list[Path] = []  # what is being copied just now
_OWN_KEYS = {"schema", "step", "total_steps", "stage", "run", "saved_at", "files", "facts", "seal"}


class CheckpointDamaged(Exception):
    """A checkpoint that was to be copied is not what its manifest says."""


@dataclass(frozen=True)
class Checkpoint:
    """One folder under checkpoints/; `step` counts both stages, the text encoder's first."""

    path: Path
    step: int
    total_steps: int
    stage: str  # "text encoder" or "U-Net"
    run: str  # fingerprint of base model, training set and config: a run resumes only its own
    saved_at: str = ""  # ISO 8601, UTC; empty in those of the first release
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps


# -- writing ----------------------------------------------------------------------------------------------------------


def write_checkpoint(
    folder: Path,
    *,
    step: int,
    total_steps: int,
    stage: str,
    run: str,
    files: Mapping[str, Content],
    facts: Mapping[str, Any] | None = None,
    expected_bytes: int = 0,
) -> Checkpoint:
    """A new sealed folder in `folder`, on the disk and read back when this returns: only then may it be announced.

    `expected_bytes`: size of the save; without 1.3 times that much free space nothing is begun. OSError, with the file
    in `filename`, when anything fails: the unfinished folder is deleted as far as possible, the others are untouched.
    """
    for name in files:
        if not sealed_folder.is_plain(name):
            raise ValueError(f"{name!r} cannot be a file of a checkpoint")
    disk.make_folders(folder)
    if expected_bytes:
        check_space(folder, expected_bytes)
    manifest = {
        "schema": SCHEMA,
        "step": step,
        "total_steps": total_steps,
        "stage": stage,
        "run": run,
        "saved_at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
    }
    begun = sealed_folder.begun_bytes(step, run, files)
    contents: dict[str, Content] = {BEGUN: lambda: (begun,), **files}
    return _write(
        folder,
        f"step_{step:06d}",
        run,
        contents,
        lambda written: {**manifest, "files": written, "facts": dict(facts or {})},
    )


def copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The same bytes in a new folder of `folder`, under the same name where it is free, written as a save is.

    OSError as from write_checkpoint, also where there is no `folder`; CheckpointDamaged when the original is not intact.
    """
    manifest = sealed_folder.read_sealed(checkpoint.path)
    if manifest is None:
        if not sealed_folder.manifests_in(checkpoint.path):
            raise FileNotFoundError(errno.ENOENT, "it was deleted", str(checkpoint.path / MANIFEST))
        raise CheckpointDamaged(f"{checkpoint.path.name}: {MANIFEST} is missing or damaged")
    names = sorted(manifest["files"], key=lambda name: name != BEGUN)
    contents: dict[str, Content] = {name: partial(disk.read_chunks, checkpoint.path / name) for name in names}
    if BEGUN not in contents:  # saved by the first release
        begun = sealed_folder.begun_bytes(checkpoint.step, checkpoint.run, contents)
        contents = {BEGUN: lambda: (begun,), **contents}

    def same(written: Facts) -> dict[str, Any]:
        for name, facts in manifest["files"].items():
            if written[name] != facts:
                raise CheckpointDamaged(f"{checkpoint.path.name}: {name} is damaged")
        return manifest

    return _write(folder, checkpoint.path.name, checkpoint.run, contents, same)


def _write(
    folder: Path,
    name: str,
    run: str,
    contents: Mapping[str, Content],
    manifest_of: Callable[[Facts], dict[str, Any]],
) -> Checkpoint:
    path, manifest = sealed_folder.write_sealed(folder, name, run, contents, manifest_of)
    _proven[path] = fingerprint(manifest)
    return _checkpoint(path, manifest)


def needed_bytes(save_bytes: int) -> int:
    """Free space, in bytes, without which a save of this size is not begun."""
    return int(save_bytes * SPACE_FACTOR)


def check_space(folder: Path, save_bytes: int) -> None:
    """OSError (ENOSPC) when a save of this size would hardly fit; hosts that do not tell are believed."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return
    if free < needed_bytes(save_bytes):
        found = f"{free >> 20} MiB are free, a checkpoint needs {needed_bytes(save_bytes) >> 20}"
        raise OSError(errno.ENOSPC, found, str(folder))


# -- reading ----------------------------------------------------------------------------------------------------------


def list_checkpoints(folders: Path | Sequence[Path], run: str | None = None) -> list[Checkpoint]:
    """Sealed checkpoints, oldest first, of one run or of all; what has no seal does not count.

    Of equal ones those in the first folder are the newest. OSError where a folder is there but cannot be read.
    """
    found = []
    for order, folder in enumerate([folders] if isinstance(folders, Path) else folders):
        for path in _step_folders(folder):
            manifest = sealed_folder.read_sealed(path)
            if manifest and (run is None or manifest["run"] == run):
                found.append((-order, _checkpoint(path, manifest)))
    found.sort(key=lambda pair: (pair[1].step, pair[1].saved_at, pair[0], pair[1].path.name))
    return [checkpoint for _, checkpoint in found]


def newest_intact(folders: Path | Sequence[Path], run: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of `run` whose every byte is as it was written, and a line for each one passed over."""
    folders = [folders] if isinstance(folders, Path) else list(folders)
    found, passed_over = [], []
    for folder in folders:
        try:
            found += list_checkpoints(folder, run)
        except OSError as error:
            passed_over.append(f"{folder} cannot be read: {error.strerror}")
    rank = {folder: -order for order, folder in enumerate(folders)}
    found.sort(key=lambda one: (one.step, one.saved_at, rank[one.path.parent], one.path.name))
    chosen = None
    for checkpoint in reversed(found):
        damage = find_damage(checkpoint.path)
        if not damage:
            chosen = checkpoint
            break
        passed_over.append(f"{checkpoint.path.name}: {damage}")
    after = chosen.step if chosen else -1
    for folder in folders:
        with suppress(OSError):  # its line stands above
            passed_over += _unsealed_lines(folder, run, after)
    return chosen, passed_over


def find_damage(path: Path) -> str:
    """Empty for an intact checkpoint, else the first fault. Reads every byte."""
    return _first_fault(path, read=True)


def quick_damage(path: Path) -> str:
    """As find_damage, by the seal and the sizes only."""
    return _first_fault(path, read=False)


def seal_of(checkpoint: Checkpoint) -> str:
    """The same for copies of one save and for nothing else; empty when the seal is broken by now."""
    manifest = sealed_folder.read_sealed(checkpoint.path)
    return fingerprint(manifest) if manifest else ""


def _first_fault(path: Path, read: bool) -> str:
    manifest = sealed_folder.read_sealed(path)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    for name, facts in manifest["files"].items():
        if fault := _file_fault(path / name, facts, read):
            return fault
    return ""


def _file_fault(file: Path, facts: list, read: bool) -> str:
    try:
        size = disk.file_size(file)
        if size is None:
            return f"{file.name} is missing"
        if size != facts[0] or (read and list(disk.read_back(file)) != facts):
            return f"{file.name} is damaged"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    return ""


def _unsealed_lines(folder: Path, run: str, after: int) -> list[str]:
    """Later saves of this run that were never sealed, or whose seal is broken."""
    lines = []
    for path in _step_folders(folder):
        step = re.match(r"step_(\d+)", path.name)
        if step is None or int(step[1]) <= after or sealed_folder.read_sealed(path) is not None:
            continue
        if sealed_folder.manifests_in(path):
            lines.append(f"{path.name}: {MANIFEST} is damaged")
        elif (sealed_folder.read_begun(path) or {}).get("run") == run:
            lines.append(f"{path.name}: was not written to its end")
    return lines


def _step_folders(folder: Path) -> list[Path]:
    paths = (folder / name for name in disk.names_in(folder) if name.startswith("step_"))
    return [path for path in paths if disk.is_folder(path)]


def _checkpoint(path: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    older = {
        key: value for key, value in manifest.items() if key not in _OWN_KEYS
    }  # stood among the rest once
    facts = older | manifest.get("facts", {})
    own = (manifest[key] for key in ("step", "total_steps", "stage", "run"))
    return Checkpoint(path, *own, saved_at=manifest.get("saved_at", ""), facts=facts)


# -- deleting ---------------------------------------------------------------------------------------------------------


@contextmanager
def held(path: Path) -> Iterator[None]:
    """While the block runs, `prune` of this program spares this checkpoint: it is being copied."""
    _held.append(path)
    try:
        yield
    finally:
        _held.remove(path)


def prune(
    folder: Path,
    run: str,
    keep_last: int,
    keep_every_steps: int = 0,
    confirmed: Callable[[Checkpoint], bool] | None = None,
) -> list[str]:
    """Delete checkpoints of `run` but for the newest `keep_last` and each `keep_every_steps`-th; the names deleted.

    Only what is older than a `confirmed` one goes (unless told otherwise: one that this program wrote and read back,
    or has just hashed), and what is damaged is not counted as kept. OSError when deleting fails: what is left then is
    either whole or unsealed.
    """
    sealed = list_checkpoints(folder, run)
    whole = [one for one in sealed if not quick_damage(one.path)]
    is_safe = confirmed or _is_proven
    newest_safe = next((number for number in reversed(range(len(whole))) if is_safe(whole[number])), None)
    if newest_safe is None:
        return []
    kept = {one.path for one in whole[max(0, newest_safe + 1 - max(1, keep_last)) :]}
    safe = whole[newest_safe]
    deleted = []
    for one in sealed[: sealed.index(safe)]:
        milestone = keep_every_steps > 0 and one.step % keep_every_steps == 0
        if one.path not in kept and not milestone and one.path not in _held:
            _discard(one.path)
            deleted.append(one.path.name)
    return deleted


def discard_run(folder: Path, run: str) -> None:
    """Unseal and delete the checkpoints of one run, so that it starts over; OSError as from `prune`."""
    for checkpoint in list_checkpoints(folder, run):
        _discard(checkpoint.path)


def clear_unfinished(folder: Path, *, remote: bool = False) -> list[str]:
    """Delete saves that broke off; the names. Call it before the first save: it takes one under way for broken.

    Only folders whose begun.json is ours, and in them only what it lists. On a `remote` place another machine may be
    writing: there only those older than 24 h go, and only to trash/ beside `folder`. OSError where deleting fails.
    """
    cleared = []
    for path in _step_folders(folder):
        names = disk.names_in(path)
        if disk.is_link(path) or sealed_folder.was_sealed(path):
            continue
        begun = sealed_folder.read_begun(path)
        if begun is None and set(names) - {BEGUN}:
            continue
        if remote:
            ages = [disk.changed_at(path / name) or 0 for name in names] or [disk.changed_at(path) or 0]
            if time.time() - max(ages) < UNFINISHED_KEPT_S:
                continue
            _to_trash(path)
        else:
            sealed_folder.delete(path, filter(sealed_folder.is_plain, begun["files"] if begun else ()))
        cleared.append(path.name)
    return cleared


def _to_trash(path: Path) -> None:
    trash = path.parent.parent / "trash"
    disk.make_folders(trash)
    taken = set(disk.names_in(trash))
    free = itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2)))
    disk.rename(path, trash / next(name for name in free if name not in taken))


def _is_proven(checkpoint: Checkpoint) -> bool:
    seal = seal_of(checkpoint)
    if not seal or (_proven.get(checkpoint.path) != seal and find_damage(checkpoint.path)):
        return False
    _proven[checkpoint.path] = seal
    return True


def _discard(path: Path) -> None:
    manifest = sealed_folder.read_sealed(path)
    if manifest is None or disk.is_link(path):
        return
    if disk.file_size(path / BEGUN) is None:  # of the first release: should this break off, it can be cleared
        begun = sealed_folder.begun_bytes(manifest["step"], manifest["run"], manifest["files"])
        disk.write_file(path / BEGUN, (begun,))
    _proven.pop(path, None)
    sealed_folder.delete(path, manifest["files"])
