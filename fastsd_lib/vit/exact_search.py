"""Nearest vectors by comparing with every one: the truth that every index is measured against.

Inside, likeness is a number that grows: the cosine, the dot product, or minus the squared distance. The vectors stay on
disk; a block at a time is multiplied with all queries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from fastsd_lib.core.errors import UserError

Metric = Literal["cosine", "dot", "l2"]
METRICS = ("cosine", "dot", "l2")
BLOCK_ROWS = 16384  # 48 MiB of 768 float32
_QUERIES_AT_ONCE = 256


class Vectors:
    """(N, D) vectors in one or several arrays, mapped or in memory, with what a metric needs to know of each."""

    def __init__(
        self, arrays: Sequence[np.ndarray], metric: Metric, squares: np.ndarray | None = None
    ) -> None:
        self.metric = metric
        self.arrays = list(arrays)
        self.dimension = self.arrays[0].shape[1]
        self._begins = np.cumsum([0, *map(len, self.arrays)])
        self.squares = _squares(self.arrays) if squares is None else squares  # (N,) float32: |v|^2

    def __len__(self) -> int:
        return int(self._begins[-1])

    def append(self, vectors: np.ndarray) -> None:
        self.arrays.append(vectors)
        self._begins = np.append(self._begins, self._begins[-1] + len(vectors))
        self.squares = np.concatenate([self.squares, _squares([vectors])])

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, (n, D) float32), all of them in order."""
        for array, first in zip(self.arrays, self._begins[:-1], strict=True):
            for begin in range(0, len(array), rows):
                yield int(first) + begin, np.asarray(array[begin : begin + rows], np.float32)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) float32 of these rows."""
        if len(self.arrays) == 1:
            return np.asarray(self.arrays[0][rows], np.float32)
        taken = np.empty((len(rows), self.dimension), np.float32)
        which = np.searchsorted(self._begins, rows, side="right") - 1
        for number, array in enumerate(self.arrays):
            here = which == number
            taken[here] = array[rows[here] - self._begins[number]]
        return taken

    def prepared(self, vectors: np.ndarray, squares: np.ndarray | None = None) -> np.ndarray:
        """As an index compares them: of length 1 for the cosine, else as they are."""
        if self.metric != "cosine":
            return vectors
        squares = np.einsum("nd,nd->n", vectors, vectors) if squares is None else squares
        return vectors / np.sqrt(np.maximum(squares, 1e-30))[:, None]

    def likeness(self, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
        """(n,) float32 of the query (D,) with these rows; the larger, the nearer."""
        taken = self.take(rows)
        if self.metric == "l2":  # not by the binomial formula: near twins would drown in rounding
            taken -= query
            return -np.einsum("nd,nd->n", taken, taken)
        return self._scaled((taken @ query)[None], self.squares[rows])[0]

    def _scaled(self, dots: np.ndarray, squares: np.ndarray) -> np.ndarray:
        return dots / np.sqrt(np.maximum(squares, 1e-30)) if self.metric == "cosine" else dots

    def rough_likeness(self, block: np.ndarray, squares: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """(Q, n) by one matrix product."""
        dots = queries @ block.T
        if self.metric == "l2":
            return 2 * dots - squares - np.einsum("qd,qd->q", queries, queries)[:, None]
        return self._scaled(dots, squares)

    def shown(self, likeness: np.ndarray) -> np.ndarray:
        """What a user sees: the cosine or dot product (more is nearer), or the distance (less is nearer)."""
        if self.metric == "l2":
            return np.sqrt(np.maximum(-likeness, 0))
        return np.clip(likeness, -1, 1) if self.metric == "cosine" else likeness


def nearest(
    vectors: Vectors, queries: np.ndarray, k: int, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """((Q, k) float32 likeness, (Q, k) int64 rows), best first, among all vectors or among `rows` (sorted).

    `queries` (Q, D) are prepared (Vectors.prepared). k is cut to what there is.
    """
    count = len(vectors) if rows is None else len(rows)
    k = min(k, count)
    parts = [
        _nearest(vectors, queries[begin : begin + _QUERIES_AT_ONCE], k, rows)
        for begin in range(0, len(queries), _QUERIES_AT_ONCE)
    ]
    if not parts or not k:
        return np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64)
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _nearest(
    vectors: Vectors, queries: np.ndarray, k: int, rows: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    kept = k + (8 if vectors.metric == "l2" else 0)  # rounding may swap neighbours at the edge
    best = np.full((len(queries), 0), -np.inf, np.float32)
    best_rows = np.zeros((len(queries), 0), np.int64)
    for numbers, block in _blocks(vectors, rows):
        likeness = vectors.rough_likeness(block, vectors.squares[numbers], queries)
        if likeness.shape[1] > kept:
            at = np.argpartition(likeness, -kept, axis=1)[:, -kept:]
            likeness, found = np.take_along_axis(likeness, at, 1), numbers[at]
        else:
            found = np.broadcast_to(numbers, likeness.shape)
        best, best_rows = np.concatenate([best, likeness], 1), np.concatenate([best_rows, found], 1)
        if best.shape[1] > kept:
            at = np.argpartition(best, -kept, axis=1)[:, -kept:]
            best, best_rows = np.take_along_axis(best, at, 1), np.take_along_axis(best_rows, at, 1)
    return rescored(vectors, queries, list(best_rows), k)


def _blocks(vectors: Vectors, rows: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if rows is None:
        for begin, block in vectors.blocks():
            yield np.arange(begin, begin + len(block)), block
        return
    for begin in range(0, len(rows), BLOCK_ROWS):
        some = rows[begin : begin + BLOCK_ROWS]
        yield some, vectors.take(some)


def rescored(
    vectors: Vectors, queries: np.ndarray, candidates: Sequence[np.ndarray], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's candidate rows by the vectors themselves; equal ones in the order of their rows."""
    likeness, found = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for number, (query, rows) in enumerate(zip(queries, candidates, strict=True)):
        rows = np.sort(rows)
        values = vectors.likeness(rows, query)
        order = np.argsort(-values, kind="stable")[:k]
        likeness[number], found[number] = values[order], rows[order]
    return likeness, found


def check_queries(queries: np.ndarray, dimension: int) -> np.ndarray:
    """(Q, D) float32; UserError for vectors of another model, NaN and infinities."""
    queries = np.asarray(queries, np.float32)
    queries = queries[None] if queries.ndim == 1 else queries
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise UserError(
            f"The index holds vectors of {dimension} numbers; these have shape {queries.shape}.",
            fix="search with vectors that the index's own model made.",
        )
    if not np.isfinite(queries).all():
        raise UserError(
            "A vector to search for holds numbers that are none (NaN or infinite).",
            fix="look at what made it.",
        )
    return queries


def _squares(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) float32."""
    squares = [np.zeros(0, np.float32)]
    for array in arrays:
        for begin in range(0, len(array), BLOCK_ROWS):
            block = np.asarray(array[begin : begin + BLOCK_ROWS], np.float32)
            squares.append(np.einsum("nd,nd->n", block, block))
    return np.concatenate(squares)
