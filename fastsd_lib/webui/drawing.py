"""Orders of the page: each browser hears of its own, can stop it, and holds no thread while it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastsd_lib.core.progress import duration
from fastsd_lib.generation.engine import GeneratedImage
from fastsd_lib.generation.jobs import Job, Order
from fastsd_lib.generation.service import Service


@dataclass
class Orders:
    """The page's side of the service."""

    service: Service
    _latest: dict[str, str] = field(default_factory=dict)  # browser session -> id of its job under way

    def stop(self, session: str) -> None:
        """End this browser's job before its next step; all others go on."""
        if session in self._latest:
            self.service.cancel(self._latest[session])

    async def draw(self, order: Order, session: str) -> AsyncIterator[Job | list[GeneratedImage]]:
        """Yield the job whenever it has changed, then its pictures (those that were finished when stopped).

        UserError as the service says it. Closing the iterator, as happens when a browser goes away, ends the job.
        """
        job = self.service.submit(order)
        self._latest[session] = job.id
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def tell(_: Job) -> None:
            loop.call_soon_threadsafe(changed.set)

        unsubscribe = job.subscribe(tell)
        try:
            while not job.over:
                yield job
                await changed.wait()
                changed.clear()
            yield await asyncio.wrap_future(job.future)
        finally:
            unsubscribe()
            self.service.cancel(job.id)
            if self._latest.get(session) == job.id:
                del self._latest[session]


@dataclass
class Progress:
    """A job -> the line and bar above the pictures."""

    started: float = field(default_factory=time.monotonic)

    def html(self, job: Job) -> str:
        count = job.order.request.count
        if job.state == "waiting":
            ahead = job.place - 1
            queue = f" · {ahead} before you" if ahead > 0 else ""
            return state(f"Waiting for the engine{queue}", _left(job), 0)
        first, last = job.in_work[0] + 1, job.in_work[1]
        which = ""
        if count > 1 and last:
            which = (
                f" · picture {first}-{last} of {count}" if last > first else f" · picture {first} of {count}"
            )
        return state(f"Step {job.picture_step} of {job.picture_steps}{which}", _left(job), job.share)

    def finished(self, pictures: int, stopped: bool = False) -> str:
        if not pictures:
            return state("Stopped.")
        count = "1 picture" if pictures == 1 else f"{pictures} pictures"
        return state(
            f"{'Stopped with ' if stopped else ''}{count} in {duration(time.monotonic() - self.started)}"
        )


def _left(job: Job) -> str:
    left = job.eta_s
    return f"{duration(left)} left" if left and (job.state == "waiting" or job.share > 0.05) else ""


def state(text: str, right: str = "", share: float | None = None) -> str:
    bar = "" if share is None else f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="line"><span>{text}</span><span>{right}</span></div>{bar}'
