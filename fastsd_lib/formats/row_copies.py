"""The tensors of a part in their other layout, as byte ranges of the file where they lie.

Nothing is read before somebody writes it, and nothing is computed unless another dtype is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import ByteRange, NewTensor
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.casting import cast_chunks, target_dtype
from fastsd_lib.formats.row_tables import RowTable
from fastsd_lib.formats.weights import Weight

ONES = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": b"\x00\x00\x80\x3f"}  # the number 1, little-endian


def exported(
    weights: Mapping[str, Weight], table: RowTable, prefix: str, dtype: str | None, is_vae: bool
) -> Iterator[NewTensor]:
    """The weights of a part of a folder as the tensors of a single file, behind `prefix`.

    `weights`: by diffusers' names, in the order of their bytes; every name of the table must be there.
    """
    order = {name: number for number, name in enumerate(weights)}  # neighbours on the disk stay neighbours
    for theirs, ours in sorted(table.rows.items(), key=lambda row: order[row[1][0]]):
        pieces = [weights[name] for name in ours]
        first = pieces[0].stored
        _check_alike(pieces)
        ranges = [one.range for one in pieces]
        shape = first.shape
        if len(pieces) > 1:
            shape = (sum(one.shape[0] for one in pieces), *shape[1:])
        if theirs in table.swapped:
            ranges = _swapped(pieces[0])
        if is_vae and ".mid.attn_1." in theirs and theirs.endswith(".weight") and len(shape) == 2:
            shape = (*shape, 1, 1)  # single files have 1x1 convolutions there
        yield _tensor(prefix + theirs, shape, ranges, first.dtype, dtype)


def _check_alike(pieces: Sequence[Weight]) -> None:
    """UserError for matrices that are to become one but differ in kind or width."""
    first = pieces[0].stored
    for one in pieces[1:]:
        stored = one.stored
        if not stored.shape or (stored.dtype, stored.shape[1:]) != (first.dtype, first.shape[1:]):
            raise UserError(
                f"{pieces[0].file.path} keeps {escaped(pieces[0].key)} as {first.dtype} {list(first.shape)} and "
                f"{escaped(one.key)} as {stored.dtype} {list(stored.shape)}, which a single file holds as one matrix.",
                fix="save the model in one dtype first.",
            )


def imported(
    weights: Mapping[str, Weight], table: RowTable, dtype: str | None, width: int, is_vae: bool
) -> Iterator[NewTensor]:
    """The inverse of `exported`. `weights`: by the single file's names; `width`: channels of all heads together."""
    for theirs, weight in weights.items():
        ours, stored = table.rows[theirs], weight.stored
        if theirs in table.swapped:
            yield _tensor(ours[0], stored.shape, _swapped(weight), stored.dtype, dtype)
            continue
        shape = stored.shape
        if is_vae and ".mid.attn_1." in theirs and len(shape) == 4:
            shape = shape[:2]  # diffusers has linear layers there
        if len(ours) == 1:
            yield _tensor(ours[0], shape, [weight.range], stored.dtype, dtype)
            continue
        start = 0
        for name, length in zip(ours, _lengths(weight, len(ours), width), strict=True):
            rows = Weight(weight.file, weight.key, (length, *shape[1:]), rows=(start, start + length))
            yield _tensor(name, rows.shape, [rows.range], stored.dtype, dtype)
            start += length


def _lengths(weight: Weight, count: int, width: int) -> list[int]:
    """Rows of each of the matrices that stand in one: queries, keys and values are as wide as all heads together."""
    total = weight.stored.shape[0] if weight.stored.shape else 0
    rest = total - width * (count - 1)
    if rest <= 0 or (count == 3 and rest != width):
        raise UserError(
            f"{weight.file.path} holds {escaped(weight.key)} with {total} rows, which {count} matrices of {width} "
            "do not make.",
            fix="the configs are another model's, or the file is damaged: take another copy.",
        )
    return [width] * (count - 1) + [rest]


def _tensor(
    name: str, shape: tuple[int, ...], ranges: Iterable[ByteRange], stored: str, wanted: str | None
) -> NewTensor:
    target = target_dtype(stored, wanted)
    if target == stored:
        return NewTensor.copied(name, stored, shape, ranges)
    return NewTensor(name, target, shape, partial(_cast, tuple(ranges), name, stored, target))


def _cast(ranges: Sequence[ByteRange], name: str, stored: str, target: str) -> Iterator[bytes]:
    for one in ranges:
        yield from cast_chunks(one.chunks(), name, stored, target)


def _swapped(weight: Weight) -> list[ByteRange]:
    """Both halves of the rows, the second first."""
    rows = weight.stored.shape[0] if weight.stored.shape else 0
    if rows % 2:
        raise UserError(
            f"{weight.file.path} holds {escaped(weight.key)} with {rows} rows, which have no halves.",
            fix="take another copy of the model.",
        )
    places = ((rows // 2, rows), (0, rows // 2))
    return [Weight(weight.file, weight.key, weight.shape, rows=place).range for place in places]


def unit_matrix(name: str, width: int, dtype: str) -> NewTensor:
    """Ones on the diagonal; in half precision where `dtype` is none that a model computes in."""
    dtype = dtype if dtype in ONES else "F16"
    one = ONES[dtype]
    zero = bytes(len(one))

    def rows() -> Iterator[bytes]:
        return (zero * row + one + zero * (width - 1 - row) for row in range(width))

    return NewTensor(name, dtype, (width, width), rows)
