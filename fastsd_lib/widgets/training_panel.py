"""Training as one watches it: a bar per stage, the loss curve, the newest samples, Stop and Resume.

The work runs in a thread while the cell waits with `await`, so buttons stay alive, cells below wait their
turn, and interrupting the kernel stops the run as cleanly as the Stop button does. Unattended it is the same:
nobody presses anything, and the cell ends when training does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from fastsd_lib.core.curve import Curve
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, duration
from fastsd_lib.core.stopping import TrainingStopped
from fastsd_lib.widgets import style
from fastsd_lib.widgets.pictures import tiles

Work = Callable[[Report, Callable[[], bool]], Any]

# What hosts send to a kernel before they take the machine away; Windows knows one of them.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
REDRAW_S = 0.3  # a fast run would otherwise flood the page with messages
WAIT_S = 0.05


async def watch(title: str, work: Callable[[Report], Any]) -> Any:
    """Do some other long work with a panel of its own: `await watch("Pictures", lambda report: ...)`."""
    panel = TrainingPanel(title, stop_at_reports=True)
    return await panel.run(lambda report, should_stop: work(report))


class TrainingPanel(style.Shown):
    """Listens to ProgressEvents; `run` does the work, `result` is what it returned."""

    def __init__(self, title: str = "Training", *, stop_at_reports: bool = False) -> None:
        """With `stop_at_reports`, Stop ends work at its next report: for work that does not ask."""
        self.stages: dict[str, ProgressEvent] = {}  # newest event of each task, in order of appearance
        self.curve = Curve()
        self.pictures: tuple[Any, ...] = ()
        self.safe = ""  # "safe on Drive up to step 480", as the work last said it
        self.state = "ready"  # ready, running, stopping, stopped, finished, failed
        self._stop_at_reports = stop_at_reports
        self._work: Work | None = None
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._ending = 0  # the signal that asked the kernel to end
        self._drawing = threading.Lock()
        self._drawn_at = 0.0
        self._began_at = 0.0
        self._spent_s = 0.0

        self.stop_button = style.button("Stop and save", self.stop, disabled=True)
        self.resume_button = style.button("Resume", self.resume, kind="primary")
        self._status = style.html()
        self._stages = style.html()
        self._safe = style.html()
        self._facts = style.html()
        self._curve = style.html()
        self._samples = style.html()
        self._message = style.html()
        self._parts = (self._stages, self._safe, self._facts, self._curve, self._samples, self._message)
        controls = style.row(self.stop_button, self.resume_button, self._status)
        self.box = style.card(title, controls, *self._parts)
        self._draw()

    # -- what the work calls --------------------------------------------------------------------------

    def report(self, event: ProgressEvent) -> None:
        """Take in one event; the page is redrawn a few times a second at most."""
        self.stages[event.task] = event
        loss = event.facts.get("loss")
        if isinstance(loss, (int, float)):
            self.curve.add(event.task, event.done, float(loss))
        if event.pictures:
            self.pictures = event.pictures
        news = _about_safety(str(event.facts.get("safe", self.safe)))
        is_news, self.safe = news != self.safe, news
        now = time.monotonic()
        if now - self._drawn_at >= REDRAW_S or event.pictures or is_news or event.done >= event.total:
            self._draw()
        if self._stop_at_reports and self.should_stop():
            raise TrainingStopped(self._where())

    def should_stop(self) -> bool:
        return self._stop.is_set()

    # -- what the user does ---------------------------------------------------------------------------

    async def run(self, work: Work) -> Any:
        """Show the panel, do `work(report, should_stop)` to its end and return its result.

        Raises what the work raised, and TrainingStopped when the user stopped it: the cells below must not
        go on with half a training. `result` gives the saved checkpoint to those who want it all the same.
        """
        self.show()
        self._work = work
        self._start()
        return await self.finished()

    async def finished(self) -> Any:
        """Wait for a run, also one that the Resume button started, and return what it gave."""
        from fastsd_lib.widgets.kernel import answer_widgets

        with self._told_by_the_host():
            while self._thread is not None and self._thread.is_alive():
                try:
                    if self._stop.is_set():
                        self.stop()
                    await answer_widgets()
                    await asyncio.sleep(WAIT_S)
                except (
                    KeyboardInterrupt,
                    asyncio.CancelledError,
                ):  # "interrupt kernel": save, then end the cell
                    self.stop()
        if self._ending == signal.SIGTERM:  # all is saved: now the kernel may end, as it was told to
            os.kill(os.getpid(), signal.SIGTERM)
        if self.state == "stopped":
            raise TrainingStopped(
                self._where(), fix="press Resume, or run this cell again: it goes on from there."
            )
        return self.result

    @property
    def result(self) -> Any:
        """What the work returned, even when stopped; raises what it raised, or UserError before its end."""
        if self._error is not None:
            raise self._error
        if self.state not in ("finished", "stopped"):
            raise UserError("Training has not finished.", fix="wait for it, or press Stop and save.")
        return self._result

    def stop(self) -> None:
        """Ask the work to save and return after the step it is in."""
        if self.state == "running":
            self.state = "stopping"
            self._stop.set()
            self._draw()

    def resume(self) -> None:
        """Go on where the last run stopped, in the background; the kernel stays free."""
        if self._can_resume():
            self._start()

    # -- inside ---------------------------------------------------------------------------------------

    @contextmanager
    def _told_by_the_host(self) -> Iterator[None]:
        """Meanwhile SIGTERM asks the work to save and stop: its own thread cannot hear signals."""

        def asked(number: int, frame: object) -> None:
            self._ending = number
            self._stop.set()  # nothing more: a drawing that this interrupts would wait for itself

        previous = {}
        if threading.current_thread() is threading.main_thread():
            previous = {number: signal.signal(number, asked) for number in ENDINGS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            raise UserError("Training is running already.", fix="press Stop and save first.")
        self._stop.clear()
        self._ending = 0
        self._error = None
        self.state = "running"
        self._began_at = time.monotonic()
        self._draw()
        self._thread = threading.Thread(target=self._do, name="training", daemon=True)
        self._thread.start()

    def _do(self) -> None:
        assert self._work is not None
        try:
            self._result = self._work(self.report, self.should_stop)
            finished = getattr(self._result, "finished", not self._stop.is_set())  # a Checkpoint knows
            self.state = "finished" if finished else "stopped"
        except TrainingStopped:
            self.state = "stopped"
        except BaseException as error:  # it is raised again in the cell that waits, or shown here
            self._error = error
            self.state = "failed"
        self._spent_s += time.monotonic() - self._began_at
        self._draw()

    def _can_resume(self) -> bool:
        return self._work is not None and self.state in ("stopped", "failed")

    def _where(self) -> str:
        unfinished = [event for event in self.stages.values() if event.done < event.total]
        at = (
            f" at {unfinished[-1].task} {unfinished[-1].done} of {unfinished[-1].total}" if unfinished else ""
        )
        return f"Stopped{at}; what is done is saved."

    def _draw(self) -> None:
        with self._drawing:  # the worker and a button may both want to
            self._drawn_at = time.monotonic()
            running = self.state in ("running", "stopping")
            self.stop_button.disabled = self.state != "running"
            self.stop_button.layout.display = "" if running else "none"
            self.resume_button.layout.display = "" if self._can_resume() else "none"
            self._status.value = self._status_line()
            self._stages.value = _stage_rows(list(self.stages.values()))
            self._safe.value = f'<div class="fsd-help">{escape(self.safe)}</div>' if self.safe else ""
            self._facts.value = _fact_boxes(list(self.stages.values())[-1]) if self.stages and running else ""
            self._curve.value = self.curve.svg()
            self._samples.value = self._sample_tiles()
            self._message.value = style.failure(self._error) if isinstance(self._error, Exception) else ""
            for part in self._parts:
                part.layout.display = "" if part.value else "none"

    def _status_line(self) -> str:
        text = {
            "ready": "Not started.",
            "running": "Running.",
            "stopping": "Stopping: finishing this step, then saving.",
            "stopped": self._where(),
            "finished": f"Finished in {duration(self._spent_s)}.",
            "failed": "Ended with an error.",
        }[self.state]
        mark = {"finished": "fsd-good", "failed": "fsd-error"}.get(self.state, "fsd-help")
        return f'<span class="{mark}">{escape(text)}</span>'

    def _sample_tiles(self) -> str:
        if not self.pictures:
            return ""
        shown = [(path, path.stem) for path in self.pictures if path.is_file()]
        return '<span class="fsd-label">Newest samples</span>' + tiles(shown) if shown else ""


def _about_safety(fact: str) -> str:
    """A sentence of its own: a terminal prints the fact's name before it, "safe on Drive up to step 480"."""
    return f"safe {fact}" if fact.startswith("on ") else fact


