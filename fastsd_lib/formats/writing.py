"""A model file of either kind, written and read back before it takes its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fastsd_lib.core.files import remove_leftovers
from fastsd_lib.core.progress import Report
from fastsd_lib.core.tensor_file import NewTensor, write_tensor_file
from fastsd_lib.formats.ckpt_writing import write_ckpt

PICKLED = (".ckpt", ".pt", ".pth", ".bin")  # what a suffix must be for a PyTorch checkpoint
COUNTERS = {"epoch": 0, "global_step": 0}  # which old programs ask for, beside the weights


def write_and_verify(
    scratch: Path,
    final: Path,
    tensors: list[NewTensor],
    header: Mapping[str, str],
    report: Report,
    hash_key: str = "",
) -> None:
    """Write, read back, compare: a disk that lies is found before the file takes its name.

    The suffix of `scratch`, which `atomic_path` takes from the final name, says which kind of file it becomes: a
    PyTorch checkpoint, whose dict then has the entries of `header` beside the weights (but none that would take the
    place of the weights or the counters), or .safetensors. `hash_key`: as `write_tensor_file` has it. What processes
    that were killed have left of earlier writings of `final` is removed.
    """
    remove_leftovers(final)
    if scratch.suffix.lower() in PICKLED:
        told = {key: value for key, value in header.items() if key not in ("state_dict", *COUNTERS)}
        extra = {**COUNTERS, **told}
        write_ckpt(scratch, tensors, extra, hash_key, named=final, report=report)
    else:
        write_tensor_file(scratch, tensors, header, hash_key, named=final, report=report)
