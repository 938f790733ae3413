"""Pictures that do not belong: how far is a vector from those that are known to be normal?

`knn`: the mean distance to its nearest neighbours (Ramaswamy et al. 2000). `mahalanobis`: the distance from the mean in
units of the spread along each direction (Lee et al. 2018), the covariance shrunk as Ledoit and Wolf (2004) say, since
there are seldom enough pictures for 768 x 768 numbers. Scores grow with oddness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit.exact_search import Vectors, check_queries, nearest
from fastsd_lib.vit.vector_store import VectorStore

Way = Literal["knn", "mahalanobis"]
_LEARNT_FROM = 50_000  # rows for a covariance
_FOLDS = 5


@dataclass(frozen=True)
class Outlier:
    """One picture. `beyond`: how many spreads its score is above the middle of all scores; above 3.5 is rare."""

    key: str
    score: float
    beyond: float
    row: int
    place: Path | None = None


@dataclass(frozen=True)
class Roc:
    """What every threshold would give: shares of false and of true alarms, from (0, 0) to (1, 1)."""

    false_alarms: np.ndarray
    found: np.ndarray
    area: float  # 0.5 = chance, 1 = all odd ones score higher than all normal ones


class Detector:
    """Tells odd vectors from normal ones; made by `fit_detector`."""

    def __init__(self, way: Way, model: Any, threshold: float, false_alarms: float, held_out: int) -> None:
        self.way, self.threshold, self.false_alarms, self.held_out = way, threshold, false_alarms, held_out
        self._model = model

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) float32; (n, D) vectors of the same model."""
        return self._model.scores(check_queries(vectors, self._model.dimension))

    def odd(self, vectors: np.ndarray) -> np.ndarray:
        """(n,) bool: beyond the threshold."""
        return self.scores(vectors) > self.threshold


def fit_detector(
    normal: np.ndarray, way: Way = "knn", *, false_alarms: float = 0.05, k: int = 5, seed: int = 0
) -> Detector:
    """Learn what is normal from (N, D) vectors, and the threshold from a fifth or more of them, not learnt from.

    With n held out the threshold is their ceil((n + 1)(1 - false_alarms))-th score: of further normal pictures no more
    than `false_alarms` are expected beyond it (split conformal prediction, Vovk et al. 2005). UserError with too few.
    """
    if not 0 < false_alarms < 1:
        raise UserError(
            f"A share of {false_alarms} false alarms means nothing.", fix="give one between 0 and 1, as 0.05."
        )
    needed = math.ceil(1 / false_alarms - 1)  # fewer could not tell so small a share
    least = max(10, 2 * needed)
    normal = check_queries(normal, np.shape(normal)[-1])
    if len(normal) < least:
        raise UserError(
            f"{len(normal)} normal pictures are too few for {false_alarms:.1%} false alarms.",
            fix=f"give {least} or more.",
        )
    order = np.random.default_rng(seed).permutation(len(normal))
    held = order[: max(needed, math.ceil(len(normal) / _FOLDS))]
    model = _model(way, normal[np.sort(order[len(held) :])], k, seed)
    scores = np.sort(model.scores(normal[held]))
    rank = math.ceil((len(held) + 1) * (1 - false_alarms))
    return Detector(way, model, float(scores[min(rank, len(held)) - 1]), false_alarms, len(held))


def outliers(
    store: VectorStore, way: Way = "knn", count: int = 20, *, k: int = 5, seed: int = 0
) -> list[Outlier]:
    """The `count` oddest pictures of a store, the oddest first: each is scored by what the others of it look like.

    Scores are made in five folds, so that no picture vouches for itself. UserError with fewer than 10 pictures.
    """
    store.need_vectors("look for outliers", least=10)
    scores = np.empty(len(store), np.float32)
    folds = np.random.default_rng(seed).permutation(len(store)) % _FOLDS
    for fold in range(_FOLDS):
        others, some = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        scores[some] = _model(way, np.asarray(store.vectors[others], np.float32), k, seed).scores(
            np.asarray(store.vectors[some], np.float32)
        )
    middle = float(np.median(scores))
    spread = 1.4826 * float(np.median(np.abs(scores - middle)))
    return [
        Outlier(
            store.keys[row],
            float(scores[row]),
            (float(scores[row]) - middle) / max(spread, 1e-12),
            int(row),
            store.place(row),
        )
        for row in np.argsort(-scores, kind="stable")[:count]
    ]


def roc(normal: np.ndarray, odd: np.ndarray) -> Roc:
    """From the scores of normal (n,) and odd (m,) pictures; equal scores count half."""
    if not len(normal) or not len(odd):
        raise UserError("A ROC curve needs normal and odd pictures.", fix="give some of both.")
    steps = np.unique(np.concatenate([normal, odd]))[::-1]
    false_alarms = 1 - np.searchsorted(np.sort(normal), steps) / len(normal)
    found = 1 - np.searchsorted(np.sort(odd), steps) / len(odd)
    false_alarms, found = np.concatenate([[0.0], false_alarms]), np.concatenate([[0.0], found])
    return Roc(false_alarms, found, float(np.trapezoid(found, false_alarms)))


class _Knn:
    def __init__(self, normal: np.ndarray, k: int, seed: int) -> None:
        self._vectors, self._k = Vectors([normal], "l2"), min(k, len(normal))
        self.dimension = normal.shape[1]

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        likeness, _ = nearest(self._vectors, vectors, self._k)
        return self._vectors.shown(likeness).mean(axis=1)


class _Mahalanobis:
    def __init__(self, normal: np.ndarray, k: int, seed: int) -> None:
        require("sklearn", group="vit")
        from sklearn.covariance import LedoitWolf

        if len(normal) > _LEARNT_FROM:
            normal = normal[np.random.default_rng(seed).choice(len(normal), _LEARNT_FROM, replace=False)]
        self.dimension = normal.shape[1]
        fitted = LedoitWolf().fit(normal.astype(np.float64))
        self._mean = fitted.location_
        values, axes = np.linalg.eigh(fitted.covariance_)
        self._whiten = axes / np.sqrt(np.maximum(values, values.max() * 1e-12))

    def scores(self, vectors: np.ndarray) -> np.ndarray:
        return np.linalg.norm((vectors - self._mean) @ self._whiten, axis=1).astype(np.float32)


_WAYS: dict[str, Any] = {"knn": _Knn, "mahalanobis": _Mahalanobis}


def _model(way: str, normal: np.ndarray, k: int, seed: int) -> Any:
    if way not in _WAYS:
        raise UserError(
            f"There is no way to find outliers called {way!r}.", fix=f"choose {' or '.join(_WAYS)}."
        )
    if k < 1:
        raise UserError(f"{k} neighbours cannot be compared with.", fix="give 1 or more.")
    return _WAYS[way](normal, k, seed)
