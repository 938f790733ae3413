"""Whether two model files, or two folders, hold the same weights to the last bit."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path

from fastsd_lib.core.tensor_file import TensorFile, read_tensor_file


def differences(ours: Path, theirs: Path) -> tuple[int, list[str]]:
    """How many tensors are the same in both .safetensors files, and what differs, a line each."""
    one, other = read_tensor_file(ours), read_tensor_file(theirs)
    lines = [f"only ours: {name}" for name in one.tensors if name not in other.tensors]
    lines += [f"only theirs: {name}" for name in other.tensors if name not in one.tensors]
    same = 0
    for name in one.tensors:
        if name in other.tensors:
            what = _difference(one, other, name)
            same += not what
            lines += [f"{name}: {what}"] if what else []
    return same, lines


def folder_differences(ours: Path, theirs: Path) -> tuple[int, list[str]]:
    """The same of two Diffusers folders: their weights bit for bit, their configs as values."""
    same, lines = 0, []
    names = {path.relative_to(ours) for path in ours.rglob("*") if path.is_file()}
    others = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    lines += [f"only ours: {name}" for name in sorted(names - others)]
    lines += [f"only theirs: {name}" for name in sorted(others - names)]
    for name in sorted(names & others):
        if name.suffix == ".safetensors":
            count, found = differences(ours / name, theirs / name)
            same += count
            lines += [f"{name.parent}: {line}" for line in found]
        elif name.suffix == ".json":
            one, other = (json.loads((folder / name).read_text("utf-8")) for folder in (ours, theirs))
            lines += [f"{name}: {line}" for line in _json_differences(one, other)]
        elif (ours / name).read_bytes() != (theirs / name).read_bytes():
            lines.append(f"{name}: other bytes")
    return same, lines


def _difference(one: TensorFile, other: TensorFile, name: str) -> str:
    mine, yours = one.tensors[name], other.tensors[name]
    if (mine.dtype, mine.shape) != (yours.dtype, yours.shape):
        return f"{mine.dtype} {list(mine.shape)}, theirs {yours.dtype} {list(yours.shape)}"
    chunks = zip_longest(one.chunks(name), other.chunks(name))
    return "" if all(ours == theirs for ours, theirs in chunks) else "other bits"


def _json_differences(one: object, other: object) -> list[str]:
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return [] if one == other else ["other values"]
    keys = [key for key in {**one, **other} if one.get(key) != other.get(key)]
    return [f"{key}: {one.get(key)!r}, theirs {other.get(key)!r}" for key in keys]
