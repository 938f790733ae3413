"""A model file written and read back before it takes its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.core.tensor_file import NewTensor, read_tensor_file, tensor_hashes, write_tensor_file


def write_and_verify(
    scratch: Path,
    final: Path,
    tensors: list[NewTensor],
    header: Mapping[str, str],
    report: Report,
    hash_key: str = "",
) -> None:
    """Write, read back, compare: a disk that lies is found before the file takes its name.

    `hash_key`: as `write_tensor_file` has it.
    """
    total = len(tensors)
    watched = [
        _watched(tensor, report, f"writing {final.name}", n, total) for n, tensor in enumerate(tensors)
    ]
    hashes = write_tensor_file(scratch, watched, header, hash_key)
    found = tensor_hashes(read_tensor_file(scratch))
    if found != hashes:
        wrong = next(name for name in hashes if found.get(name) != hashes[name])
        raise UserError(
            f"{final} reads back differently from what was written (first at {wrong}): the disk is failing.",
            fix="write to another disk.",
        )
    report(ProgressEvent(f"writing {final.name}", total, total))


def _watched(tensor: NewTensor, report: Report, task: str, number: int, total: int) -> NewTensor:
    def chunks() -> Iterable[bytes]:
        report(ProgressEvent(task, number, total))
        return tensor.chunks()

    return NewTensor(tensor.name, tensor.dtype, tensor.shape, chunks, tensor.ranges)
