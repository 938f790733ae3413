"""Floating-point tensors from one width to another, as bytes: what a conversion needs and no torch.

Rounding is to the nearest, ties to even, as torch does it; tests compare bit for bit. numpy's own casts to and from
fp16 take the values one by one; here they are done with whole rows of integers, some two times as fast.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from fastsd_lib.core.byte_range import MADE_FROM_BYTES, ByteRange, Made
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    import numpy as np

# What the command line and the recipes call a width -> what a safetensors header calls it.
DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
FLOATS = ("F16", "BF16", "F32")  # what models are computed in
READABLE = (*FLOATS, "F64", "F8_E4M3", "F8_E5M2")  # what can be brought to one of them

BLOCK_VALUES = 1 << 18  # worked on at once: two threads hinder each other with shorter rows
_WORTH_A_THREAD = 1 << 18  # bytes


def target_dtype(source: str, wanted: str | None) -> str:
    """The header dtype after conversion: only floating-point weights change, counters and ids never."""
    if wanted is None or source not in READABLE:
        return source
    if wanted not in DTYPES:
        raise UserError(
            f"No dtype {wanted!r} (there: {', '.join(DTYPES)}).", fix="take fp16 to share a model."
        )
    return DTYPES[wanted]


def cast_pieces(
    lying: ByteRange, name: str, source: str, target: str, check: Callable[[memoryview], None] | None = None
) -> Iterator[Made]:
    """A stretch of weights as pieces that are cast when they are written; `check` sees what comes out.

    `source` one of READABLE, `target` one of FLOATS. UserError, then, for a weight that is too large for the target.
    """

    def make(raw: memoryview) -> memoryview:
        result = _cast(raw, name, source, target)
        if check is not None:
            check(result)
        return result

    for start in range(lying.start, lying.end, MADE_FROM_BYTES):
        piece = ByteRange(lying.path, start, min(start + MADE_FROM_BYTES, lying.end))
        values = piece.size_bytes // BYTES_PER_VALUE[source]
        yield Made(piece, values * BYTES_PER_VALUE[target], make)


def cast_chunks(chunks: Iterable[bytes], name: str, source: str, target: str) -> Iterator[memoryview]:
    """Convert a stream of bytes, in two threads; UserError when a weight is too large for the target.

    `source` one of READABLE, `target` one of FLOATS; a chunk holds whole values. What numbers are not (NaN) and what
    is infinite already stays so.
    """
    waiting: deque[Future[memoryview]] = deque()
    for chunk in chunks:
        if len(chunk) < _WORTH_A_THREAD and not waiting:
            yield _cast(chunk, name, source, target)
            continue
        waiting.append(_threads(os.getpid()).submit(_cast, chunk, name, source, target))
        if len(waiting) > 2:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@cache
def _threads(process: int) -> ThreadPoolExecutor:  # a forked process has none of its parent's
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(2, thread_name_prefix="cast")


def _cast(chunk: bytes | memoryview, name: str, source: str, target: str) -> memoryview:
    import numpy as np

    raw = np.frombuffer(chunk, dtype=np.uint8)
    values = to_float32(raw, source)
    result, special = _narrowed(values, target)
    if source == "F64" and (np.isinf(values) & np.isfinite(raw.view("<f8"))).any():
        raise UserError(
            f"The weight {name} holds values beyond 3.4e38, which no narrower width can store.",
            fix="the model is damaged, or keep its widths (no dtype).",
        )
    if special and np.isfinite(values[np.isinf(result)]).any():
        raise UserError(
            f"The weight {name} holds values beyond 65504, which fp16 cannot store.",
            fix="take bf16 or fp32.",
        )
    return memoryview(result.view(np.uint8))


def to_float32(raw: np.ndarray, source: str) -> np.ndarray:
    """Bytes of one of READABLE as float32 values, in one row."""
    import numpy as np

    if source == "BF16":  # the upper half of a float32
        bits = raw.view("<u2").astype(np.uint32)
        return np.left_shift(bits, 16, out=bits).view(np.float32)
    if source == "F16":
        return _in_blocks(raw.view("<u2"), np.float32, _widened)[0]
    if source == "F8_E5M2":  # the upper half of a half
        return to_float32(np.left_shift(raw.astype("<u2"), 8).view(np.uint8), "F16")
    if source == "F8_E4M3":
        return np.take(_quarter_values(), raw)
    with np.errstate(over="ignore"):  # the caller names the weight
        return raw.view("<f8" if source == "F64" else "<f4").astype(np.float32, copy=False)


def from_float32(values: np.ndarray, target: str) -> np.ndarray:
    """float32 values as one of FLOATS, for their bytes; what F16 cannot store becomes infinite."""
    return _narrowed(values, target)[0]


def _narrowed(values: np.ndarray, target: str) -> tuple[np.ndarray, bool]:
    """The same, and whether a value came out as infinite or no number (asked for F16 alone)."""
    import numpy as np

    if target == "BF16":
        return _in_blocks(values.view(np.uint32), np.uint16, _rounded_to_bf16)[0], False
    if target == "F16":
        halves, special = _in_blocks(values, np.uint16, _rounded_to_f16)
        return halves.view("<f2"), special
    return values.astype("<f4", copy=False), False


def _in_blocks(
    given: np.ndarray, kind: type, work: Callable[[np.ndarray, np.ndarray], bool]
) -> tuple[np.ndarray, bool]:
    """`work` block by block into a new array; whether one of them was special."""
    import numpy as np

    flat, special = given.reshape(-1), False
    result = np.empty(flat.size, kind)
    for start in range(0, flat.size, BLOCK_VALUES):
        end = min(start + BLOCK_VALUES, flat.size)
        special |= work(flat[start:end], result[start:end])
    return result.reshape(given.shape), special


_kept = threading.local()


def _scratch(count: int) -> list[np.ndarray]:
    """Two rows of this thread's to calculate in, and one that holds the exponent of fp16's least normal number."""
    import numpy as np

    if not hasattr(_kept, "rows"):
        _kept.rows = [np.empty(BLOCK_VALUES, np.uint32), np.empty(BLOCK_VALUES, np.uint32)]
        _kept.rows.append(np.full(BLOCK_VALUES, (127 - 14) << 23, np.uint32))
    return [row[:count] for row in _kept.rows]


def _rounded_to_f16(values: np.ndarray, out: np.ndarray) -> bool:
    """Let the processor round: |x| + 2^(e+13) has no bits below fp16's last one for x, where e is x's exponent.

    What it adds to the bits of 2^(e+13) is then |x| in units of that last bit; fp16's exponent goes on top.
    """
    import numpy as np

    bits = values.view(np.uint32)
    magic, work, least = _scratch(values.size)
    sums = work.view(np.float32)
    np.bitwise_and(bits, 0x7F800000, out=magic)
    if magic.max(initial=0) >= (127 + 15) << 23:  # near the largest, too large, or no number: left to numpy
        with np.errstate(over="ignore", invalid="ignore"):
            out[:] = values.astype(np.float16).view(np.uint16)
        return True
    np.abs(values, out=sums)
    np.maximum(magic, least, out=magic)  # below it fp16's last bit is worth the same everywhere
    np.add(magic, 13 << 23, out=magic)
    np.add(sums, magic.view(np.float32), out=sums)
    # The lower 16 bits now count x in units of that bit; the exponent has no bits there and need not be taken off.
    np.right_shift(magic, 13, out=magic)
    np.add(work, magic, out=work)
    np.right_shift(bits, 16, out=magic)
    np.bitwise_and(magic, 0x8000, out=magic)
    np.add(work, magic, out=work)
    np.copyto(out, work, casting="unsafe")
    np.subtract(out, (127 - 14 + 13 << 10) & 0xFFFF, out=out)
    return False


def _rounded_to_bf16(bits: np.ndarray, out: np.ndarray) -> bool:
    import numpy as np

    work, odd, _ = _scratch(bits.size)
    np.right_shift(bits, 16, out=odd)
    np.bitwise_and(odd, 1, out=odd)
    np.add(bits, 0x7FFF, out=work)
    np.add(work, odd, out=work)
    np.right_shift(work, 16, out=work)
    np.copyto(out, work, casting="unsafe")
    nan = np.isnan(bits.view(np.float32))
    if nan.any():  # rounding could carry it into infinity
        out[nan] = 0x7FC0
    return False


def _widened(halves: np.ndarray, out: np.ndarray) -> bool:
    """Exponent and fraction moved to their places, then 2^112 times: exact, for subnormal numbers too."""
    import numpy as np

    sign, work, _ = _scratch(halves.size)
    np.copyto(sign, halves, casting="unsafe")
    np.bitwise_and(sign, 0x7FFF, out=work)
    if work.max(initial=0) >= 0x7C00:  # infinite or no number
        out[:] = halves.view(np.float16).astype(np.float32)
        return True
    np.left_shift(work, 13, out=work)
    np.multiply(work.view(np.float32), np.float32(2.0**112), out=work.view(np.float32))
    np.left_shift(sign, 16, out=sign)
    np.bitwise_and(sign, 0x80000000, out=sign)
    np.bitwise_or(work, sign, out=out.view(np.uint32))
    return False


@cache
def _quarter_values() -> np.ndarray:
    """What the 256 codes of F8_E4M3 mean: 4 bits of exponent, 3 of fraction, no infinity (arXiv:2209.05433)."""
    import numpy as np

    codes = np.arange(256)
    exponent, fraction = codes >> 3 & 15, codes & 7
    normal = (1 + fraction / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent > 0, normal, fraction / 8 * 2.0**-6)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)
