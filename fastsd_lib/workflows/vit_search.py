"""Pictures as vectors: embed them, keep an index, find what is alike, doubled or odd."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.workflows.vit_model import EMBEDDED, open_model

if TYPE_CHECKING:
    from fastsd_lib.vit.clusters import Clusters
    from fastsd_lib.vit.duplicates import Group
    from fastsd_lib.vit.image_search import Neighbour
    from fastsd_lib.vit.index import Index
    from fastsd_lib.vit.model import VitModel
    from fastsd_lib.vit.outliers import Outlier
    from fastsd_lib.vit.vector_store import VectorStore


def embed(
    what: Any,
    out: str | Path,
    model: str | Path | VitModel = EMBEDDED,
    features: Features | None = None,
    runner: RunnerConfig | None = None,
    report: Report = silent,
) -> VectorStore:
    """A vector for each picture of `what`, streamed into the folder `out`; run again, only what is new is computed.

    UserError when `out` holds vectors of another model, or nothing could be read.
    """
    opened = open_model(model, classifier=False)
    from fastsd_lib.vit import embed as embedding

    return embedding.embed(
        opened, what, features or Features(), runner or RunnerConfig(), expanded(out), report
    )


def index(
    store: str | Path | VectorStore,
    out: str | Path | None = None,
    kind: str = "auto",
    report: Report = silent,
    **how: Any,
) -> Index:
    """An index over embedded pictures, written to `out` if it is named. `how`: metric, recall, seed of `build_index`."""
    from fastsd_lib.vit.index import build_index

    made = build_index(_store(store), kind, on_progress=report, **how)
    if out:
        made.save(expanded(out))
    return made


def search(
    picture: Any,
    index: str | Path | Index,
    k: int = 10,
    model: str | Path | VitModel | None = None,
    runner: RunnerConfig | None = None,
    sheet: str | Path | None = None,
) -> list[Neighbour]:
    """The `k` pictures of an index that are most alike, the nearest first; `sheet`: a page of thumbnails, as PNG.

    `model` must be the one that embedded them; None = the name that the index knows it by.
    """
    from fastsd_lib.vit.image_search import search_images
    from fastsd_lib.vit.index import Index

    opened = index if isinstance(index, Index) else Index.open(expanded(index))
    found = search_images(opened, model_of(opened.maker.model, model), picture, k, runner_config=runner)
    if sheet:
        from fastsd_lib.vit.neighbours_picture import neighbours_picture

        page = neighbours_picture(found, picture)
        with atomic_path(expanded(sheet)) as scratch:
            page.save(scratch)
    return found


def duplicates(
    store: str | Path | VectorStore,
    ways: Sequence[str] = ("bytes", "phash", "embedding"),
    report: Report = silent,
    **how: Any,
) -> list[Group]:
    """Groups of pictures that are nearly the same. `how`: cosine, phash_bits, across of `near_duplicates`."""
    from fastsd_lib.vit.duplicates import near_duplicates

    return near_duplicates(_store(store), ways, on_progress=report, **how)


def outliers(store: str | Path | VectorStore, way: str = "knn", count: int = 20) -> list[Outlier]:
    """The pictures that are least like all others, the oddest first."""
    from fastsd_lib.vit import outliers as rooms

    return rooms.outliers(_store(store), way, count)


def clusters(
    store: str | Path | VectorStore, way: str = "kmeans", count: int = 0, report: Report = silent
) -> tuple[VectorStore, Clusters]:
    """The store, and which of its rows belong together; `count` 0 = as many clusters as fit best."""
    from fastsd_lib.vit import clusters as rooms

    opened = _store(store)
    return opened, rooms.clusters(opened, way, count, on_progress=report)


def model_of(known: str, given: str | Path | VitModel | None) -> VitModel:
    """The model that is given, else the one of this name, where a name is enough to find it."""
    try:
        return open_model(known if given is None else given, classifier=False)
    except UserError:
        if given is not None:
            raise
        raise UserError(
            f"These are vectors of the model {known!r}, which is not found by its name.",
            fix="name its folder: --model M",
        ) from None


def _store(store: str | Path | VectorStore) -> VectorStore:
    from fastsd_lib.vit.vector_store import VectorStore

    return store if isinstance(store, VectorStore) else VectorStore.open(expanded(store))