def _stage_rows(events: list[ProgressEvent]) -> str:
    rows = []
    for event in events:
        percent = 100 * event.done / max(event.total, 1)
        rate = event.facts.get("eta_s")
        ended = event.done >= event.total
        side = "done" if ended else f"{duration(float(rate))} left" if isinstance(rate, (int, float)) else ""
        rows.append(
            f"<span>{escape(event.task)}</span>"
            f'<div class="fsd-bar" role="progressbar" aria-label="{escape(event.task, quote=True)}" '
            f'aria-valuenow="{event.done}" aria-valuemax="{event.total}">'
            f'<b style="width:{percent:.1f}%"></b></div>'
            f'<span class="fsd-number">{event.share or f"{event.done} / {event.total}"}</span>'
            f'<span class="fsd-number fsd-help">{side}</span>'
        )
        if event.share and not ended:  # how many megabytes, how fast
            rows.append(
                f'<span></span><span class="fsd-help">{escape(str(event.facts.get("", "")))}</span><i></i><i></i>'
            )
    return f'<div class="fsd-stages">{"".join(rows)}</div>' if rows else ""


def _fact_boxes(event: ProgressEvent) -> str:
    shown = [(label, text(event.facts[name])) for name, label, text in FACTS if name in event.facts]
    boxes = "".join(
        f"<div><small>{label}</small><strong>{escape(value)}</strong></div>" for label, value in shown
    )
    return f'<div class="fsd-facts">{boxes}</div>' if boxes else ""


def _figures(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


FACTS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("loss", "Loss", _figures),
    ("loss_average", "Loss, average", _figures),
    ("learning_rate", "Learning rate", _figures),
    ("images_per_s", "Images per second", _figures),
    ("memory_mib", "Memory", lambda mib: f"{float(mib):,.0f} MiB"),
    ("eta_s", "Time left", lambda seconds: duration(float(seconds))),
)
