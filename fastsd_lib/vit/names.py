"""Millions of names in a file: mapped into memory, so that opening them takes no time and hardly any memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fastsd_lib.vit.sealed_files import NpyWriter, open_array

_CODING = {"encoding": "utf-8", "errors": "surrogatepass"}  # the name of a file need not be Unicode
_BLOCK = 65536


class Names(Sequence[str]):
    """Reads like a list of strings. Two `.npy` files: the letters of all of them, and where each ends."""

    def __init__(self, letters: np.ndarray, ends: np.ndarray) -> None:
        self._letters, self._ends = letters, ends

    @classmethod
    def open(cls, letters: Path, ends: Path) -> Names:
        """ValueError where the files do not belong together."""
        names = cls(open_array(letters), open_array(ends))
        if len(names) and (names._ends[-1] != len(names._letters) or names._ends[0] < 0):
            raise ValueError("names are cut off")
        return names

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row):  # of a list: numbers from either end, and slices
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        row = range(len(self))[row]
        begin = int(self._ends[row - 1]) if row else 0
        return bytes(self._letters[begin : int(self._ends[row])]).decode(**_CODING)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _BLOCK):
            ends = [int(end) for end in self._ends[first : first + _BLOCK]]
            begin = int(self._ends[first - 1]) if first else 0
            letters = bytes(self._letters[begin : ends[-1]])
            for start, end in zip([begin, *ends[:-1]], ends, strict=True):
                yield letters[start - begin : end - begin].decode(**_CODING)


def write_names(names: Sequence[str], letters: Path, ends: Path) -> None:
    lengths = np.fromiter((len(name.encode(**_CODING)) for name in names), np.int64, len(names))
    np.save(ends, np.cumsum(lengths))
    with NpyWriter(letters, (int(lengths.sum()),), np.uint8) as writer:
        for first in range(0, len(names), _BLOCK):
            text = "".join(names[first : first + _BLOCK]).encode(**_CODING)
            writer.write(np.frombuffer(text, np.uint8))
        writer.close()
