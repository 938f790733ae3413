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
_HELD_OUT = 128  # queries to tune with, and as many to measure with


def tune(index: Index, target: float, queries: np.ndarray | None, seed: int) -> None:
    """Set the finder to the first of its settings, from cheap to dear, that reaches the target on half of the queries.

    The other half measures the recall that `index.facts` tells. Without `queries` (Q, D), vectors of the index ask, and
    do not count as their own neighbours.
    """
    began, own = time.perf_counter(), None
    if queries is None:
        random = np.random.default_rng(seed)
        own = random.choice(len(index.vectors), min(2 * _HELD_OUT, len(index.vectors)), replace=False)
        queries = index.vectors.take(own)
    k = min(TUNED_K, len(index.vectors) - (own is not None))
    if k < 1:
        return
    trial = _Trial(index, index.vectors.prepared(check_queries(queries, index.dimension)), own, k)
    tuning, measuring = (
        np.arange(half, trial.count, 2) if trial.count > 1 else np.arange(1) for half in (0, 1)
    )
    best, reached, exhausted = {}, -1.0, 0
    last_width, last = 0, -1.0
    for setting in index.finder.settings(len(index.vectors)):
        if setting["width"] == exhausted:  # more effort finds no more: the candidates are too few
            continue
        recall, doubt = trial.recall(setting, tuning)
        if setting["width"] == last_width and recall <= last:
            exhausted = last_width
        last_width, last = setting["width"], recall
        if recall > reached:
            best, reached = setting, recall
        if recall - doubt >= target:
            break
    index.facts |= {
        "recall": round(trial.recall(best, measuring)[0], 4), "recall_k": k, "recall_queries": len(measuring),
        "recall_asked": target, "tune_s": round(time.perf_counter() - began, 3), **best,
    }  # fmt: skip


class _Trial:
    """Queries whose true neighbours are known."""

    def __init__(self, index: Index, queries: np.ndarray, own: np.ndarray | None, k: int) -> None:
        self.index, self.queries, self.own, self.count = index, queries, own, len(queries)
        self.asked = k + (own is not None)  # a query that is in the index finds itself
        self.edge = self._others(nearest(index.vectors, queries, self.asked), np.arange(self.count))[:, -1:]

    def recall(self, setting: dict[str, int], some: np.ndarray) -> tuple[float, float]:
        """(the share of true neighbours that `some` of the queries find, its standard error).

        What is just as near as the last of them counts too.
        """
        for name, value in setting.items():
            setattr(self.index.finder, name, value)
        found = self._others(self.index.nearest_rows(self.queries[some], self.asked, None), some)
        edge = self.edge[some]
        shares = (found >= edge - 1e-5 * np.abs(edge)).mean(axis=1)
        return float(shares.mean()), float(shares.std() / np.sqrt(len(shares)))

    def _others(self, found: tuple[np.ndarray, np.ndarray], some: np.ndarray) -> np.ndarray:
        """Likeness of the neighbours without the query itself, or without the last where twins pushed it out."""
        likeness, rows = found
        if self.own is None:
            return likeness
        itself = rows == self.own[some][:, None]
        itself[~itself.any(axis=1), -1] = True
        return likeness[~itself].reshape(len(rows), rows.shape[1] - 1)
