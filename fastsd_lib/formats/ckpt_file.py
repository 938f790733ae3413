"""Pickled PyTorch checkpoints (.ckpt) as safetensors: a copy is made once, and everything else reads the copy."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import CHUNK_BYTES, atomic_path, fingerprint, plain_disk_errors
from fastsd_lib.core.pickle_header import PickleHeader, read_pickle_header
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.tensor_file import NewTensor, write_tensor_file
from fastsd_lib.formats.configs import METADATA_KEY

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_SCANNED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def safetensors_copy(path: Path, cache: Path | None = None, report: Report = silent) -> Path:
    """The weights of the checkpoint `path` as a .safetensors file in the folder `cache`; written once.

    Only plain weights are taken: a pickle that asks for anything else is refused before it is opened, and PyTorch
    opens it with `weights_only=True` besides. Tensors are read one at a time from where they lie, so memory stays
    small. UserError for files that are damaged, hostile, hold numbers that are none, or do not fit on the disk.
    """
    header = read_pickle_header(path)
    cache = cache or copies_folder()
    stat = path.stat()
    made_of = fingerprint([str(path.resolve())])
    copy = cache / f"{made_of}-{fingerprint([stat.st_size, stat.st_mtime_ns])}.safetensors"
    if copy.is_file():
        return copy
    with plain_disk_errors(f"copy {path.name}"):
        _require_space(path, cache, stat.st_size)
        tensors = _weights(path, header)
        total = len(tensors)
        planned = [
            NewTensor(
                name, DTYPES[one.dtype], tuple(one.shape), partial(_chunks, path, name, one, report, n, total)
            )
            for n, (name, one) in enumerate(tensors.items())
        ]
        with atomic_path(copy) as scratch:
            kept = {METADATA_KEY: header.metadata[METADATA_KEY]} if METADATA_KEY in header.metadata else {}
            write_tensor_file(scratch, planned, {"format": "pt", **kept})
    report(ProgressEvent(f"reading {path.name}", total, total))
    for older in cache.glob(f"{made_of}-*.safetensors"):  # of the same file, before it changed
        if older != copy:
            older.unlink(missing_ok=True)
    return copy


def copies_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastsd" / "checkpoints"


def _weights(path: Path, header: PickleHeader) -> dict[str, torch.Tensor]:
    """The tensors by name, mapped from the file where its format allows it."""
    if header.compressed:
        raise UserError(
            f"{path} was packed anew by another program than PyTorch.",
            fix="take the original file, or the model's .safetensors file.",
        )
    with path.open("rb") as handle:
        can_be_mapped = handle.read(2) == b"PK"
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=can_be_mapped)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        # What PyTorch says here advises to switch its protection off.
        raise UserError(
            f"{path} is not a whole PyTorch checkpoint: its weights cannot be read.",
            fix="download or copy it again.",
        ) from None
    inner = value.get("state_dict", value)
    tensors = {name: inner.get(name) for name in header.tensors}
    for name, tensor in tensors.items():
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.dtype not in DTYPES
            or tensor.layout != torch.strided
        ):
            raise UserError(
                f"{path} stores {name} in a way that models do not ({getattr(tensor, 'dtype', 'no tensor')}).",
                fix="take the model's .safetensors file.",
            )
    return tensors


def _chunks(
    path: Path, name: str, tensor: torch.Tensor, report: Report, number: int, total: int
) -> Iterator[memoryview]:
    report(ProgressEvent(f"reading {path.name}", number, total))
    flat = tensor.detach().reshape(-1).contiguous()
    if tensor.dtype in _SCANNED and not torch.isfinite(flat).all():
        raise UserError(
            f"{path} holds values that are no numbers (in {name}): its training had gone wrong.",
            fix="take an earlier checkpoint.",
        )
    data = memoryview(flat.view(torch.uint8).numpy())
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def _require_space(path: Path, cache: Path, needed_bytes: int) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < needed_bytes:
        raise UserError(
            f"A copy of {path.name} needs {needed_bytes / 1e9:.1f} GB in {cache}; {free / 1e9:.1f} GB are free.",
            fix="free some space there, or set XDG_CACHE_HOME to a folder on another disk.",
        )
