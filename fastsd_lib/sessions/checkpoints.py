"""A resumable state on disk: a folder of files, sealed by a manifest that is written last. docs/checkpoints.md says why.

Nothing here knows what the files hold. Nothing is written twice: each save has a folder of its own, each file is made
anew, synced and read back, and only then comes the manifest with every size and hash and its own seal.
"""

from __future__ import annotations

import errno
import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from fastsd_lib.core import disk
from fastsd_lib.core.files import fingerprint

SCHEMA = 1
MANIFEST = "manifest.json"
BEGUN = "begun.json"  # the first file of a save: what breaks off after it can be told from what others left
MADE_BY = "fastsd checkpoint"
SPACE_FACTOR = 1.3  # free space asked for, over the size of a save
UNFINISHED_KEPT_S = 24 * 3600  # on a remote place, where another machine may be writing still
_OWN_KEYS = {"schema", "step", "total_steps", "stage", "run", "saved_at", "files", "facts", "seal"}
_MANIFEST_NAMES = re.compile(r"manifest( \(\d+\))?\.json")  # Drive renames what it takes for a double

#: The bytes of one file, in order. Called once for each time that the file is written.
Content = Callable[[], Iterable[bytes | memoryview]]


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
        if not _is_plain(name):
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
    begun = _begun(step, run, files)
    contents: dict[str, Content] = {BEGUN: lambda: (begun,), **files}
    return _write_folder(
        folder,
        f"step_{step:06d}",
        run,
        contents,
        lambda written: {**manifest, "files": written, "facts": dict(facts or {})},
    )


