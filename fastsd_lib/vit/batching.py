"""Pictures of many requests in one call of the model, and nobody waits for company in vain.

While a batch is computed the next one gathers by itself, so a busy server never waits. Only those who were answered a
moment ago are waited for, a few milliseconds, because they usually come back; an idle server starts at once.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.runner import Runner

MAX_BATCH = 16
MAX_WAIT_MS = 10.0
QUEUE_LIMIT = 256
#: Of the time that a batch takes, so much at most is spent on waiting for company.
WAITED_SHARE = 0.25


class Busy(UserError):
    """No room; come again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, fix=f"try again in {math.ceil(retry_after_s)} s.")
        self.retry_after_s = retry_after_s


class TooLate(UserError):
    """The answer did not come within the time that was given."""


class NoNumbers(UserError):
    """The model's answer to this picture holds NaN or infinity."""


@dataclass(eq=False)
class _Row:
    pixels: np.ndarray  # (3, H, W)
    answer: asyncio.Future[np.ndarray]  # (N,)


class Batcher:
    """Stands before one runner, in one event loop. `close()` finishes what was accepted.

    `lanes`: how many batches are computed at once. `sizes` counts the batches by their number of pictures.
    """

    def __init__(
        self,
        runner: Runner,
        max_batch: int = MAX_BATCH,
        max_wait_ms: float = MAX_WAIT_MS,
        queue_limit: int = QUEUE_LIMIT,
        *,
        lanes: int = 1,
    ) -> None:
        for name, value in (("max_batch", max_batch), ("queue_limit", queue_limit), ("lanes", lanes)):
            if value < 1:
                raise UserError(f"{name} is {value}.", fix="take 1 or more.")
        self.runner, self.max_batch, self.queue_limit = runner, max_batch, queue_limit
        self.sizes: Counter[int] = Counter()
        self.computed_s = 0.0
        self.running = 0  # pictures in the model
        self._max_wait_s = max_wait_ms / 1000
        self._waiting: deque[_Row] = deque()
        self._lanes, self._pool = asyncio.Semaphore(lanes), ThreadPoolExecutor(lanes, "vit-batch")
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._crowd = 1  # who was there when the last batch ended: answered, running or waiting
        self._wait_until = 0.0  # in the loop's time
        self._closing = False

    @property
    def waiting(self) -> int:
        """Pictures that no batch has taken yet."""
        return len(self._waiting)

    @property
    def seconds_to_come(self) -> float:
        """How long what waits and runs will take, by the pace so far."""
        done = sum(size * times for size, times in self.sizes.items())
        pace_s = self.computed_s / done if done else 0.1
        return max((len(self._waiting) + self.running) * pace_s, 0.05)

    async def submit(self, views: np.ndarray, timeout_s: float | None = None) -> np.ndarray:
        """Rows of the runner's output, (V, N) float32, for (V, 3, H, W) pixels.

        Busy when there is no room, TooLate after `timeout_s`, UserError for pixels that are no numbers. Whoever
        cancels this call takes its pictures out of the queue.
        """
        if views.ndim != 4 or len(views) == 0 or not np.isfinite(views).all():
            raise UserError("These pixels are not (views, 3, height, width) numbers.", fix="send a picture.")
        if len(views) > self.queue_limit:
            raise UserError(
                f"{len(views)} pictures at once; the most is {self.queue_limit}.", fix="send fewer."
            )
        if self._closing:
            raise Busy("This server is ending.", 5)
        if len(self._waiting) + len(views) > self.queue_limit:
            raise Busy(f"{len(self._waiting)} pictures wait already.", self.seconds_to_come)
        loop = asyncio.get_running_loop()
        rows = [_Row(pixels, loop.create_future()) for pixels in views]
        self._waiting.extend(rows)
        self._arrived.set()
        if self._gathering is None:
            self._gathering = loop.create_task(self._gather())
        answers = asyncio.gather(*(row.answer for row in rows))
        try:
            return np.stack(await asyncio.wait_for(answers, timeout_s))
        except asyncio.TimeoutError:
            text = f"There was no answer within {timeout_s:g} s."
            raise TooLate(text, fix="try again later, or send fewer pictures.") from None
        finally:
            self._drop(rows)

    async def close(self) -> None:
        """Refuse what comes, finish what is here."""
        self._closing = True
        while self._waiting or self._tasks:
            await asyncio.sleep(0.01)
        if self._gathering is not None:
            self._gathering.cancel()
        self._pool.shutdown(wait=True)

    def _drop(self, rows: list[_Row]) -> None:
        """Of a request that is over, whether it was answered or left."""
        for row in rows:
            row.answer.cancel()  # nothing happens to one that is there
        if any(row.answer.cancelled() for row in rows):
            self._waiting = deque(row for row in self._waiting if not row.answer.done())

    # ------------------------------------------------------------------ batches

    async def _gather(self) -> None:
        while True:
            await self._lanes.acquire()
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            await self._company()
            rows = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
            if not rows:  # they left meanwhile
                self._lanes.release()
                continue
            task = asyncio.create_task(self._compute(rows))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _company(self) -> None:
        """Until as many wait as were there when the last batch ended, or the time for that is over."""
        loop, wanted = asyncio.get_running_loop(), min(self.max_batch, self._crowd)
        while 0 < len(self._waiting) < wanted and (left_s := self._wait_until - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except asyncio.TimeoutError:
                return

    async def _compute(self, rows: list[_Row]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.running += len(rows)
        try:
            answers = await loop.run_in_executor(self._pool, self._answers, rows)
        finally:
            self.running -= len(rows)
            self._lanes.release()
        took_s = loop.time() - began
        self.sizes[len(rows)] += 1
        self.computed_s += took_s
        self._crowd = len(rows) + self.running + len(self._waiting)
        self._wait_until = loop.time() + min(self._max_wait_s, WAITED_SHARE * took_s)
        for row, answer in zip(rows, answers, strict=True):
            if row.answer.done():
                continue
            if isinstance(answer, Exception):
                row.answer.set_exception(answer)
            else:
                row.answer.set_result(answer)

    def _answers(self, rows: list[_Row]) -> list[Any]:
        """One answer or error for each row. A batch that fails is computed again one by one: its fault is one row's."""
        try:
            found: list[Any] = list(self.runner.run(np.stack([row.pixels for row in rows])))
        except Exception as error:
            if len(rows) == 1:
                return [error]
            return [answer for row in rows for answer in self._answers([row])]
        for number, answer in enumerate(found):
            if not np.isfinite(answer).all():
                text = "The model answers this picture with numbers that are none."
                found[number] = NoNumbers(text, fix="send another picture.")
        return found
