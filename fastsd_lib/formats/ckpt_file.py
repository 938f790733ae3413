"""Pickled PyTorch checkpoints (.ckpt) read where they lie, and as a safetensors copy for loaders that map their files.

Nothing is executed and PyTorch is not needed: `core/pickle_header.py` tells where the numbers of each tensor are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, fingerprint, plain_disk_errors
from fastsd_lib.core.pickle_header import PickleHeader, is_pickled, read_pickle_header
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile, read_tensor_file, write_tensor_file
from fastsd_lib.formats.casting import FLOATS, to_float32
from fastsd_lib.formats.configs import METADATA_KEY


@dataclass(frozen=True)
class CheckpointFile(TensorFile):
    """A .ckpt as if it were a safetensors file: tensors that lie in a row have their places in it, the others
    (transposed or strided views) come by `chunks` alone.
    """

    header: PickleHeader

    def chunks(self, name: str) -> Iterator[bytes]:
        return self.header.chunks(name)


def open_weights(path: Path) -> TensorFile:
    """A file of weights of either kind, read in place; nothing is copied, whatever its size.

    UserError for files that are damaged, hostile or no weights.
    """
    return open_checkpoint(path) if is_pickled(path) else read_tensor_file(path)


def open_checkpoint(path: Path) -> CheckpointFile:
    """The weights of a .ckpt, its texts as metadata; UserError also for one that was compressed afterwards."""
    header = read_pickle_header(path)
    if header.compressed:
        raise UserError(
            f"{path} was packed anew by another program than PyTorch.",
            fix="take the original file, or the model's .safetensors file.",
        )
    return CheckpointFile(path, header.tensors, header.metadata, header)


def safetensors_copy(path: Path, cache: Path | None = None, report: Report = silent) -> Path:
    """The weights of the checkpoint `path` as a .safetensors file in the folder `cache`; written once.

    Only plain weights are taken: a pickle that asks for anything else is refused. Tensors are read one at a time from
    where they lie, so memory stays small. UserError for files that are damaged, hostile, hold numbers that are none,
    or do not fit on the disk.
    """
    file = open_checkpoint(path)
    cache = cache or copies_folder()
    stat = path.stat()
    made_of = fingerprint([str(path.resolve())])
    copy = cache / f"{made_of}-{fingerprint([stat.st_size, stat.st_mtime_ns])}.safetensors"
    if copy.is_file():
        return copy
    with plain_disk_errors(f"copy {path.name}"):
        _require_space(path, cache, stat.st_size)
        total = len(file.tensors)
        planned = [
            NewTensor(name, one.dtype, one.shape, partial(_numbers, file, name, report, n, total))
            for n, (name, one) in enumerate(file.tensors.items())
        ]
        with atomic_path(copy) as scratch:
            kept = {METADATA_KEY: file.metadata[METADATA_KEY]} if METADATA_KEY in file.metadata else {}
            write_tensor_file(scratch, planned, {"format": "pt", **kept})
    report(ProgressEvent(f"reading {path.name}", total, total))
    for older in cache.glob(f"{made_of}-*.safetensors"):  # of the same file, before it changed
        if older != copy:
            older.unlink(missing_ok=True)
    return copy


def copies_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastsd" / "checkpoints"


def _numbers(file: TensorFile, name: str, report: Report, number: int, total: int) -> Iterator[bytes]:
    """The bytes of a tensor, if they are numbers all."""
    import numpy as np

    report(ProgressEvent(f"reading {file.path.name}", number, total))
    dtype = file.tensors[name].dtype
    for chunk in file.chunks(name):
        if dtype in FLOATS or dtype == "F64":
            raw = np.frombuffer(chunk, np.uint8)
            values = raw.view("<f8") if dtype == "F64" else to_float32(raw, dtype)
            if not np.isfinite(values).all():
                raise UserError(
                    f"{file.path} holds values that are no numbers (in {name}): its training had gone wrong.",
                    fix="take an earlier checkpoint.",
                )
        yield chunk


def _require_space(path: Path, cache: Path, needed_bytes: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < needed_bytes:
        raise UserError(
            f"A copy of {path.name} needs {needed_bytes / 1e9:.1f} GB in {cache}; {free / 1e9:.1f} GB are free.",
            fix="free some space there, or set XDG_CACHE_HOME to a folder on another disk.",
        )
