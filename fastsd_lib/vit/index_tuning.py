"""How hard an index has to look: measured on queries that are held out, never promised by a rule of thumb.

A fixed setting that finds 99 % of the neighbours among one collection's vectors finds 68 % among another's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from fastsd_lib.vit.exact_search import check_queries, nearest

if TYPE_CHECKING:
    from fastsd_lib.vit.index import Index

TUNED_K = 10
_HELD_OUT = 256  # queries: half to tune with, half to measure with


def held_out(count: int, seed: int) -> np.ndarray:
    """Rows (sorted) that ask and cannot be found while an index is tuned; a graph is built without them.

    A query that is part of the graph is found far more easily than one that is not.
    """
    random = np.random.default_rng(seed)
    return np.sort(random.choice(count, min(_HELD_OUT, count // 4), replace=False))


def tune(index: Index, target: float, held: np.ndarray, queries: np.ndarray | None = None) -> None:
    """Set the finder to the first of its settings, from cheap to dear, that reaches the target on half of the queries.

    The other half measures the recall that `index.facts` tells. The queries are `queries` (Q, D), else the rows `held`.
    """
    began, count = time.perf_counter(), len(index.vectors)
    allowed = None
    if queries is None:
        if not len(held):
            return
        queries, allowed = index.vectors.take(held), np.setdiff1d(np.arange(count), held)
    trial = _Trial(index, index.vectors.prepared(check_queries(queries, index.dimension)), allowed)
    tuning, measuring = (
        np.arange(half, len(queries), 2) if len(queries) > 1 else np.arange(1) for half in (0, 1)
    )
    best, reached = {}, -1.0
    width, last, idle = 0, -1.0, 0
    for setting in index.finder.settings(count):
        if setting["width"] == width and idle == 2:
            continue  # more effort finds no more: the candidates are too few
        recall, doubt = trial.recall(setting, tuning)
        idle = idle + 1 if setting["width"] == width and recall <= last else 0
        width, last = setting["width"], recall
        if recall > reached:
            best, reached = setting, recall
        if recall - doubt >= target:
            break
    index.facts |= {
        "recall": round(trial.recall(best, measuring)[0], 4), "recall_k": trial.k, "recall_queries": len(measuring),
        "recall_asked": target, "tune_s": round(time.perf_counter() - began, 3), **best,
    }  # fmt: skip


class _Trial:
    """Queries whose true neighbours, among the rows `allowed`, are known."""

    def __init__(self, index: Index, queries: np.ndarray, allowed: np.ndarray | None) -> None:
        self.index, self.queries, self.allowed = index, queries, allowed
        likeness, _ = nearest(index.vectors, queries, TUNED_K, allowed)
        self.k, self.edge = likeness.shape[1], likeness[:, -1:]

    def recall(self, setting: dict[str, int], some: np.ndarray) -> tuple[float, float]:
        """(the share of true neighbours that `some` of the queries find, its standard error).

        What is just as near as the last of them counts too.
        """
        for name, value in setting.items():
            setattr(self.index.finder, name, value)
        found, _ = self.index.nearest_rows(self.queries[some], self.k, self.allowed)
        edge = self.edge[some]
        shares = (found >= edge - 1e-5 * np.abs(edge)).mean(axis=1)
        return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))
