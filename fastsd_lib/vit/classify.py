"""Pictures in, names of what is on them out: reading, decoding and computing at the same time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit.config import ClassifyConfig, RunnerConfig
from fastsd_lib.vit.model import EMBEDDED, VitModel, open_model
from fastsd_lib.vit.predictions import Prediction, predict
from fastsd_lib.vit.reading import ReadItem, read_ahead
from fastsd_lib.vit.runner import Runner, open_runner
from fastsd_lib.vit.sources import Item, count_of
from fastsd_lib.vit.transform import VIEWS, Transform

IN_FLIGHT = 2  # batches that the runner has at once: one computes, the next waits at its door
TASK = "pictures"


class Classifier:
    """A model that is ready to look at pictures; close it, or use it in a `with`.

    `model` may also be the folder of an export (exports/<name> with its export.json). UserError for a model or
    settings that do not work, before any picture is read.
    """

    def __init__(
        self,
        model: VitModel | str | Path = EMBEDDED,
        runner_config: RunnerConfig | None = None,
        config: ClassifyConfig | None = None,
    ) -> None:
        self.config = config or ClassifyConfig()
        _check(self.config)
        self.model = model if isinstance(model, VitModel) else open_model(model)
        self.transform = Transform.of(self.model, self.config.fit)
        self.runner: Runner = open_runner(self.model, "logits", runner_config)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.runner.close()

    def classify(self, what: Any, on_progress: Report = silent) -> Iterator[Prediction]:
        """A Prediction for each picture of `what` (see `sources.items_of`), in order; bad ones have an `error`."""
        for item, found in self.logits(what, on_progress):
            if isinstance(found, str):
                yield Prediction(item.key, (), (), found)
            else:
                yield self.prediction(item.key, found)

    def prediction(self, key: str, logits: np.ndarray) -> Prediction:
        """What logits (classes,) mean: calibrated where the model's temperature is known."""
        return predict(
            key, logits, self.model.labels, top_k=self.config.top_k, threshold=self.config.threshold,
            multi_label=self.model.multi_label, temperature=self.model.temperature,
        )  # fmt: skip

    def logits(self, what: Any, on_progress: Report = silent) -> Iterator[tuple[Item, np.ndarray | str]]:
        """(item, logits (classes,) float32, or the reason why there are none) for each picture, in order.

        With test-time augmentation the mean over a picture's views. Memory is bounded, however many pictures there are.
        """
        reading = read_ahead(
            what, self.transform, augment=self.config.augment, readers=self.config.readers,
            recursive=self.config.recursive, ahead=self._ahead(),
        )  # fmt: skip
        total = count_of(what, recursive=self.config.recursive)
        progress = _Progress(on_progress, total, self.model.notes)
        views = None if total is None else total * VIEWS[self.config.augment]
        size = _even_batch(views, self.runner.batch_size)
        send = self.runner.submit if views != 1 else self._with_all_processors
        flying: deque[_Batch] = deque()
        batch = _Batch()
        try:
            for read in reading:
                batch.add(read)
                if batch.is_full(size):
                    flying.append(batch.sent(send))
                    batch = _Batch()
                while len(flying) > IN_FLIGHT:
                    yield from progress.told(flying.popleft().answers())
            flying.append(batch.sent(send))
            while flying:
                yield from progress.told(flying.popleft().answers())
            progress.end()
        finally:
            reading.close()

    def _with_all_processors(self, pixels: np.ndarray) -> Future[np.ndarray]:
        """A single picture has no neighbour to share the machine with, so it need not wait in line."""
        answer: Future[np.ndarray] = Future()
        answer.set_result(self.runner.run(pixels))
        return answer

    def _ahead(self) -> int:
        """Pictures that are read in advance: enough for the next batches, however long one picture takes."""
        return max(8, 3 * self.runner.batch_size // VIEWS[self.config.augment])


class _Batch:
    """Pictures in order, those that could be read as one array; a picture's views stay together."""

    def __init__(self) -> None:
        self._reads: list[ReadItem] = []
        self.views = 0
        self._answer: Future[np.ndarray] | None = None

    def add(self, read: ReadItem) -> None:
        self._reads.append(read)
        if read.views is not None:
            self.views += len(read.views)

    def is_full(self, batch_size: int) -> bool:
        return (
            self.views >= batch_size or len(self._reads) >= 4 * batch_size
        )  # many bad ones wait for nothing

    def sent(self, send: Callable[[np.ndarray], Future[np.ndarray]]) -> _Batch:
        pixels = [read.views for read in self._reads if read.views is not None]
        if pixels:
            self._answer = send(np.concatenate(pixels))
        return self

    def answers(self) -> Iterator[tuple[Item, np.ndarray | str]]:
        logits = self._answer.result() if self._answer else np.empty((0, 0), np.float32)
        at = 0
        for read in self._reads:
            if read.views is None:
                yield read.item, read.error
            else:
                yield read.item, logits[at : at + len(read.views)].mean(axis=0)
                at += len(read.views)


class _Progress:
    """Events for the caller; where the total is not known, it grows with what is done."""

    def __init__(self, report: Report, total: int | None, notes: tuple[str, ...]) -> None:
        self._report, self._total, self._notes = report, total, notes
        self._done = self._bad = 0
        self._began = time.monotonic()
        if total:
            report(ProgressEvent(TASK, 0, total))

    def told(
        self, answers: Iterator[tuple[Item, np.ndarray | str]]
    ) -> Iterator[tuple[Item, np.ndarray | str]]:
        for item, found in answers:
            self._done += 1
            self._bad += isinstance(found, str)
            yield item, found
        if self._done < (self._total or self._done + 1):
            self._tell(self._total or self._done + 1)

    def end(self) -> None:
        if self._done:
            self._tell(self._done)

    def _tell(self, total: int) -> None:
        spent = max(time.monotonic() - self._began, 1e-9)
        facts: dict[str, float | str] = {"per_s": self._done / spent}
        if self._bad:
            facts["bad"] = self._bad
        if (
            self._notes and self._done >= total
        ):  # last: on a terminal each line is written over the one before
            facts[""] = "; ".join(self._notes)
        self._report(ProgressEvent(TASK, self._done, total, facts))


def _even_batch(views: int | None, most: int) -> int:
    """Batches of one size in an even number, so that those who compute two at once end together."""
    if not views:
        return most
    pairs = -(-views // (2 * most))
    return -(-views // (2 * pairs))


def _check(config: ClassifyConfig) -> None:
    if config.top_k < 1:
        raise UserError(f"top_k is {config.top_k}: no class would be told.", fix="take 1 or more.")
    if not 0 <= config.threshold <= 1:
        raise UserError(
            f"The threshold is {config.threshold:g}, but probabilities lie in 0 to 1.", fix="take 0.5, say."
        )
    if config.readers < 0:
        raise UserError(
            f"readers is {config.readers}.", fix="take 0 (by the machine) or a number of threads."
        )
    if config.augment not in VIEWS:
        raise UserError(
            f"There is no augmentation {config.augment!r}.", fix=f"take one of: {', '.join(VIEWS)}."
        )
