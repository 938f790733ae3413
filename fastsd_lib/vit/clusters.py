"""Groups of pictures that look alike to a model, without any labels; and all of them on one map.

Vectors are brought to length 1 first, so that only their direction counts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit.exact_search import BLOCK_ROWS, Vectors
from fastsd_lib.vit.vector_store import VectorStore

Way = Literal["kmeans", "agglomerative", "hdbscan"]
_LEARNT_FROM = 50_000  # rows: k-means needs no more
_ALL_PAIRS = 20_000  # rows: the other ways hold something for each pair
_JUDGED_BY = 2_000  # rows for the silhouette
_REDUCED_TO = 50  # dimensions: densities mean nothing in 768


@dataclass(frozen=True)
class Clusters:
    """labels (N,): the cluster of each row of the store, numbered by size from 0; -1 = in none (HDBSCAN)."""

    way: Way
    labels: np.ndarray
    centres: np.ndarray  # (C, D), mean of the unit vectors
    representatives: list[list[int]]  # rows nearest to each centre, nearest first
    silhouette: float  # -1 to 1 (Rousseeuw 1987); NaN with a single cluster
    tried: dict[int, float] = field(
        default_factory=dict
    )  # number of clusters -> silhouette, where it was chosen

    def __len__(self) -> int:
        return len(self.centres)

    @property
    def sizes(self) -> list[int]:
        return [int((self.labels == number).sum()) for number in range(len(self))]


def clusters(
    store: VectorStore,
    way: Way = "kmeans",
    count: int = 0,
    *,
    least: int = 0,
    shown: int = 12,
    seed: int = 0,
    on_progress: Report = silent,
) -> Clusters:
    """Cluster the vectors of a store.

    `count` 0: k-means and agglomerative take the number from 2 to 20 that has the best silhouette. HDBSCAN finds its own,
    `least` pictures make a cluster there (0 = by their number). `shown`: representatives of each. UserError with too few
    pictures, or too many for ways that compare all pairs.
    """
    require("sklearn", group="vit")
    store.need_vectors("cluster", least=3)
    if way not in _WAYS:
        raise UserError(f"There is no way to cluster called {way!r}.", fix=f"choose {', '.join(_WAYS)}.")
    if count < 0 or count == 1 or count > len(store):
        raise UserError(
            f"{len(store)} pictures cannot make {count} clusters.",
            fix=f"choose 2 to {len(store)}, or 0 for the best number.",
        )
    if way != "kmeans" and len(store) > _ALL_PAIRS:
        raise UserError(
            f"{way} compares all pairs: {len(store):,} pictures are too many.",
            fix=f"take kmeans, or at most {_ALL_PAIRS:,}.",
        )
    vectors = Vectors([store.vectors], "cosine")
    random = np.random.default_rng(seed)
    learnt = np.arange(len(store))
    if len(learnt) > _LEARNT_FROM:
        learnt = np.sort(random.choice(len(store), _LEARNT_FROM, replace=False))
    unit = vectors.prepared(vectors.take(learnt), vectors.squares[learnt])
    if np.allclose(unit, unit[0], atol=1e-6):
        raise UserError(
            "All these pictures have the same vector.", fix="choose another layer or another model."
        )
    judged = random.choice(len(unit), min(_JUDGED_BY, len(unit)), replace=False)

    counts = [count] if count or way == "hdbscan" else list(range(2, min(20, len(unit) - 1) + 1))
    tried: dict[int, float] = {}
    labels = np.zeros(len(unit), int)
    with tempfile.TemporaryDirectory(prefix="fastsd-clusters-") as memory:
        for number, one in enumerate(counts):
            on_progress(ProgressEvent("clusters", number, len(counts)))
            made = _WAYS[way](unit, one, least or max(5, len(unit) // 100), seed, memory)
            tried[one] = _silhouette(unit[judged], made[judged])
            if one == max(tried, key=lambda other: np.nan_to_num(tried[other], nan=-2)):
                labels, silhouette = made, tried[one]
    on_progress(ProgressEvent("clusters", len(counts), len(counts)))
    centres = _centres(unit, labels)
    if len(learnt) < len(store):
        labels = np.concatenate([_nearest_centre(block, centres) for _, block in _unit_blocks(vectors)])
    labels, centres = _by_size(labels, centres)
    return Clusters(
        way,
        labels,
        centres,
        _representatives(vectors, labels, centres, shown),
        silhouette,
        tried if len(tried) > 1 else {},
    )


def _kmeans(unit: np.ndarray, count: int, least: int, seed: int, memory: str) -> np.ndarray:
    from sklearn.cluster import KMeans

    return KMeans(count, n_init=4, random_state=seed).fit(unit).labels_


def _agglomerative(unit: np.ndarray, count: int, least: int, seed: int, memory: str) -> np.ndarray:
    """Ward's; the tree is made once and kept in the folder `memory`, each count only cuts it elsewhere."""
    from sklearn.cluster import AgglomerativeClustering

    return AgglomerativeClustering(count, memory=memory, compute_full_tree=True).fit(unit).labels_


