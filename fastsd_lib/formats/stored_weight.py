"""Where one tensor of a model lies on disk, and how it has to be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from fastsd_lib.core.tensor_file import BYTES_PER_VALUE, ByteRange, Tensor, TensorFile


@dataclass(frozen=True)
class Weight:
    """One tensor on disk. `shape` is the one diffusers wants, which a single file may store differently."""

    file: TensorFile
    key: str  # its name in that file
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None  # of the stored tensor, where one holds several
    transposed: bool = False  # the stored tensor has its two sides the other way round

    @property
    def stored(self) -> Tensor:
        return self.file.tensors[self.key]

    @property
    def in_a_row(self) -> bool:
        """Whether its bytes can be copied as they lie; a view within a .ckpt may be scattered."""
        stored = self.stored
        return not self.transposed and stored.size_bytes == prod(stored.shape) * BYTES_PER_VALUE[stored.dtype]

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the tensor as `shape` wants them, a mebibyte at a time; a scattered one all at once."""
        if self.in_a_row:
            yield from self.range.chunks()
            return
        data = b"".join(self.file.chunks(self.key))
        if self.transposed:
            data = _transposed(data, self.stored)
        first, last = self._span(len(data))
        yield data[first:last]

    @property
    def range(self) -> ByteRange:
        """Where its bytes lie, if they do `in_a_row`: all of the stored tensor, or the rows that are meant."""
        stored = self.stored
        first, last = self._span(stored.size_bytes)
        return ByteRange(self.file.path, stored.start + first, stored.start + last)

    def _span(self, whole_bytes: int) -> tuple[int, int]:
        if self.rows is None:
            return 0, whole_bytes
        row_bytes = whole_bytes // max(self.stored.shape[0], 1)
        return self.rows[0] * row_bytes, self.rows[1] * row_bytes


# Diffusers' name of a tensor -> where it lies. CLIP's names always begin with "text_model.", as before
# transformers 5.6, the version that leaves the word out on disk.
Weights = dict[str, Weight]


def _transposed(data: bytes, stored: Tensor) -> bytes:
    import numpy as np

    rows, columns = stored.shape
    values = np.frombuffer(data, dtype=f"V{BYTES_PER_VALUE[stored.dtype]}").reshape(rows, columns)
    return values.T.tobytes()
