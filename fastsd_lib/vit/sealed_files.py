"""A manifest that seals the files beside it: it is written last and names each file with its size and SHA-256.

Files carry a name of their own for each state (`vectors-1f3a….npy`), the manifest is replaced in one step: whoever reads
meanwhile, and whatever dies, finds the old state or the new one, never a mixture.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint, read_json, sha256_file, write_json

SCHEMA = 1
Files = dict[str, list]  # name -> [bytes, SHA-256]


class NpyWriter:
    """The rows of a `.npy` file, block after block, hashed on the way; the number of rows is known before."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self._rows, self._bytes, self._digest = 0, 0, hashlib.sha256()
        self._handle = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(_Through(self._put), header)

    def write(self, block: np.ndarray) -> None:
        """Some more rows: (n, *shape[1:])."""
        block = np.ascontiguousarray(block, self.dtype)
        self._rows += len(block)
        self._put(memoryview(block).cast("B") if block.size else b"")

    def close(self) -> list:
        """[bytes, SHA-256], on the disk. ValueError when other rows came than were announced."""
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self._handle.close()
        if self._rows != self.shape[0]:
            raise ValueError(f"{self._rows} rows were written, {self.shape[0]} were announced")
        return [self._bytes, self._digest.hexdigest()]

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close()

    def _put(self, data: Any) -> None:
        self._handle.write(data)
        self._digest.update(data)
        self._bytes += len(data)


class _Through:
    """numpy writes its header to something with write()."""

    def __init__(self, write: Any) -> None:
        self.write = write


def sealed_path(folder: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """The file that a manifest speaks of; KeyError unless it is one that it seals."""
    if name not in manifest["files"]:
        raise KeyError(name)
    return folder / name


def open_array(path: Path) -> np.ndarray:
    """A `.npy` file mapped into memory, read-only; nothing but numbers can be in it."""
    with path.open("rb") as handle:
        np.lib.format.read_magic(handle)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(handle)
        begin = handle.tell()
    if dtype.hasobject or fortran:
        raise ValueError("no plain array")
    if 0 in shape:
        return np.zeros(shape, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, "r", begin, shape)


def facts_of(path: Path) -> list:
    """[bytes, SHA-256] of a file."""
    return [path.stat().st_size, sha256_file(path)]


def seal(folder: Path, name: str, made_by: str, facts: Mapping[str, Any], files: Files) -> None:
    """Write the manifest `name`: from now on the folder holds this state."""
    manifest = {"made_by": made_by, "schema": SCHEMA, **facts, "files": files}
    write_json(folder / name, {**manifest, "seal": fingerprint(manifest)})


def unseal(
    folder: Path, name: str, made_by: str, what: str, *, verify: bool = True, made_with: str = ""
) -> dict[str, Any]:
    """The manifest, when its seal holds and each file is as it was written (`verify` False looks at sizes only).

    UserError, with `what` ("store of vectors") in its words, for whatever is missing, changed or of another kind;
    `made_with`: the command that makes one.
    """
    path = folder / name
    if not path.is_file():
        make = f"make it first: {made_with}" if made_with else "make it first."
        raise UserError(f"{folder} is no {what}: {name} is not in it.", fix=f"check the path, or {make}")
    manifest = read_json(path)
    again = f"restore {folder} from a copy, or delete it and make it again."
    if not isinstance(manifest, dict) or manifest.get("made_by") != made_by:
        raise UserError(f"{path} is not the manifest of a {what}.", fix="check the path.")
    said = manifest.pop("seal", None)
    if manifest.get("schema") != SCHEMA and isinstance(manifest.get("schema"), int):
        raise UserError(f"{path} was written by a newer fastsd.", fix="update fastsd.")
    if said != fingerprint(manifest) or not _plain(manifest.get("files")):
        raise UserError(f"{path} was changed after it was written.", fix=again)
    for file, (size, sha256) in manifest["files"].items():
        if not (folder / file).is_file():
            raise UserError(f"{folder / file} is missing.", fix=again)
        if (folder / file).stat().st_size != size or (verify and sha256_file(folder / file) != sha256):
            raise UserError(f"{folder / file} is not as it was written: it is damaged.", fix=again)
    return manifest


def remove_others(folder: Path, stems: Iterable[str], keep: Iterable[str]) -> None:
    """Delete files of earlier states: those that begin with one of `stems` and are not to `keep`."""
    kept = set(keep)
    for path in folder.iterdir():
        if path.is_file() and path.name not in kept and path.name.startswith(tuple(stems)):
            with suppress(OSError):  # Windows: somebody still reads it; the next change takes it along
                path.unlink()


def _plain(files: Any) -> bool:
    """Names of files in this folder only: a folder may come from anywhere."""
    return isinstance(files, dict) and all(
        isinstance(one, list)
        and len(one) == 2
        and name
        and not set(name) & set("/\\:\0")
        and name not in (".", "..")
        for name, one in files.items()
    )