def copy_checkpoint(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The same bytes in a new folder of `folder`, under the same name where it is free, written as a save is.

    OSError as from write_checkpoint; CheckpointDamaged when the original is not intact.
    """
    manifest = _sealed_manifest(checkpoint.path)
    if manifest is None:
        raise CheckpointDamaged(f"{checkpoint.path.name}: {MANIFEST} is missing or damaged")
    names = sorted(manifest["files"], key=lambda name: name != BEGUN)
    contents: dict[str, Content] = {name: partial(disk.read_chunks, checkpoint.path / name) for name in names}
    if BEGUN not in contents:  # saved by the first release
        begun = _begun(checkpoint.step, checkpoint.run, contents)
        contents = {BEGUN: lambda: (begun,), **contents}

    def same(written: dict[str, list]) -> dict[str, Any]:
        for name, facts in manifest["files"].items():
            if written[name] != facts:
                raise CheckpointDamaged(f"{checkpoint.path.name}: {name} is damaged")
        return manifest

    disk.make_folders(folder)
    return _write_folder(folder, checkpoint.path.name, checkpoint.run, contents, same)


def _write_folder(
    folder: Path,
    name: str,
    run: str,
    contents: Mapping[str, Content],
    manifest_of: Callable[[dict[str, list]], dict[str, Any]],
) -> Checkpoint:
    path = _new_folder(folder, name, run)
    try:
        written = {}
        for number, (file, content) in enumerate(contents.items()):
            written[file] = _write_checked(path / file, content())
            if number == 0:  # from here on a broken save can be told to be ours
                disk.sync_folder(path)
                disk.sync_folder(folder)
        disk.sync_folder(path)
        manifest = manifest_of(written)
        _write_checked(path / MANIFEST, (_sealed(manifest),))
        disk.sync_folder(path)
    except BaseException:
        with suppress(OSError):
            _delete(path, contents)
        raise
    saved = _checkpoint(path, manifest)
    _proven[path] = fingerprint(manifest)
    return saved


def _new_folder(folder: Path, name: str, run: str) -> Path:
    """Another run, or a damaged checkpoint, may have the name: a folder is never written into twice."""
    names = itertools.chain(
        [name, f"{name}-{run[:8]}"], (f"{name}-{run[:8]}-{n}" for n in itertools.count(2))
    )
    for one in names:
        try:
            disk.make_folder(folder / one)
        except FileExistsError:
            continue
        return folder / one
    raise AssertionError("the names never end")


def _write_checked(path: Path, chunks: Iterable[bytes | memoryview]) -> list:
    """[size, SHA-256] of a new file that reads back as it was written."""
    written = disk.write_file(path, chunks)
    if disk.read_back(path) != written:
        raise OSError(errno.EIO, "the disk gives back other bytes than were written", str(path))
    return list(written)


def _begun(step: int, run: str, files: Iterable[str]) -> bytes:
    return _as_bytes({"made_by": MADE_BY, "step": step, "run": run, "files": list(files)})


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
            manifest = _sealed_manifest(path)
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
    manifest = _sealed_manifest(path)
    if manifest is None:
        return f"{MANIFEST} is missing or damaged"
    return next(
        filter(None, (_file_fault(path / name, facts) for name, facts in manifest["files"].items())), ""
    )


def _file_fault(file: Path, facts: list) -> str:
    try:
        size = disk.file_size(file)
        if size is None:
            return f"{file.name} is missing"
        if size != facts[0] or list(disk.read_back(file)) != facts:
            return f"{file.name} is damaged"
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    return ""


def _unsealed_lines(folder: Path, run: str, after: int) -> list[str]:
    """Later saves of this run that were never sealed, or whose seal is broken."""
    lines = []
    for path in _step_folders(folder):
        step = re.match(r"step_(\d+)", path.name)
        if step is None or int(step[1]) <= after or _sealed_manifest(path) is not None:
            continue
        if _manifests(path):
            lines.append(f"{path.name}: {MANIFEST} is damaged")
        elif (_read_json(path / BEGUN) or {}).get("run") == run:
            lines.append(f"{path.name}: was not written to its end")
    return lines


def _step_folders(folder: Path) -> list[Path]:
    paths = (folder / name for name in disk.names_in(folder) if name.startswith("step_"))
    return [path for path in paths if disk.is_folder(path)]


def _manifests(path: Path) -> list[Path]:
    """manifest.json, and Drive's `manifest (1).json`."""
    return [path / name for name in disk.names_in(path) if _MANIFEST_NAMES.fullmatch(name)]


def _sealed_manifest(path: Path) -> dict[str, Any] | None:
    """What the manifest says, without its seal; None where none is there whose seal holds."""
    try:
        candidates = _manifests(path)
    except OSError:
        return None
    for file in candidates:
        manifest = _read_json(file)
        if manifest is not None and _seal_holds(file, manifest):
            manifest.pop("seal")
            if _is_manifest(manifest):
                return manifest
    return None


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(disk.read_bytes(file))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _seal_holds(file: Path, manifest: dict[str, Any]) -> bool:
    """The seal is of the meaning; the text must be ours too, or a flipped bit in 1e-5 (1E-5) would not be found."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    try:
        return disk.read_bytes(file) == _sealed(content) and manifest.get("seal") == fingerprint(content)
    except (OSError, ValueError):
        return False


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    return _as_bytes({**manifest, "seal": fingerprint(manifest)})


def _as_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _is_manifest(manifest: dict[str, Any]) -> bool:
    """A session may come from anywhere: a manifest of strange shape, or with paths in it, is none."""
    files = manifest.get("files")
    return (
        manifest.get("schema") == SCHEMA
        and all(type(manifest.get(key)) is int for key in ("step", "total_steps"))
        and all(isinstance(manifest.get(key), str) for key in ("stage", "run"))
        and isinstance(manifest.get("saved_at", ""), str)
        and isinstance(manifest.get("facts", {}), dict)
        and isinstance(files, dict)
        and all(name == BEGUN or _is_plain(name) for name in files)
        and all(isinstance(facts, list) and len(facts) == 2 for facts in files.values())
    )


def _is_plain(name: str) -> bool:
    return (
        bool(name)
        and not set(name) & set("/\\:\0")
        and name not in {".", "..", BEGUN}
        and not _MANIFEST_NAMES.fullmatch(name)
    )


def _checkpoint(path: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    # In the first release the facts stood among the rest.
    facts = {key: value for key, value in manifest.items() if key not in _OWN_KEYS} | manifest.get(
        "facts", {}
    )
    own = (manifest[key] for key in ("step", "total_steps", "stage", "run"))
    return Checkpoint(path, *own, saved_at=manifest.get("saved_at", ""), facts=facts)


# -- deleting ---------------------------------------------------------------------------------------------------------

_proven: dict[Path, str] = {}  # seals of what this program wrote and read back, or hashed, itself
_held: list[Path] = []
_guard = threading.Lock()


@contextmanager
def held(path: Path) -> Iterator[None]:
    """While the block runs, `prune` of this program spares this checkpoint: it is being copied."""
    with _guard:
        _held.append(path)
    try:
        yield
    finally:
        with _guard:
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
    whole = [one for one in sealed if _has_its_sizes(one.path)]
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
        if disk.is_link(path) or _was_sealed(path):
            continue
        begun = _read_json(path / BEGUN)
        ours = begun is not None and begun.get("made_by") == MADE_BY and isinstance(begun.get("files"), list)
        if not ours and set(names) - {BEGUN}:
            continue
        if remote:
            ages = [disk.changed_at(path / name) or 0 for name in names] or [disk.changed_at(path) or 0]
            if time.time() - max(ages) < UNFINISHED_KEPT_S:
                continue
            _to_trash(path)
        else:
            _delete(path, [name for name in begun["files"] if _is_plain(str(name))] if ours else ())
        cleared.append(path.name)
    return cleared


def _to_trash(path: Path) -> None:
    trash = path.parent.parent / "trash"
    disk.make_folders(trash)
    taken = set(disk.names_in(trash))
    free = itertools.chain([path.name], (f"{path.name}-{n}" for n in itertools.count(2)))
    disk.rename(path, trash / next(name for name in free if name not in taken))


def _was_sealed(path: Path) -> bool:
    """A manifest that broke off lacks its end; one that has it was whole once, and is not thrown away for a bad bit."""
    return any(disk.read_bytes(file).endswith(b"}\n") for file in _manifests(path))


def _has_its_sizes(path: Path) -> bool:
    manifest = _sealed_manifest(path)
    try:
        return manifest is not None and all(
            disk.file_size(path / name) == size for name, (size, _) in manifest["files"].items()
        )
    except OSError:
        return False


def _is_proven(checkpoint: Checkpoint) -> bool:
    manifest = _sealed_manifest(checkpoint.path)
    if manifest is None:
        return False
    seal = fingerprint(manifest)
    if _proven.get(checkpoint.path) != seal:
        if find_damage(checkpoint.path):
            return False
        _proven[checkpoint.path] = seal
    return True


def _discard(path: Path) -> None:
    manifest = _sealed_manifest(path)
    if manifest is None or disk.is_link(path):
        return
    if disk.file_size(path / BEGUN) is None:  # of the first release: should this break off, it can be cleared
        disk.write_file(path / BEGUN, (_begun(manifest["step"], manifest["run"], manifest["files"]),))
    _delete(path, manifest["files"])


def _delete(path: Path, names: Iterable[str]) -> None:
    """Manifest first: from then on it is no checkpoint, whatever dies. begun.json last: until then it can be cleared."""
    _proven.pop(path, None)
    for file in _manifests(path):
        disk.unlink(file)
    disk.sync_folder(path)
    for name in names:
        if name != BEGUN:
            disk.unlink(path / name)
    if not set(disk.names_in(path)) - {
        BEGUN
    }:  # else somebody put something there: it stays, and so does its name
        disk.unlink(path / BEGUN)
        disk.remove_folder(path)
