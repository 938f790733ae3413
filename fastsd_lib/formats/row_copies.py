"""The tensors of a part in their other layout, as byte ranges of the file where they lie.

Nothing is read before somebody writes it, and nothing is computed unless another dtype is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.plans import new_tensor
from fastsd_lib.formats.row_tables import RowTable
from fastsd_lib.formats.stored_weight import Weight

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
        shape = first.shape
        if len(pieces) > 1:
            shape = (sum(one.shape[0] for one in pieces), *shape[1:])
        if theirs in table.swapped:
            pieces = _swapped(pieces[0])
        if is_vae and ".mid.attn_1." in theirs and theirs.endswith(".weight") and len(shape) == 2:
            shape = (*shape, 1, 1)  # single files have 1x1 convolutions there
        yield new_tensor(prefix + theirs, pieces, dtype, shape)


def _check_alike(pieces: Sequence[Weight]) -> None:
    """UserError for matrices that are to become one but differ in width."""
    first = pieces[0].stored
    for one in pieces[1:]:
        stored = one.stored
        if not stored.shape or stored.shape[1:] != first.shape[1:]:
            raise UserError(
                f"{pieces[0].file.path} keeps {escaped(pieces[0].key)} as {list(first.shape)} and {escaped(one.key)} as "
                f"{list(stored.shape)}, which a single file holds as one matrix.",
                fix="take another copy of the model.",
            )


def imported(
    weights: Mapping[str, Weight], table: RowTable, dtype: str | None, width: int, is_vae: bool
) -> Iterator[NewTensor]:
    """The inverse of `exported`. `weights`: by the single file's names; `width`: channels of all heads together."""
    for theirs, weight in weights.items():
        ours, stored = table.rows[theirs], weight.stored
        if theirs in table.swapped:
            yield new_tensor(ours[0], _swapped(weight), dtype, stored.shape)
            continue
        shape = stored.shape
        if is_vae and ".mid.attn_1." in theirs and len(shape) == 4:
            shape = shape[:2]  # diffusers has linear layers there
        if len(ours) == 1:
            yield new_tensor(ours[0], (weight,), dtype, shape)
            continue
        start = 0
        for name, length in zip(ours, _lengths(weight, len(ours), width), strict=True):
            yield new_tensor(name, (_rows(weight, start, start + length),), dtype)
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


def _swapped(weight: Weight) -> list[Weight]:
    """Both halves of the rows, the second first."""
    rows = weight.stored.shape[0] if weight.stored.shape else 0
    if rows % 2:
        raise UserError(
            f"{weight.file.path} holds {escaped(weight.key)} with {rows} rows, which have no halves.",
            fix="take another copy of the model.",
        )
    return [_rows(weight, rows // 2, rows), _rows(weight, 0, rows // 2)]


def _rows(weight: Weight, first: int, last: int) -> Weight:
    return Weight(weight.file, weight.key, (last - first, *weight.stored.shape[1:]), rows=(first, last))


def unit_matrix(name: str, width: int, dtype: str) -> NewTensor:
    """Ones on the diagonal; in half precision where `dtype` is none that a model computes in."""
    dtype = dtype if dtype in ONES else "F16"
    one = ONES[dtype]
    zero = bytes(len(one))

    def rows() -> Iterator[bytes]:
        return (zero * row + one + zero * (width - 1 - row) for row in range(width))

    return NewTensor(name, dtype, (width, width), rows)