def _hdbscan(unit: np.ndarray, count: int, least: int, seed: int, memory: str) -> np.ndarray:
    from sklearn.cluster import HDBSCAN

    reduced = principal_axes(unit, min(_REDUCED_TO, *unit.shape))[0]
    return HDBSCAN(min_cluster_size=min(max(2, least), len(unit)), copy=True).fit(reduced).labels_


_WAYS: dict[str, Any] = {"kmeans": _kmeans, "agglomerative": _agglomerative, "hdbscan": _hdbscan}


def picture_map(store: VectorStore) -> tuple[np.ndarray, float]:
    """((N, 2) places of all pictures on their two main axes, the share of the variance that these show)."""
    store.need_vectors("make a map", least=2)
    vectors = Vectors([store.vectors], "cosine")
    total, products = np.zeros(store.dimension), np.zeros((store.dimension, store.dimension))
    for _, block in _unit_blocks(vectors):
        total += block.sum(axis=0, dtype=np.float64)
        products += block.T.astype(np.float64) @ block
    mean = total / len(store)
    axes, share = _main_axes(products / len(store) - np.outer(mean, mean), 2)
    return np.concatenate([(block - mean) @ axes for _, block in _unit_blocks(vectors)]), share


def principal_axes(vectors: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """((N, count) coordinates on the main axes of (N, D) vectors, the share of the variance that they keep)."""
    centred = vectors - vectors.mean(axis=0, dtype=np.float64).astype(vectors.dtype)
    axes, share = _main_axes(centred.T.astype(np.float64) @ centred / len(vectors), count)
    return centred @ axes.astype(vectors.dtype), share


def _main_axes(covariance: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    values, axes = np.linalg.eigh(covariance)
    axes = axes[:, ::-1][:, :count]
    signs = np.sign(
        axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    )  # the same picture on every machine
    return axes * signs, float(values[::-1][:count].sum() / max(values.sum(), 1e-30))


def _unit_blocks(vectors: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    for begin, block in vectors.blocks(BLOCK_ROWS):
        yield begin, vectors.prepared(block, vectors.squares[begin : begin + len(block)])


def _silhouette(unit: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    inside = labels >= 0
    kinds = len(np.unique(labels[inside]))
    if kinds < 2 or kinds >= inside.sum():
        return float("nan")
    return float(silhouette_score(unit[inside], labels[inside]))


def _centres(unit: np.ndarray, labels: np.ndarray) -> np.ndarray:
    numbers = [number for number in np.unique(labels) if number >= 0]
    return np.array([unit[labels == number].mean(axis=0) for number in numbers]).reshape(
        len(numbers), unit.shape[1]
    )


def _nearest_centre(unit: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return (unit @ centres.T - 0.5 * np.einsum("cd,cd->c", centres, centres)).argmax(axis=1)


def _by_size(labels: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sizes = np.bincount(labels[labels >= 0], minlength=len(centres))
    order = np.argsort(-sizes, kind="stable")
    number = np.empty(len(centres) + 1, int)
    number[order], number[-1] = np.arange(len(order)), -1
    return number[labels], centres[order]


def _representatives(
    vectors: Vectors, labels: np.ndarray, centres: np.ndarray, shown: int
) -> list[list[int]]:
    found = []
    for number, centre in enumerate(centres):
        rows = np.flatnonzero(labels == number)
        near = np.concatenate(
            [
                vectors.likeness(rows[begin : begin + BLOCK_ROWS], centre.astype(np.float32))
                for begin in range(0, len(rows), BLOCK_ROWS)
            ]
        )
        found.append([int(row) for row in rows[np.argsort(-near, kind="stable")[:shown]]])
    return found
