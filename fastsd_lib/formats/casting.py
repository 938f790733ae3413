"""Floating-point tensors from one width to another, as bytes: what a conversion needs and no torch.

Rounding is to the nearest, ties to even, as torch does it; a test compares bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

# What the command line and the recipes call a width -> what a safetensors header calls it.
DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
FLOATS = ("F16", "BF16", "F32")


def target_dtype(source: str, wanted: str | None) -> str:
    """The header dtype after conversion: only floating-point weights change, counters and ids never."""
    if wanted is None or source not in FLOATS:
        return source
    if wanted not in DTYPES:
        raise UserError(
            f"No dtype {wanted!r} (there: {', '.join(DTYPES)}).", fix="take fp16 to share a model."
        )
    return DTYPES[wanted]


def cast_chunks(chunks: Iterable[bytes], name: str, source: str, target: str) -> Iterator[bytes]:
    """Convert a stream of bytes; UserError when a weight is too large for the target."""
    import numpy as np

    for chunk in chunks:  # a chunk is a mebibyte: whole values always
        values = to_float32(np.frombuffer(chunk, dtype=np.uint8), source)
        result = from_float32(values, target)
        if target == "F16" and np.isinf(result).any() and np.isfinite(values[np.isinf(result)]).any():
            raise UserError(
                f"The weight {name} holds values beyond 65504, which fp16 cannot store.",
                fix="take bf16 or fp32.",
            )
        yield result.tobytes()


def to_float32(raw: np.ndarray, source: str) -> np.ndarray:
    """Bytes of one of FLOATS as float32 values, in one row."""
    import numpy as np

    if source == "BF16":  # the upper half of a float32
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f2" if source == "F16" else "<f4").astype(np.float32, copy=False)


def from_float32(values: np.ndarray, target: str) -> np.ndarray:
    """float32 values as one of FLOATS, for their bytes; what F16 cannot store becomes infinite."""
    import numpy as np

    if target == "BF16":
        bits = values.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
        return np.where(
            np.isnan(values), np.uint16(0x7FC0), rounded
        )  # rounding could carry a NaN into infinity
    with np.errstate(over="ignore"):  # the caller names the weight
        return values.astype("<f2" if target == "F16" else "<f4", copy=False)
