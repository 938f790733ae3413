"""Search among the vectors of a store: nearest first, rows found by their keys, on disk and back.

`exact` compares with every vector. `signs`, `ivf` and `hnsw` find candidates faster, and the vectors themselves put
them in order; how many candidates that takes is measured on held-out queries, because it depends on the vectors: the
recall that comes out stands in `Index.facts`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit import index_file
from fastsd_lib.vit.exact_search import METRICS, Metric, Vectors, check_queries, nearest, rescored
from fastsd_lib.vit.index_tuning import held_out, tune
from fastsd_lib.vit.search_kinds import KINDS
from fastsd_lib.vit.vector_store import (
    Maker,
    VectorStore,
    check_keys,
    checked,
)

Kind = Literal["auto", "exact", "signs", "ivf", "hnsw"]
EXACT_UP_TO, SIGNS_UP_TO = 100_000, 5_000_000  # rows; benchmarks/vit_index.py
_FEW_ROWS = 20_000  # comparing with so few is as fast as any index


class Index:
    """Vectors that can be searched. Rows are numbers into `keys`; a removed row keeps its number."""

    def __init__(
        self,
        kind: str,
        vectors: Vectors,
        keys: Sequence[str],
        sources: Sequence[str],
        maker: Maker,
        vectors_file: Path,
        removed: Sequence[int] = (),
    ) -> None:
        self.kind, self.vectors, self.maker = kind, vectors, maker
        self.keys, self.sources = keys, sources  # sources: files, "" where the key is the file
        self.alive = np.ones(len(self.keys), bool)
        self.alive[np.asarray(removed, np.int64)] = False
        self.finder: Any = None  # of search_kinds; None = exact
        self.facts: dict[str, Any] = {}  # build_s, recall, recall_k, and what was tuned
        self.vectors_file = vectors_file  # of the store: it is never changed in place
        self._allowed: dict[str, np.ndarray | None] = {}  # prefix -> rows, of the last prefix

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys) if self.alive[row]}

    @property
    def metric(self) -> Metric:
        return self.vectors.metric

    @property
    def dimension(self) -> int:
        return self.vectors.dimension

    def __len__(self) -> int:
        return int(self.alive.sum())

    def __contains__(self, key: str) -> bool:
        return key in self._row_of

    def search(self, vectors: np.ndarray, k: int = 10, prefix: str = "") -> tuple[np.ndarray, np.ndarray]:
        """((Q, k) float32 scores, (Q, k) int64 rows), nearest first, of (Q, D) or (D,) vectors.

        Scores are cosines or dot products; with metric "l2" distances. `prefix` looks among keys that begin so. k is cut
        to what there is. UserError for vectors of another length, or with NaN.
        """
        if k < 1:
            raise UserError(f"{k} neighbours cannot be searched for.", fix="ask for 1 or more.")
        queries = self.vectors.prepared(check_queries(vectors, self.dimension))
        likeness, rows = self.nearest_rows(queries, k, self._rows_allowed(prefix))
        return self.vectors.shown(likeness), rows

    def row_of(self, key: str) -> int:
        if key not in self._row_of:
            raise UserError(f"The index has no {key!r}.", fix=f"give a key as in {self._an_example()}.")
        return self._row_of[key]

    def vector(self, key: str) -> np.ndarray:
        """(D,) float32."""
        return self.vectors.take(np.array([self.row_of(key)]))[0]

    def place(self, row: int) -> Path | None:
        """The file that a row was made of, if it is still there."""
        path = Path(self.sources[row] or self.keys[row])
        return path if path.is_file() else None

    def add(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        """More rows (n, D), searchable at once. UserError for a key that is there, another length, NaN."""
        vectors = checked(check_queries(vectors, self.dimension), str(self.vectors.arrays[0].dtype))
        if len(keys) != len(vectors):
            raise UserError(f"{len(keys)} keys do not fit {len(vectors)} vectors.", fix="give one for each.")
        check_keys(keys)
        if there := next((key for key in keys if key in self._row_of), None):
            raise UserError(
                f"The index has {there!r} already.", fix="remove it first, or choose another key."
            )
        if self.finder:
            self.finder.add(self.vectors.prepared(vectors.astype(np.float32)))
        self.vectors.append(vectors)
        self._row_of.update({key: row for row, key in enumerate(keys, len(self.keys))})
        self.keys, self.sources = [*self.keys, *keys], [*self.sources, *[""] * len(keys)]
        self.alive = np.append(self.alive, np.ones(len(keys), bool))
        self._allowed.clear()

    def remove(self, keys: Sequence[str]) -> None:
        """These rows are found no more. UserError, and nothing removed, when one is not there."""
        rows = [self.row_of(key) for key in dict.fromkeys(keys)]
        self.alive[rows] = False
        for row in rows:
            del self._row_of[self.keys[row]]
        self._allowed.clear()

    def save(self, path: str | Path) -> None:
        """Write the index into a folder, in place of one that is there."""
        index_file.write(self, Path(path))

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Index:
        """An index from its folder; UserError unless each file is as it was written (`verify` False: sizes only)."""
        return index_file.read(Path(path), cls, verify=verify)

    def nearest_rows(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """likeness and rows; `queries` are prepared, `allowed` None = all."""
        count = len(self.vectors) if allowed is None else len(allowed)
        k = min(k, count)
        if self.finder is None or count <= min(_FEW_ROWS, len(self.vectors) // 4) or not len(queries):
            return nearest(self.vectors, queries, k, allowed)
        candidates = self.finder.candidates(queries, allowed, k)
        for number, rows in enumerate(candidates):
            if len(rows) < k:  # too few cells, or a filter that the graph did not get through
                candidates[number] = nearest(self.vectors, queries[number : number + 1], k, allowed)[1][0]
        return rescored(self.vectors, queries, candidates, k)

    def _rows_allowed(self, prefix: str) -> np.ndarray | None:
        if prefix not in self._allowed:
            allowed = self.alive
            if prefix:
                allowed = allowed & np.fromiter(
                    (key.startswith(prefix) for key in self.keys), bool, len(self.keys)
                )
                if not allowed.any():
                    raise UserError(
                        f"No key begins with {prefix!r}.", fix=f"keys look like {self._an_example()}."
                    )
            rows = None if allowed.all() else np.flatnonzero(allowed)
            self._allowed = {prefix: rows}
        return self._allowed[prefix]

    def _an_example(self) -> str:
        return repr(next((key for key, alive in zip(self.keys, self.alive, strict=True) if alive), ""))


def build_index(
    store: VectorStore,
    kind: Kind = "auto",
    *,
    metric: Metric = "cosine",
    recall: float = 0.99,
    queries: np.ndarray | None = None,
    seed: int = 0,
    on_progress: Report = silent,
) -> Index:
    """An index over a store. `auto`: exact up to 100,000 vectors, signs up to 5 million, above that IVF.

    Kinds other than exact are tuned until `recall` at 10 is reached on held-out queries: every second one of `queries`
    (Q, D), or of vectors that are left out of the index until it is tuned. The recall that the other half measures is
    `facts["recall"]`; it can be below what was asked for when nothing faster than exact search reaches it.
    """
    store.need_vectors("search")
    if metric not in METRICS:
        raise UserError(f"There is no metric {metric!r}.", fix=f"choose {', '.join(METRICS)}.")
    if kind not in ("auto", "exact", *KINDS):
        raise UserError(
            f"There is no index of kind {kind!r}.", fix=f"choose auto, exact, {', '.join(KINDS)}."
        )
    if not 0 < recall <= 1:
        raise UserError(
            f"A recall of {recall} cannot be reached for.", fix="give a share between 0 and 1, as 0.99."
        )
    if kind == "auto":
        kind = "exact" if len(store) <= EXACT_UP_TO else "signs" if len(store) <= SIGNS_UP_TO else "ivf"
    began = time.perf_counter()
    on_progress(ProgressEvent("index", 0, 2))
    index = Index(
        kind, Vectors([store.vectors], metric), store.keys, store.sources, store.maker, store.vectors_file
    )
    held = held_out(len(store), seed) if queries is None else np.zeros(0, np.int64)
    if kind != "exact":
        index.finder = KINDS[kind]()
        index.finder.build(index.vectors, seed, held)
    index.facts = {"build_s": round(time.perf_counter() - began, 3)}
    on_progress(ProgressEvent("index", 1, 2, {"build_s": index.facts["build_s"]}))
    if kind != "exact":
        tune(index, recall, held, queries)
        index.finder.complete(index.vectors, held)
    on_progress(ProgressEvent("index", 2, 2, {"recall": index.facts.get("recall", 1.0)}))
    return index
