"""The steps of notebooks/vit.ipynb that look for pictures that are alike, doubled or odd."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.files import fingerprint
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.vit.config import Features
from fastsd_lib.workflows import vit
from fastsd_lib.workflows.vit_experiment import Experiment
from fastsd_lib.workflows.vit_steps import SHOWN, held_out

if TYPE_CHECKING:
    from fastsd_lib.vit.image_search import Neighbour
    from fastsd_lib.vit.index import Index
    from fastsd_lib.vit.vector_store import VectorStore

# Perceptual hashes look at 32 pixels: of icons that small, all with one outline would be the same.
HASHED_PX = 64


def embed(experiment: Experiment, features: Features | None = None, report: Report = silent) -> VectorStore:
    """Vectors of all pictures of the experiment; those of an earlier model, or of other features, are replaced."""
    from fastsd_lib.vit.embed import weights_of

    features = features or Features()
    model = vit.open_model(experiment.model)
    mark = fingerprint([weights_of(model), dataclasses.asdict(features)])[:12]
    for other in experiment.embeddings.glob("*"):
        if other.name != mark:
            shutil.rmtree(other, ignore_errors=True)
    return vit.embed(experiment.pictures, experiment.embeddings / mark, model, features, report=report)


def build_index(experiment: Experiment, features: Features | None = None, report: Report = silent) -> Index:
    """An index over all pictures, in index/."""
    return vit.index(embed(experiment, features, report), experiment.index, report=report)


def search(experiment: Experiment, picture: str = "", k: int = 11) -> tuple[Path | str, list[Neighbour]]:
    """(the picture that was asked for, its neighbours); "" asks for one that was held out."""
    asked = picture.strip() or held_out(experiment, 1)[0]
    found = vit.search(asked, experiment.index, k + 1, experiment.model)
    others = [one for one in found if one.place is None or not _same(one.place, asked)]
    return asked, others[:k]


def duplicates(experiment: Experiment, report: Report = silent) -> dict[str, list[str]]:
    """Pictures that are nearly the same, by group, the largest first."""
    store = _vectors(experiment)
    ways = ("bytes", "phash", "embedding") if _side_px(store) >= HASHED_PX else ("bytes", "embedding")
    groups = vit.duplicates(store, ways, report)[:SHOWN]
    return {
        f"{number} · alike by {', '.join(group.ways)}": _files(group.places, group.keys)
        for number, group in enumerate(groups, 1)
    }


def outliers(experiment: Experiment, count: int = SHOWN) -> dict[str, list[str]]:
    """The oddest pictures first."""
    found = vit.outliers(_vectors(experiment), count=count)
    return {"The oddest first": _files([one.place for one in found], [one.key for one in found])}


def clusters(experiment: Experiment, count: int = 0, report: Report = silent) -> dict[str, list[str]]:
    """The pictures nearest to each cluster's middle, the largest cluster first."""
    store, found = vit.clusters(_vectors(experiment), count=count, report=report)
    return {
        f"{number} · {size} pictures": _files(
            [store.place(row) for row in rows], [store.keys[row] for row in rows]
        )
        for number, (size, rows) in enumerate(zip(found.sizes, found.representatives, strict=True), 1)
    }


def _vectors(experiment: Experiment) -> VectorStore:
    """Those that step 9 made."""
    from fastsd_lib.vit.vector_store import VectorStore

    made = sorted(path for path in experiment.embeddings.glob("*") if path.is_dir())
    return VectorStore.open(made[0]) if made else embed(experiment)


def _side_px(store: VectorStore) -> int:
    """The shorter side of a picture of the collection; 0 where none can be read."""
    from PIL import Image

    for row in range(min(len(store), SHOWN)):
        if place := store.place(row):
            with suppress(OSError), Image.open(place) as picture:
                return min(picture.size)
    return 0


def _files(places: Sequence[Path | None], keys: Sequence[str]) -> list[str]:
    return [str(place or key) for place, key in zip(places, keys, strict=True)]


def _same(one: Path, other: Path | str) -> bool:
    return "://" not in str(other) and one.resolve() == expanded(other).resolve()
