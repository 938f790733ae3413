"""Work of routes that takes long, in threads of its own: so much at once, so much waiting, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from fastsd_lib.generation.jobs import QueueFull

T = TypeVar("T")


class Errands:
    """A pool that says when it is full; nobody's event loop waits in it."""

    def __init__(self, threads: int = 2, most: int = 32) -> None:
        self._pool = ThreadPoolExecutor(threads, "errands")
        self._most, self._under_way = most, 0

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """`work(*args)` in a thread. QueueFull when too many wait already."""
        if self._under_way >= self._most:
            raise QueueFull(
                f"{self._under_way} pictures are in work already.", fix="try again later.", retry_after_s=5
            )
        self._under_way += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args))
        future.add_done_callback(self._done)  # also when whoever waits is gone
        return await future

    def _done(self, future: Any) -> None:
        self._under_way -= 1
