"""How a transformer's tensors stand in a single file: several under one name, some with their halves exchanged.

Single files keep query, key and value as one matrix; diffusers keeps three. Rows that follow one another in a matrix
follow one another on the disk, so both layouts are made of each other's bytes without a number being computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class RowTable:
    """Every tensor of a transformer of one shape, in both layouts."""

    rows: Mapping[
        str, tuple[str, ...]
    ]  # single-file name -> Diffusers' tensors whose rows it holds, in order
    swapped: frozenset[str] = frozenset()  # single-file names whose first half is diffusers' second


def linears(theirs: str, ours: str, modules: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Both tensors of each linear layer; `modules`: single-file module -> Diffusers' modules, parted by spaces."""
    return {
        f"{theirs}{module}.{kind}": tuple(f"{ours}{one}.{kind}" for one in names.split())
        for module, names in modules.items()
        for kind in ("weight", "bias")
    }


def singles(theirs: str, ours: str, tensors: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Tensors that only change their names."""
    return {theirs + name: (ours + other,) for name, other in tensors.items()}


def both_kinds(modules: Iterable[str]) -> frozenset[str]:
    return frozenset(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))
