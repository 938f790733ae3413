"""What the routes ask: pictures decoded in a few threads, one batcher for labels and one for features."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fastsd_lib.vit.batching import Batcher, Busy
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.runner import Runner, open_runner
from fastsd_lib.vit.transform import Transform
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.vit_server import bodies, pictures
from fastsd_lib.webui.vit_server.config import ServeConfig
from fastsd_lib.webui.vit_server.labels import scores_of, top_labels
from fastsd_lib.webui.vit_server.metrics import Metrics

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
Given = str | bytes  # a text of the body, or the body itself


class VitService:
    """One model behind one server. `started` and `ended` are called in the loop that answers."""

    def __init__(
        self,
        model: VitModel,
        config: ServeConfig = ServeConfig(),  # noqa: B008  frozen
        runner_config: RunnerConfig = RunnerConfig(),  # noqa: B008  frozen
        export: Path | None = None,  # computes the labels in the model's place
    ) -> None:
        self.model, self.config, self.runner_config = model, config, runner_config
        self.runner: Runner = open_runner(export or model, "logits", runner_config)
        self.metrics, self.transform = Metrics(), Transform.of(model)
        self.under_way = 0  # requests
        self.ending = False
        self._pictures = 0  # decoding, waiting or in the model
        self._bytes = 0
        self._decoders = ThreadPoolExecutor(config.decoders or min(os.cpu_count() or 1, 4), "vit-decode")
        self.batchers: dict[str, Batcher] = {}
        self._features: Runner | None = None
        self._opening: asyncio.Lock | None = None

    async def started(self) -> None:
        self._opening = asyncio.Lock()
        self.batchers["labels"] = self._batcher(self.runner)

    async def ended(self) -> None:
        for batcher in self.batchers.values():
            await batcher.close()

    def close(self) -> None:
        """When nothing asks any more."""
        self._decoders.shutdown(wait=True, cancel_futures=True)
        for runner in (self.runner, self._features):
            if runner is not None:
                runner.close()

    # ------------------------------------------------------------------ questions

    async def classify(
        self, given: list[Given], asked: bodies.ClassifyParameters
    ) -> list[list[dict[str, Any]]]:
        """For each picture its labels with their scores, best first."""
        logits = await self._ask("labels", given)
        count = min(asked.top_k or self.config.top_k, len(self.model.labels))
        return await self._aside(
            lambda: [top_labels(self.model, row, count) for row in scores_of(self.model, logits, asked)]
        )

    async def embed(self, given: list[Given], asked: bodies.EmbedParameters) -> list[list[float]]:
        """For each picture its features."""
        import numpy as np

        await self._open_features()
        vectors = await self._ask("features", given)
        if asked.normalize and not self.config.features.normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors.tolist()

    async def read(self, parse: Callable[[bytes], T], raw: bytes) -> T:
        """`parse(raw)` beside the loop: a body of many megabytes holds up nobody else."""
        return parse(raw) if len(raw) < 64 * 1024 else await self._aside(partial(parse, raw))

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """For a body of so many bytes while it is here; Busy when all bodies together are too much."""
        if self.ending:
            raise Busy("This server is ending.", 5)
        if self._bytes + size > self.config.bodies_mib << 20:
            raise Busy("The requests under way are as large as there is room for.", 2)
        self._bytes += size
        self.under_way += 1
        try:
            yield
        finally:
            self._bytes -= size
            self.under_way -= 1

    # ------------------------------------------------------------------ how

    async def _ask(self, name: str, given: list[Given]) -> np.ndarray:
        """Rows of the runner's output, in the order of the pictures. One that cannot be read refuses its own request."""
        import numpy as np

        most, batcher = self.config.pictures_per_request, self.batchers[name]
        if len(given) > most:
            raise Refused(
                413, f"There are {len(given)} pictures; the most in one request is {most}.", "send fewer."
            )
        if self._pictures + len(given) > self.config.queue_limit:
            raise Busy(f"{self._pictures} pictures are in work or wait.", batcher.seconds_to_come)
        self._pictures += len(given)
        try:
            whats = (
                [f"inputs[{number}]" for number in range(len(given))] if len(given) > 1 else ["The picture"]
            )
            found = await _together(
                [self._aside(partial(self._decoded, *pair)) for pair in zip(given, whats, strict=True)]
            )
            rows = await batcher.submit(np.stack(found))
        finally:
            self._pictures -= len(given)
        self.metrics.pictures[name] += len(given)
        return rows

    def _decoded(self, given: Given, what: str) -> np.ndarray:
        began = time.perf_counter()
        data = pictures.file_of(given, what, self.config) if isinstance(given, str) else given
        pixels = pictures.pixels_of(data, what, self.transform, self.config)
        self.metrics.decoding.add(time.perf_counter() - began)
        return pixels

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def _open_features(self) -> None:
        """The second runner is opened when the first picture is to be embedded."""
        async with self._opening:
            if self._features is None:
                self._features = await asyncio.to_thread(
                    open_runner, self.model, self.config.features, self.runner_config
                )
                self.batchers["features"] = self._batcher(self._features)

    def _batcher(self, runner: Runner) -> Batcher:
        config = self.config
        return Batcher(runner, config.max_batch, config.max_wait_ms, config.queue_limit)


async def _together(works: list[Any]) -> list[Any]:
    """All results, or the first error; then what has not begun is not begun."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
