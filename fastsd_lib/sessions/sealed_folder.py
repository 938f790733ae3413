"""A folder of files that a manifest seals, written and deleted so that no state between is taken for a whole one."""

from __future__ import annotations

import errno
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastsd_lib.core import disk
from fastsd_lib.core.files import fingerprint

SCHEMA = 1
MANIFEST = "manifest.json"
BEGUN = "begun.json"  # the first file of a save: what breaks off after it can be told from what others left
MADE_BY = "fastsd checkpoint"
_MANIFEST_NAMES = re.compile(r"manifest( \(\d+\))?\.json")  # Drive renames what it takes for a double

#: The bytes of one file, in order. Called once for each time that the file is written.
Content = Callable[[], Iterable[bytes | memoryview]]
Facts = dict[str, list]  # file name -> [bytes, SHA-256]
_left_behind: list[tuple[Path, list[str]]] = []  # folders that this program began and could not delete


def write_sealed(
    folder: Path,
    name: str,
    run: str,
    contents: Mapping[str, Content],
    manifest_of: Callable[[Facts], dict[str, Any]],
) -> tuple[Path, dict[str, Any]]:
    """A new folder with `contents`, the first of them begun.json, and the manifest that `manifest_of` makes of them.

    Whatever is raised, OSError or else, the unfinished folder is deleted as far as the disk allows.
    """
    _delete_left_behind(folder)
    path = _new_folder(folder, name, run)
    try:
        written: Facts = {}
        for file, content in contents.items():
            written[file] = _write_checked(path / file, content())
            if file == BEGUN:  # from here on a broken save can be told to be ours
                disk.sync_folder(path)
                disk.sync_folder(folder)
        disk.sync_folder(path)
        manifest = manifest_of(written)
        _write_checked(path / MANIFEST, (_sealed(manifest),))
        disk.sync_folder(path)
    except BaseException:
        _left_behind.append((path, list(contents)))
        _delete_left_behind(folder)
        raise
    return path, manifest


def _delete_left_behind(folder: Path) -> None:
    """What a broken disk did not let go goes when it is well again: else each try would fill it further."""
    for item in [item for item in _left_behind if item[0].parent == folder]:
        with suppress(OSError):
            if disk.is_folder(item[0]):
                delete(*item)
            _left_behind.remove(item)


def begun_bytes(step: int, run: str, files: Iterable[str]) -> bytes:
    return _as_bytes({"made_by": MADE_BY, "step": step, "run": run, "files": list(files)})


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
        _left_behind[:] = [item for item in _left_behind if item[0] != folder / one]  # that one is gone
        return folder / one
    raise AssertionError("the names never end")


def _write_checked(path: Path, chunks: Iterable[bytes | memoryview]) -> list:
    """[bytes, SHA-256] of a new file that reads back as it was written."""
    written = disk.write_file(path, chunks)
    if disk.read_back(path) != written:
        raise OSError(errno.EIO, "the disk gives back other bytes than were written", str(path))
    return list(written)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_sealed(path: Path) -> dict[str, Any] | None:
    """What the manifest says, without its seal; None where none is there whose seal holds."""
    try:
        files = manifests_in(path)
    except OSError:
        return None
    for file in files:
        manifest = _unsealed(file)
        if manifest is not None and _is_manifest(manifest):
            return manifest
    return None


def manifests_in(path: Path) -> list[Path]:
    """manifest.json, and Drive's `manifest (1).json`."""
    return [path / name for name in disk.names_in(path) if _MANIFEST_NAMES.fullmatch(name)]


def read_begun(path: Path) -> dict[str, Any] | None:
    """What begun.json says, if it is ours: {"step", "run", "files": names}; None otherwise."""
    begun = _parsed(_bytes_of(path / BEGUN))
    ours = begun is not None and begun.get("made_by") == MADE_BY and isinstance(begun.get("files"), list)
    return begun if ours else None


def was_sealed(path: Path) -> bool:
    """A manifest that broke off lacks its end; one that has it was whole once, and is not thrown away for a bad bit."""
    return any(disk.read_bytes(file).endswith(b"}\n") for file in manifests_in(path))


def is_plain(name: object) -> bool:
    """Can this be a file beside manifest.json and begun.json, and nowhere else?"""
    return (
        isinstance(name, str)
        and bool(name)
        and not set(name) & set("/\\:\0")
        and name not in {".", "..", BEGUN}
        and not _MANIFEST_NAMES.fullmatch(name)
    )


def _unsealed(file: Path) -> dict[str, Any] | None:
    text = _bytes_of(file)
    manifest = _parsed(text)
    if manifest is None:
        return None
    seal = manifest.pop("seal", None)
    return manifest if _seal_holds(text, manifest, seal) else None


def _seal_holds(text: bytes, manifest: dict[str, Any], seal: object) -> bool:
    """The seal is of the meaning; the text must be ours too, or a flipped bit in 1e-05 (1E-05) would not be found."""
    try:
        return seal == fingerprint(manifest) and text == _as_bytes({**manifest, "seal": seal})
    except ValueError:  # half a Unicode letter
        return False


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    return _as_bytes({**manifest, "seal": fingerprint(manifest)})


def _as_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _bytes_of(file: Path) -> bytes:
    try:
        return disk.read_bytes(file)
    except OSError:
        return b""


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
        and all(name == BEGUN or is_plain(name) for name in files)
        and all(isinstance(facts, list) and len(facts) == 2 for facts in files.values())
    )


# -- deleting ---------------------------------------------------------------------------------------------------------


def delete(path: Path, names: Iterable[str]) -> None:
    """Manifest first: from then on it is no checkpoint, whatever dies. begun.json last: until then it can be cleared.

    Only `names` go: where somebody put a file of their own, it stays, and the folder with it.
    """
    for file in manifests_in(path):
        disk.unlink(file)
    disk.sync_folder(path)
    for name in names:
        if name != BEGUN:
            disk.unlink(path / name)
    if set(disk.names_in(path)) <= {BEGUN}:
        disk.unlink(path / BEGUN)
        disk.remove_folder(path)
