"""Ways to find likely neighbours without comparing with every vector; the vectors themselves decide afterwards.

Each class offers: `build(vectors, seed, held)`, `settings(count)` that are tried from cheap to dear,
`candidates(queries, allowed, least)` -> rows for each query, `complete(vectors, held)` once it is tuned (only then a graph
gets the rows that were held out), `add(prepared)`, `save(folder, state)` -> names, `load(files)`.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import require
from fastsd_lib.vit.exact_search import BLOCK_ROWS, Vectors
from fastsd_lib.vit.sealed_files import open_array

_FEW = 100  # candidates that are looked at, at least
_SCAN_ROWS = 1 << 15  # of 8-byte words: what a core's cache holds


class Signs:
    """One bit per number: is it above the mean? Rows with the fewest differing bits are candidates.

    The bits of a random hyperplane keep angles (Charikar 2002, "Similarity estimation techniques from rounding
    algorithms"); here the planes are the axes, through the mean of the vectors. Nothing is trained, D / 8 bytes a row.
    """

    name = "signs"

    def __init__(self) -> None:
        self.mean = np.zeros(0, np.float32)
        self.codes = np.zeros((0, 0), np.uint64)  # (N, words)
        self.width = 400  # candidates per query
        self._scan: tuple[Any, Any] | None = None  # (the allowed rows that it is for, scanner)

    def build(self, vectors: Vectors, seed: int, held: np.ndarray) -> None:
        total = np.zeros(vectors.dimension, np.float64)
        for begin, block in vectors.blocks():
            total += vectors.prepared(block, vectors.squares[begin : begin + len(block)]).sum(
                axis=0, dtype=np.float64
            )
        self.mean = (total / max(len(vectors), 1)).astype(np.float32)
        self.codes = np.zeros((0, (vectors.dimension + 63) // 64), np.uint64)
        parts = [
            self._encoded(vectors.prepared(block, vectors.squares[begin : begin + len(block)]))
            for begin, block in vectors.blocks()
        ]
        self.codes = np.concatenate([self.codes, *parts])

    def complete(self, vectors: Vectors, held: np.ndarray) -> None:
        self._scan = None  # what was held out while tuning may be found from now on

    def add(self, prepared: np.ndarray) -> None:
        self.codes = np.concatenate([self.codes, self._encoded(prepared)])
        self._scan = None

    def settings(self, count: int) -> Iterator[dict[str, int]]:
        for width in _doubled(_FEW, _most(count)):
            yield {"width": width}

    def candidates(self, queries: np.ndarray, allowed: np.ndarray | None, least: int) -> list[np.ndarray]:
        if self._scan is None or self._scan[0] is not allowed:
            codes = self.codes if allowed is None else self.codes[allowed]
            self._scan = (allowed, (_FaissScan if _has_faiss() else _NumpyScan)(codes))
        scan = self._scan[1]
        rows = scan.nearest(self._encoded(queries), min(max(self.width, least), scan.count))
        return rows if allowed is None else [allowed[one] for one in rows]

    def save(self, folder: Path, state: str) -> list[str]:
        names = [f"codes-{state}.npy", f"mean-{state}.npy"]
        np.save(folder / names[0], self.codes)
        np.save(folder / names[1], self.mean)
        return names

    def load(self, files: Sequence[Path]) -> None:
        self.codes, self.mean = open_array(files[0]), open_array(files[1])

    def _encoded(self, prepared: np.ndarray) -> np.ndarray:
        bits = np.packbits(prepared > self.mean, axis=1, bitorder="little")
        padded = np.zeros((len(bits), 8 * self.codes.shape[1]), np.uint8)
        padded[:, : bits.shape[1]] = bits
        return padded.view(np.uint64)


class _FaissScan:
    def __init__(self, codes: np.ndarray) -> None:
        import faiss

        self.count = len(codes)
        self._index = faiss.IndexBinaryFlat(64 * codes.shape[1])
        self._index.add(np.ascontiguousarray(codes).view(np.uint8))

    def nearest(self, codes: np.ndarray, count: int) -> list[np.ndarray]:
        return list(self._index.search(np.ascontiguousarray(codes).view(np.uint8), count)[1])


class _NumpyScan:
    """The same without faiss, about ten times slower: words lie side by side so that numpy counts a whole column at once."""

    def __init__(self, codes: np.ndarray) -> None:
        self.count = len(codes)
        self._columns = np.ascontiguousarray(codes.T)  # (words, N)

    def nearest(self, codes: np.ndarray, count: int) -> list[np.ndarray]:
        return [self._nearest(code, count) for code in codes]

    def _nearest(self, code: np.ndarray, count: int) -> np.ndarray:
        differing = np.zeros(self.count, np.uint16)
        for begin in range(0, self.count, _SCAN_ROWS):
            for word, column in zip(code, self._columns[:, begin : begin + _SCAN_ROWS], strict=True):
                differing[begin : begin + _SCAN_ROWS] += np.bitwise_count(column ^ word)
        if count >= self.count:
            return np.arange(self.count)
        return np.argpartition(differing, count - 1)[:count]


class _Faiss(ABC):
    """What the two kinds that faiss holds have in common: its index in a file, a mask of rows, rows of -1."""

    name = ""

    def __init__(self) -> None:
        require("faiss", group="vit")
        self.index: Any = None
        self.width = _FEW

    def add(self, prepared: np.ndarray) -> None:
        self.index.add(np.ascontiguousarray(prepared, np.float32))

    def complete(self, vectors: Vectors, held: np.ndarray) -> None:  # noqa: B027, the usual case
        """All rows are in it already."""

    def candidates(self, queries: np.ndarray, allowed: np.ndarray | None, least: int) -> list[np.ndarray]:
        selector = None
        if allowed is not None:
            import faiss

            mask = np.zeros(self.index.ntotal, bool)
            mask[allowed] = True
            packed = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(packed)
        count = min(max(self.width, least), self.index.ntotal)
        found = self.index.search(
            np.ascontiguousarray(queries), count, params=self._parameters(selector, count)
        )[1]
        return [rows[rows >= 0] for rows in found]

    def save(self, folder: Path, state: str) -> list[str]:
        import faiss

        faiss.write_index(self.index, str(folder / f"{self.name}-{state}.faiss"))
        return [f"{self.name}-{state}.faiss"]

    def load(self, files: Sequence[Path]) -> None:
        import faiss

        self.index = faiss.read_index(str(files[0]))

    @abstractmethod
    def _parameters(self, selector: Any, count: int) -> Any:
        """What faiss is to look at: the rows of `selector`, and how far it goes for `count` of them."""


class Ivf(_Faiss):
    """Vectors in cells around k-means centres, the nearest `probes` cells are scanned.

    Kept as one bit per number (RaBitQ: Gao and Long 2024), or as one byte (SQ8) where this faiss has no RaBitQ.
    """

    name = "ivf"

    def __init__(self) -> None:
        super().__init__()
        self.probes = 16

    def build(self, vectors: Vectors, seed: int, held: np.ndarray) -> None:
        import faiss

        cells = int(2 ** np.round(np.log2(max(np.sqrt(len(vectors)), 1))))
        metric = faiss.METRIC_L2 if vectors.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        code = "RaBitQ" if hasattr(faiss, "IndexIVFRaBitQ") else "SQ8"
        self.index = faiss.index_factory(vectors.dimension, f"IVF{cells},{code}", metric)
        self.index.cp.seed, self.index.cp.niter = seed, 10
        rows = np.random.default_rng(seed).choice(len(vectors), min(len(vectors), 64 * cells), replace=False)
        rows.sort()
        self.index.train(vectors.prepared(vectors.take(rows), vectors.squares[rows]))
        for begin, block in vectors.blocks():
            self.add(vectors.prepared(block, vectors.squares[begin : begin + len(block)]))

    def settings(self, count: int) -> Iterator[dict[str, int]]:
        for width in sorted({min(times * _FEW, _most(count)) for times in (1, 4, 16, 64)}):
            for probes in _doubled(1, self.index.nlist):
                yield {"width": width, "probes": probes}

    def _parameters(self, selector: Any, count: int) -> Any:
        import faiss

        return faiss.SearchParametersIVF(sel=selector, nprobe=min(self.probes, self.index.nlist))


class Hnsw(_Faiss):
    """A graph of near neighbours, walked greedily (Malkov and Yashunin 2018); vectors kept as one byte per number."""

    name = "hnsw"
    _LINKS, _BUILD_EFFORT = 16, 96

    def __init__(self) -> None:
        super().__init__()
        self.effort = 128
        self.order = np.zeros(0, np.int64)  # rows in the order in which they came into the graph

    def build(self, vectors: Vectors, seed: int, held: np.ndarray) -> None:
        import faiss

        metric = faiss.METRIC_L2 if vectors.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        self.index = faiss.index_factory(vectors.dimension, f"HNSW{self._LINKS},SQ8", metric)
        self.index.hnsw.efConstruction = self._BUILD_EFFORT
        rows = np.random.default_rng(seed).choice(len(vectors), min(len(vectors), 50_000), replace=False)
        rows.sort()
        self.index.train(vectors.prepared(vectors.take(rows), vectors.squares[rows]))
        self._enter(vectors, np.setdiff1d(np.arange(len(vectors)), held))

    def complete(self, vectors: Vectors, held: np.ndarray) -> None:
        self._enter(vectors, held)

    def add(self, prepared: np.ndarray) -> None:
        self.order = np.append(self.order, np.arange(len(self.order), len(self.order) + len(prepared)))
        super().add(prepared)

    def candidates(self, queries: np.ndarray, allowed: np.ndarray | None, least: int) -> list[np.ndarray]:
        if allowed is not None:
            allowed = np.flatnonzero(np.isin(self.order, allowed))
        return [self.order[places] for places in super().candidates(queries, allowed, least)]

    def save(self, folder: Path, state: str) -> list[str]:
        np.save(folder / f"hnsw-order-{state}.npy", self.order)
        return [*super().save(folder, state), f"hnsw-order-{state}.npy"]

    def load(self, files: Sequence[Path]) -> None:
        super().load(files)
        self.order = np.array(open_array(files[1]))

    def _enter(self, vectors: Vectors, rows: np.ndarray) -> None:
        for begin in range(0, len(rows), BLOCK_ROWS):
            some = rows[begin : begin + BLOCK_ROWS]
            self.order = np.append(self.order, some)
            super().add(vectors.prepared(vectors.take(some), vectors.squares[some]))

    def settings(self, count: int) -> Iterator[dict[str, int]]:
        for effort in _doubled(_FEW, min(count, 6400)):  # less than the width would be raised to it
            yield {"width": _FEW, "effort": effort}

    def _parameters(self, selector: Any, count: int) -> Any:
        import faiss

        return faiss.SearchParametersHNSW(sel=selector, efSearch=max(self.effort, count))


KINDS: dict[str, Any] = {kind.name: kind for kind in (Signs, Ivf, Hnsw)}


def _doubled(first: int, last: int) -> Iterator[int]:
    while first < last:
        yield first
        first *= 2
    yield last


def _most(count: int) -> int:
    """More candidates than this would be slower than comparing with all."""
    return min(count, max(10_000, count // 50))


def _has_faiss() -> bool:
    return importlib.util.find_spec("faiss") is not None
