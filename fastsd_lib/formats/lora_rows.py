"""A LoRA of a layer that holds several others' rows, taken apart and put together: SD 3's and Flux' fused projections.

Kohya trains the original layer, which makes query, key and value at once; diffusers has three layers. Every way here is
exact: bytes are cut, joined, or filled up with zeros, and no number is computed. A matrix product does not change when

- the rows of `up` are cut and every part takes the whole `down` with it (one rank for all parts), or
- the parts' own `down` are stacked and their `up` stand on the diagonal, zeros beside them (the ranks add up).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE, ByteRange, NewTensor
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.lora_layers import Layer


def taken_apart(
    layer: Layer, sizes: Sequence[int], named: Path, ranks: Sequence[int] | None = None
) -> list[Layer | None]:
    """The layers whose rows stand in `layer`; None for a part that it does not change.

    `sizes`: the parts' shares of the rows. `ranks`: the ranks that the parts brought along when they were put together;
    without them, equal ranks are looked for, as sd-scripts writes them (split_qkv).
    """
    up, down = layer.tensors["up"], layer.tensors["down"]
    rows = _rows_of_parts(layer, sizes, named)
    columns = _columns(layer, rows, ranks)  # None: every part takes the whole `down`
    parts: list[Layer | None] = []
    first = 0
    for number, count in enumerate(rows):
        more = {}
        if "dora" in layer.tensors:
            more["dora"] = _row_range(layer.tensors["dora"], first, first + count)
        piece = _row_range(up, first, first + count)
        if columns is None:
            parts.append(Layer(layer.name, {"down": down, "up": piece} | more, layer.alpha))
        elif columns[number] == columns[number + 1]:
            parts.append(None)
        else:
            left, right = columns[number], columns[number + 1]
            own = {"down": _row_range(down, left, right), "up": _column_range(piece, left, right)}
            alpha = Fraction(layer.scale_alpha) * (right - left) / layer.rank
            parts.append(Layer(layer.name, own | more, float(alpha)))
        first += count
    return parts


def _rows_of_parts(layer: Layer, sizes: Sequence[int], named: Path) -> list[int]:
    total = layer.tensors["up"].shape[0]
    if total % sum(sizes):
        raise UserError(
            f"{named} holds {layer.name} with {total} rows, which do not come apart into shares of {list(sizes)}.",
            fix="take a LoRA that was made for this model.",
        )
    return [total // sum(sizes) * size for size in sizes]


def _columns(layer: Layer, rows: Sequence[int], ranks: Sequence[int] | None) -> list[int] | None:
    """Where each part's columns begin, and where the last ends, if `up` has numbers on its diagonal alone."""
    rank = layer.rank
    told = ranks is not None
    if not told and rank % len(rows) == 0:
        ranks = [rank // len(rows)] * len(rows)
    if ranks is None or sum(ranks) != rank or len(ranks) != len(rows):
        return None
    bounds = [sum(ranks[:number]) for number in range(len(ranks) + 1)]
    for number in range(len(rows)):
        share = Fraction(layer.scale_alpha) * (bounds[number + 1] - bounds[number]) / rank
        if Fraction(float(share)) != share:
            return None  # the part's alpha would be rounded
    return bounds if _is_diagonal(layer.tensors["up"], rows, bounds, told) else None


def _is_diagonal(up: NewTensor, rows: Sequence[int], bounds: Sequence[int], anything: bool) -> bool:
    """Whether all bytes beside the blocks are zero; unless `anything` will do, one within must not be."""
    width = BYTES_PER_VALUE[up.dtype]
    lines = _lines(up.chunks(), up.shape[1] * width)
    for number, count in enumerate(rows):
        left, right = bounds[number] * width, bounds[number + 1] * width
        for _ in range(count):
            line = next(lines)
            if line[:left].strip(b"\0") or line[right:].strip(b"\0"):
                return False
            anything = anything or bool(line[left:right].strip(b"\0"))
    return anything


def put_together(parts: Sequence[Layer | None], sizes: Sequence[int], named: Path) -> tuple[Layer, list[int]]:
    """One layer with the rows of all `parts`, and the rank that each brought: empty when they share their `down`.

    A part that is None changes nothing. UserError when the parts differ in what one layer has once.
    """
    there = [part for part in parts if part is not None]
    rows = _sizes(parts, sizes, named)
    _refuse_differences(there, named)
    if len(there) == len(parts) and _shares_down(there):
        tensors = {"down": there[0].tensors["down"], "up": _stacked([one.tensors["up"] for one in there])}
        if "dora" in there[0].tensors:
            tensors["dora"] = _stacked([one.tensors["dora"] for one in there])
        return Layer(there[0].name, tensors, there[0].alpha), []
    if any("dora" in one.tensors for one in there) and len(there) < len(parts):
        raise UserError(
            f"{named} is a DoRA that changes {there[0].name} without the layers that kohya's names join with it.",
            fix="keep it under peft's names.",
        )
    ranks = [part.rank if part else 0 for part in parts]
    tensors = {
        "down": _stacked([one.tensors["down"] for one in there]),
        "up": _diagonal(parts, rows, ranks, there[0].tensors["up"].dtype),
    }
    if "dora" in there[0].tensors:
        tensors["dora"] = _stacked([one.tensors["dora"] for one in there])
    alpha = Fraction(there[0].scale_alpha) / there[0].rank * sum(ranks)
    return Layer(there[0].name, tensors, float(alpha)), ranks


def turned(layer: Layer, pattern: str) -> Layer:
    """With shift and scale in the other side's order, where the sides differ."""
    up, down = layer.tensors["up"], layer.tensors["down"]
    if pattern in lora_names.SWAPPED or (
        pattern in lora_names.SWAPPED_IF_TWICE and up.shape[0] == 2 * down.shape[1]
    ):
        turned = {
            role: _halves_swapped(layer.tensors[role]) for role in ("up", "dora") if role in layer.tensors
        }
        return replace(layer, tensors={**layer.tensors, **turned})
    return layer


def _sizes(parts: Sequence[Layer | None], sizes: Sequence[int], named: Path) -> list[int]:
    known = {
        Fraction(part.tensors["up"].shape[0], size)
        for part, size in zip(parts, sizes, strict=True)
        if part is not None
    }
    if len(known) != 1 or (unit := known.pop()).denominator != 1:
        first = next(part for part in parts if part)
        raise UserError(
            f"{named} holds {first.name} and its neighbours with rows that are no shares of {list(sizes)}.",
            fix="take a LoRA that was made for this model.",
        )
    return [int(unit) * size for size in sizes]


def _refuse_differences(parts: Sequence[Layer], named: Path) -> None:
    first = parts[0]
    scale = Fraction(first.scale_alpha) / first.rank
    for part in parts:
        if Fraction(part.scale_alpha) / part.rank != scale:
            raise UserError(
                f"{named} scales {first.name} by {float(scale):g} and {part.name} by "
                f"{part.scale_alpha / part.rank:g}; kohya's names join both layers, with one scale.",
                fix="keep it under peft's names.",
            )
        for role, tensor in first.tensors.items():
            own = part.tensors.get(role)
            if (
                own is None
                or own.dtype != tensor.dtype
                or (role == "down" and own.shape[1:] != tensor.shape[1:])
            ):
                raise UserError(
                    f"{named} holds {first.name} and {part.name} in different types or shapes; kohya's names join them.",
                    fix="keep it under peft's names.",
                )


def _shares_down(parts: Sequence[Layer]) -> bool:
    first = parts[0].tensors["down"]
    if any(one.tensors["down"].shape != first.shape for one in parts):
        return False
    return len({_digest(one.tensors["down"]) for one in parts}) == 1


def _digest(tensor: NewTensor) -> bytes:
    digest = sha256()
    for chunk in tensor.chunks():
        digest.update(chunk)
    return digest.digest()


def _row_range(tensor: NewTensor, first: int, last: int) -> NewTensor:
    """The rows `first` up to `last`, where they lie."""
    shape = (last - first, *tensor.shape[1:])
    row = tensor.size_bytes // tensor.shape[0]
    if not tensor.ranges:  # scattered in a pickle
        return NewTensor(
            tensor.name, tensor.dtype, shape, lambda: [b"".join(tensor.chunks())[first * row : last * row]]
        )
    (whole,) = tensor.ranges
    part = ByteRange(whole.path, whole.start + first * row, whole.start + last * row)
    return NewTensor.copied(tensor.name, tensor.dtype, shape, [part])


def _halves_swapped(tensor: NewTensor) -> NewTensor:
    """The second half of the rows before the first."""
    middle = tensor.shape[0] // 2
    return _stacked([_row_range(tensor, middle, tensor.shape[0]), _row_range(tensor, 0, middle)])


def _stacked(tensors: Sequence[NewTensor]) -> NewTensor:
    first = tensors[0]
    shape = (sum(one.shape[0] for one in tensors), *first.shape[1:])
    if not all(one.ranges for one in tensors):
        return NewTensor(
            first.name, first.dtype, shape, lambda: (chunk for one in tensors for chunk in one.chunks())
        )
    return NewTensor.copied(first.name, first.dtype, shape, [part for one in tensors for part in one.ranges])


def _column_range(tensor: NewTensor, left: int, right: int) -> NewTensor:
    width = BYTES_PER_VALUE[tensor.dtype]

    def chunks() -> Iterator[bytes]:
        lines = _lines(tensor.chunks(), tensor.shape[1] * width)
        yield from _gathered(line[left * width : right * width] for line in lines)

    return NewTensor(tensor.name, tensor.dtype, (tensor.shape[0], right - left), chunks)


def _diagonal(
    parts: Sequence[Layer | None], rows: Sequence[int], ranks: Sequence[int], dtype: str
) -> NewTensor:
    width, total = BYTES_PER_VALUE[dtype], sum(ranks)

    def lines() -> Iterator[bytes]:
        for number, part in enumerate(parts):
            before = bytes(sum(ranks[:number]) * width)
            after = bytes(sum(ranks[number + 1 :]) * width)
            if part is None:
                yield from (bytes(total * width) for _ in range(rows[number]))
            else:
                for line in _lines(part.tensors["up"].chunks(), ranks[number] * width):
                    yield before + line + after

    name = next(part for part in parts if part).tensors["up"].name
    return NewTensor(name, dtype, (sum(rows), total), lambda: _gathered(lines()))


def _lines(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The stream in pieces of `size` bytes: rows of a matrix."""
    held = b""
    for chunk in chunks:
        held += chunk
        whole = len(held) // size * size
        yield from (held[start : start + size] for start in range(0, whole, size))
        held = held[whole:]


def _gathered(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Short pieces as chunks of about a mebibyte."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
