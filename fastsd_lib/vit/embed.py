"""Pictures to vectors, streaming to disk: collections larger than memory, stopped and taken up again, kept up to date.

The pictures come in their own order, some hundred make a part, and a finished part stays finished (store_parts.py).
Within a part the batches are always the same, so a run that was killed ends with the very bytes of one that was not. At
the end the parts, and the vectors of an earlier run whose pictures are unchanged, become one store (embed_plan.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.files import fingerprint, plain_disk_errors, sha256_file
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.vit.config import Features, Fit, RunnerConfig
from fastsd_lib.vit.embed_plan import PART_ROWS, Part, Plan
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.reading import read_ahead
from fastsd_lib.vit.runner import open_runner
from fastsd_lib.vit.sources import Item
from fastsd_lib.vit.store_parts import Done, with_hash, write_part
from fastsd_lib.vit.transform import Transform
from fastsd_lib.vit.vector_store import Maker, VectorStore, check_dtype

_IN_FLIGHT = 3  # batches that are computed or wait for it


def embed(
    model: VitModel,
    what: Any,
    features: Features | None = None,
    runner_config: RunnerConfig | None = None,
    out: str | Path = "vectors",
    on_progress: Report = silent,
    *,
    dtype: str = "float32",
    fit: Fit = "model",
    readers: int = 0,
    part_rows: int = PART_ROWS,
) -> VectorStore:
    """The store `out` with a vector for each picture of `what` (whatever sources.items_of takes), in its order.

    Run again, it embeds new, changed and failed pictures only and drops those that are gone. A picture that cannot be
    read is a row with its error. UserError when `out` was made by another model or in another way, or is damaged.
    """
    check_dtype(dtype)
    embedder = Embedder(
        model, features or Features(), runner_config or RunnerConfig(), fit=fit, readers=readers
    )
    try:
        plan = Plan(Path(out), embedder.maker, dtype, what, part_rows, on_progress)
        for part in plan.missing():
            embedder.make(part, plan.out, dtype, plan.tell)
    finally:
        embedder.close()
    return plan.finish()


class Embedder:
    """Holds a model: pictures in, vectors out. The same operator in this process and in others (ray_embed.py)."""

    def __init__(
        self,
        model: VitModel,
        features: Features,
        config: RunnerConfig,
        *,
        fit: Fit = "model",
        readers: int = 0,
    ) -> None:
        self.transform, self.readers = Transform.of(model, fit), readers
        self.runner = open_runner(model, features, config)
        self.batch_size = self.runner.batch_size
        self.maker = Maker(model.name, weights_of(model), features, fit, self.runner.name)

    def close(self) -> None:
        self.runner.close()

    def __call__(
        self, items: Sequence[Item], tell: Callable[[int], None] = lambda count: None
    ) -> tuple[Any, list[str]]:
        """((n, D) float32 of the pictures that could be embedded, an error or "" for each). `tell`: so many more."""
        errors, vectors = [""] * len(items), []
        flying: deque[tuple[list[int], Future[np.ndarray]]] = deque()

        def land() -> None:
            places, future = flying.popleft()
            found = future.result()
            good = np.isfinite(found).all(axis=1)
            for place in np.flatnonzero(~good):
                errors[places[place]] = "the model gave numbers for it that are none (NaN or infinite)"
            vectors.append(found[good])
            tell(len(places))

        places, views = [], []
        for read in read_ahead(iter(items), self.transform, readers=self.readers):
            if read.error:
                errors[read.index] = read.error
                tell(1)
                continue
            places.append(read.index)
            views.append(read.views[0])
            if len(views) == self.batch_size:
                flying.append((places, self.runner.submit(np.stack(views))))
                places, views = [], []
                if len(flying) > _IN_FLIGHT:
                    land()
        if views:
            flying.append((places, self.runner.submit(np.stack(views))))
        while flying:
            land()
        return (np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)), errors

    def make(
        self, part: Part, out: Path, dtype: str, tell: Callable[[int], None] = lambda count: None
    ) -> None:
        """Embed one part and write it."""
        with ThreadPoolExecutor(1, thread_name_prefix="vit-hash") as hashing:
            rows = [
                hashing.submit(with_hash, row, item.source)
                for row, item in zip(part.rows, part.items, strict=True)
            ]
            vectors, errors = self(part.items, tell)
            done = [replace(row.result(), error=error) for row, error in zip(rows, errors, strict=True)]
        with np.errstate(over="ignore"):
            cast = vectors.astype(dtype)
        fits = np.isfinite(cast).all(axis=1)
        if not fits.all():
            good = [place for place, row in enumerate(done) if not row.error]
            for place in np.flatnonzero(~fits):
                done[good[place]] = replace(
                    done[good[place]], error=f"numbers too large for {dtype}: keep float32"
                )
        with plain_disk_errors("write the vectors"):
            write_part(out, part.name, Done(done, cast[fits]))


def weights_of(model: VitModel) -> str:
    """16 hex digits over what a model computes with: its weights, sizes and processor, not its labels' calibration."""
    files = sorted(
        path
        for path in Path(model.path).iterdir()
        if path.suffix in {".safetensors", ".onnx", ".xml", ".bin"} or path.name == "preprocessor_config.json"
    )
    return fingerprint([[path.name, sha256_file(path)] for path in files])
