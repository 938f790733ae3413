"""A job's progress as server-sent events (WHATWG HTML, 9.2): any number of listeners, none of which holds a thread."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import BaseModel

from fastsd_lib.generation.jobs import Job
from fastsd_lib.generation.picture_text import picture_bytes
from fastsd_lib.webui.errands import Errands

HEARTBEAT_S = 10.0  # so that what stands between does not take a silent stream for a dead one
LOOK_S = 1.0  # a place in the queue changes without a word
SHORTEST_S = 0.05  # between two events: a fast model takes more steps than anybody reads
PREVIEW_SIDE_PX = 512


class Previews:
    """Previews as JPEG; many who look at one step cost one picture."""

    def __init__(self, errands: Errands) -> None:
        self._errands, self._lock = errands, threading.Lock()
        self._made: OrderedDict[str, tuple[Any, bytes | None]] = OrderedDict()

    async def of(self, job: Job) -> str | None:
        """In a data URI."""
        data = await self.jpeg(job)
        return data and f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"

    async def jpeg(self, job: Job) -> bytes | None:
        """None while there is nothing to see."""
        kept = self._made.get(job.id)
        return kept[1] if kept and kept[0] == _stamp(job) else await self._errands.run(self._make, job)

    def _make(self, job: Job) -> bytes | None:
        with self._lock:  # whoever comes second finds it made
            stamp = _stamp(job)
            kept = self._made.get(job.id)
            if kept and kept[0] == stamp:
                return kept[1]
            picture = job.preview()
            data = None
            if picture is not None:
                picture = picture.convert("RGB")
                picture.thumbnail((PREVIEW_SIDE_PX, PREVIEW_SIDE_PX))
                data = picture_bytes(picture, "JPEG", quality=80)
            self._made[job.id] = stamp, data
            while len(self._made) > 64:
                self._made.popitem(last=False)
            return data


def _stamp(job: Job) -> tuple[Any, ...]:
    """What it shows changes with this; an id may be given again when its job is over."""
    return job.created_s, job.step, len(job.pictures), job.over


async def events(
    job: Job, view: Callable[[Job], BaseModel], previews: Previews, preview_every_s: float
) -> AsyncIterator[str]:
    """`progress` whenever it changes, `picture` for each finished one, `preview` at most so often, at last `done`.

    `progress` and `done` carry the job. Every stream begins with a `progress`, so one that broke is simply
    opened again.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    unsubscribe = job.subscribe(lambda _: loop.call_soon_threadsafe(changed.set))
    told: Any = None
    pictures, spoke_s, preview_s, previewed = 0, loop.time(), -preview_every_s + loop.time(), ""
    try:
        while True:
            over = job.over  # before it is looked at: what comes after `done` would be lost
            shown = view(job)
            key = _of_note(shown)
            if key != told:
                told, spoke_s = key, loop.time()
                yield _event("progress", shown)
            for picture in shown.pictures[pictures:]:
                yield _event("picture", picture)
            pictures = len(shown.pictures)
            if (
                preview_every_s
                and not over
                and job.state == "drawing"
                and loop.time() - preview_s >= preview_every_s
            ):
                preview_s = loop.time()
                text = await previews.of(job)
                if text and text != previewed:
                    previewed, spoke_s = text, loop.time()
                    yield _event("preview", {"step": shown.step, "image": text})
            if over:
                yield _event("done", shown)
                return
            if loop.time() - spoke_s >= HEARTBEAT_S:
                spoke_s = loop.time()
                yield f": {int(time.time())}\n\n"
            await asyncio.sleep(SHORTEST_S)
            try:
                await asyncio.wait_for(changed.wait(), LOOK_S)
            except asyncio.TimeoutError:
                continue
            changed.clear()
    finally:
        unsubscribe()


def _of_note(shown: Any) -> tuple[Any, ...]:
    return shown.state, shown.place, shown.step, shown.steps, len(shown.pictures), tuple(shown.notes)


def _event(name: str, content: Any) -> str:
    text = content.model_dump_json() if isinstance(content, BaseModel) else json.dumps(content)
    return f"event: {name}\ndata: {text}\n\n"
