"""One engine, many browsers: each order runs in a thread, tells its progress, and can be stopped."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastsd_lib.core.progress import ProgressEvent, duration
from fastsd_lib.generation.engine import Engine, GeneratedImage
from fastsd_lib.generation.request import GenerationRequest


class Stopped(Exception):
    """The person who ordered the pictures pressed Stop, or left."""


@dataclass
class Studio:
    """The engine behind a page. Orders queue for it: one is drawn at a time."""

    engine: Engine
    _stops: dict[str, threading.Event] = field(default_factory=dict)  # by browser session
    _engine_free: threading.Lock = field(default_factory=threading.Lock)

    def stop(self, session: str) -> None:
        """End this browser's order after the step it is in; other browsers' orders go on."""
        if session in self._stops:
            self._stops[session].set()

    def draw(
        self, request: GenerationRequest, session: str
    ) -> Iterator[ProgressEvent | list[GeneratedImage]]:
        """Yield progress, then the pictures (none when stopped). What the engine raises is raised here.

        Closing the iterator, as happens when a browser goes away, stops the drawing.
        """
        stop = self._stops[session] = threading.Event()
        told: queue.SimpleQueue[ProgressEvent | list[GeneratedImage] | Exception] = queue.SimpleQueue()

        def report(event: ProgressEvent) -> None:
            if stop.is_set():
                raise Stopped
            told.put(event)

        def work() -> None:
            try:
                with self._engine_free:
                    if stop.is_set():  # while it waited for its turn
                        raise Stopped
                    told.put(self.engine.generate(request, report))
            except Stopped:
                told.put([])
            except Exception as error:
                told.put(error)

        threading.Thread(target=work, name="drawing", daemon=True).start()
        try:
            while True:
                news = told.get()
                if isinstance(news, Exception):
                    raise news
                yield news
                if isinstance(news, list):
                    return
        finally:
            stop.set()
            if self._stops.get(session) is stop:
                del self._stops[session]


@dataclass
class Progress:
    """Events -> the line and bar above the pictures."""

    started: float = field(default_factory=time.monotonic)

    def html(self, event: ProgressEvent) -> str:
        share = event.done / max(event.total, 1)
        spent = time.monotonic() - self.started
        left = f"{duration(spent / share * (1 - share))} left" if share > 0.05 else ""
        which = f" · picture {event.facts['picture']}" if "picture" in event.facts else ""
        return state(f"Step {event.done} of {event.total}{which}", left, share)

    def finished(self, pictures: int) -> str:
        if not pictures:
            return state("Stopped.")
        count = "1 picture" if pictures == 1 else f"{pictures} pictures"
        return state(f"{count} in {duration(time.monotonic() - self.started)}")


def state(text: str, right: str = "", share: float | None = None) -> str:
    bar = "" if share is None else f'<div class="bar"><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="line"><span>{text}</span><span>{right}</span></div>{bar}'
