"""Batches of many requests: who goes together, who waits, who is dropped, and whose fault spoils nobody else's answer."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.batching import Batcher, Busy, NoNumbers, TooLate

BAD, STRANGE = 666.0, 777.0  # values of a picture at which the small runner falls over, or answers NaN


class MeanRunner:
    """A small runner that tells a picture's mean and double of it, as slowly as it is told."""

    name, batch_size = "mean", 64

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds, self.batches = seconds, []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self.gate.wait(10)
        self.batches.append(len(pixels))
        time.sleep(self.seconds)
        means = pixels.mean(axis=(1, 2, 3))
        if (means == BAD).any():
            raise RuntimeError("the model fell over this batch")
        means[means == STRANGE] = np.nan
        return np.stack([means, 2 * means], axis=1)

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]:
        done: Future[np.ndarray] = Future()
        done.set_result(self.run(pixels))
        return done

    def close(self) -> None:
        pass


def _pictures(*values: float) -> np.ndarray:
    return np.stack([np.full((3, 2, 2), value, np.float32) for value in values])


async def _held(runner: MeanRunner, batcher: Batcher) -> asyncio.Task:
    """A request in the model, which stays there until the gate opens: what comes now has to wait."""
    runner.gate.clear()
    task = asyncio.ensure_future(batcher.submit(_pictures(0)))
    while not batcher.running:
        await asyncio.sleep(0.001)
    return task


def test_what_waits_while_the_model_is_busy_goes_in_one_batch_and_everybody_gets_their_own_answer():
    async def run() -> None:
        runner = MeanRunner()
        batcher = Batcher(runner, max_batch=8)
        first = await _held(runner, batcher)
        others = [asyncio.ensure_future(batcher.submit(_pictures(n))) for n in range(1, 13)]
        several = asyncio.ensure_future(batcher.submit(_pictures(20, 21, 22)))
        await asyncio.sleep(0.01)
        runner.gate.set()
        assert (await first).tolist() == [[0, 0]]
        for n, answer in enumerate(await asyncio.gather(*others), 1):
            assert answer.tolist() == [[n, 2 * n]]
        assert (await several).tolist() == [[20, 40], [21, 42], [22, 44]]
        assert runner.batches == [1, 8, 7]
        assert dict(batcher.sizes) == {1: 1, 8: 1, 7: 1}
        await batcher.close()

    asyncio.run(run())


def test_an_idle_model_starts_at_once_however_long_the_wait_for_company_may_be():
    async def run() -> None:
        runner = MeanRunner(0.02)
        batcher = Batcher(runner, max_wait_ms=5_000)
        for _ in range(5):  # one client, one after the other
            began = time.perf_counter()
            await batcher.submit(_pictures(1))
            assert time.perf_counter() - began < 1
        await batcher.close()

    asyncio.run(run())


def test_clients_that_come_back_are_waited_for_so_that_they_go_together():
    async def run(max_wait_ms: float) -> list[int]:
        runner = MeanRunner(0.08)
        batcher = Batcher(runner, max_batch=8, max_wait_ms=max_wait_ms)

        async def client(number: int) -> None:
            for _ in range(6):
                await batcher.submit(_pictures(number))
                await asyncio.sleep(0.001 * number)  # each decodes its next picture for another while

        await asyncio.gather(*(client(number) for number in range(4)))
        await batcher.close()
        return runner.batches

    together, apart = asyncio.run(run(500)), asyncio.run(run(0))
    assert sum(together) == sum(apart) == 24
    assert together.count(4) >= 3 and len(together) < len(apart)


def test_a_row_that_breaks_its_batch_gets_the_error_alone():
    async def run() -> None:
        runner = MeanRunner()
        batcher = Batcher(runner)
        first = await _held(runner, batcher)
        values = (1, BAD, 2, STRANGE, 3)
        others = [asyncio.ensure_future(batcher.submit(_pictures(value))) for value in values]
        await asyncio.sleep(0.01)
        runner.gate.set()
        await first
        one, bad, two, strange, three = await asyncio.gather(*others, return_exceptions=True)
        assert [answer[0, 0] for answer in (one, two, three)] == [1, 2, 3]
        assert isinstance(bad, RuntimeError) and isinstance(strange, NoNumbers)
        await batcher.close()

    asyncio.run(run())


def test_pixels_that_are_no_numbers_are_refused_before_they_reach_a_batch():
    async def run() -> None:
        runner = MeanRunner()
        batcher = Batcher(runner)
        for pixels in (_pictures(np.nan), _pictures(np.inf), np.zeros((0, 3, 2, 2)), np.zeros((3, 2, 2))):
            with pytest.raises(UserError, match="not"):
                await batcher.submit(pixels)
        assert runner.batches == []
        await batcher.close()

    asyncio.run(run())


def test_a_full_queue_says_when_to_come_again():
    async def run() -> None:
        runner = MeanRunner()
        batcher = Batcher(runner, queue_limit=4)
        first = await _held(runner, batcher)
        others = [asyncio.ensure_future(batcher.submit(_pictures(n, n))) for n in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Busy, match="4 pictures wait") as caught:
            await batcher.submit(_pictures(1))
        assert caught.value.retry_after_s > 0 and "try again in" in caught.value.fix
        with pytest.raises(UserError, match="the most is 4") as caught:
            await batcher.submit(_pictures(1, 2, 3, 4, 5))
        assert not isinstance(caught.value, Busy)  # to come again would not help
        runner.gate.set()
        await asyncio.gather(first, *others)
        await batcher.close()

    asyncio.run(run())


def test_who_leaves_or_runs_out_of_time_is_dropped_from_the_queue():
    async def run() -> None:
        runner = MeanRunner()
        batcher = Batcher(runner)
        first = await _held(runner, batcher)
        leaving = asyncio.ensure_future(batcher.submit(_pictures(1, 2)))
        staying = asyncio.ensure_future(batcher.submit(_pictures(3)))
        await asyncio.sleep(0.01)
        with pytest.raises(TooLate, match=r"within 0.02 s"):
            await batcher.submit(_pictures(4, 5, 6), timeout_s=0.02)
        leaving.cancel()
        await asyncio.sleep(0.01)
        assert batcher.waiting == 1
        runner.gate.set()
        assert (await staying).tolist() == [[3, 6]]
        await first
        assert runner.batches == [1, 1]
        await batcher.close()

    asyncio.run(run())


def test_closing_finishes_what_was_accepted_and_refuses_the_rest():
    async def run() -> None:
        runner = MeanRunner()
        batcher = Batcher(runner, max_batch=2)
        first = await _held(runner, batcher)
        others = [asyncio.ensure_future(batcher.submit(_pictures(n))) for n in range(5)]
        await asyncio.sleep(0.01)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0.01)
        with pytest.raises(Busy, match="ending"):
            await batcher.submit(_pictures(9))
        runner.gate.set()
        await closing
        assert [answer[0, 0] for answer in await asyncio.gather(first, *others)] == [0, 0, 1, 2, 3, 4]

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"queue_limit": 0}, {"lanes": 0}])
def test_sizes_that_cannot_be_are_refused(wrong):
    with pytest.raises(UserError, match="is 0") as caught:
        Batcher(MeanRunner(), **wrong)
    assert "1 or more" in caught.value.fix
