"""An image in, its neighbours out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.embed import Embedder, weights_of
from fastsd_lib.vit.index import Index
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.sources import items_of


@dataclass(frozen=True)
class Neighbour:
    """One picture of the index. `score`: cosine or dot product; with metric "l2" the distance."""

    key: str
    score: float
    row: int
    place: Path | None = None  # the file, if it is still where it was


class ImageSearch:
    """An index and the model that made it, opened once for many searches."""

    def __init__(self, index: Index, model: VitModel, runner_config: RunnerConfig | None = None) -> None:
        """UserError when the index holds vectors of another model, or of none that is known."""
        maker = index.maker
        if maker.weights != weights_of(model):
            same = " with other weights" if maker.model == model.name else ""
            raise UserError(
                f"The index holds vectors of {maker.model}; {model.name} is another model{same}.",
                fix="search with the model that embedded the pictures, or embed them again.",
            )
        self.index = index
        self._embedder = Embedder(
            model, maker.features, runner_config or RunnerConfig(batch_size=1), fit=maker.fit, readers=1
        )

    def __enter__(self) -> ImageSearch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._embedder.close()

    def search(self, image: Any, k: int = 10, prefix: str = "") -> list[Neighbour]:
        """The nearest first. `image`: a file, address, bytes, PIL picture or array. UserError if it cannot be read."""
        items = list(items_of(image))
        if len(items) != 1:
            raise UserError(
                f"One picture is searched for at a time; here are {len(items)}.", fix="name one picture."
            )
        vectors, errors = self._embedder(items)
        if errors[0]:
            raise UserError(errors[0], fix="search with another picture.")
        return neighbours(self.index, vectors, k, prefix)[0]


def search_images(
    index: Index,
    model: VitModel,
    image: Any,
    k: int = 10,
    *,
    prefix: str = "",
    runner_config: RunnerConfig | None = None,
) -> list[Neighbour]:
    """The k pictures of `index` nearest to one picture. For many searches keep an ImageSearch: it loads the model once."""
    with ImageSearch(index, model, runner_config) as search:
        return search.search(image, k, prefix)


def neighbours(index: Index, vectors: np.ndarray, k: int = 10, prefix: str = "") -> list[list[Neighbour]]:
    """For each of (Q, D) vectors its nearest pictures."""
    scores, rows = index.search(vectors, k, prefix)
    return [
        [
            Neighbour(index.keys[row], float(score), int(row), index.place(row))
            for score, row in zip(*one, strict=True)
        ]
        for one in zip(scores, rows, strict=True)
    ]
