"""Progress as one stream of events: a terminal, a notebook panel and a log file all listen to the same."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

BYTES_PER_S = "bytes_per_s"  # the fact of a task that counts bytes; a text under "" says it in megabytes
UNREADABLE = 10_000_000  # as a count
QUICK_S = 1.0  # a log gets no lines between beginning and end of work that takes less


@dataclass(frozen=True)
class ProgressEvent:
    """One thing got done. `done` runs from 0 (the task was announced) to `total` (it is finished)."""

    task: str  # "class images", "latents", "text encoder", "U-Net"
    done: int
    total: int
    facts: Mapping[str, float | str] = field(
        default_factory=dict
    )  # loss, memory_mib, eta_s; a text under "" or "safe" speaks for itself
    pictures: tuple[Path, ...] = ()  # samples that were just written

    @property
    def share(self) -> str:
        """ "45 %" where `done` and `total` are bytes, or other numbers that nobody reads; "" for what is counted.

        "..." of a transfer with the total 1: its size is not told.
        """
        if BYTES_PER_S not in self.facts and self.total < UNREADABLE:
            return ""
        return f"{100 * self.done // self.total} %" if self.total > 1 else "..."


Report = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """The Report of those who do not want to know."""


class ConsoleProgress:
    """A bar on a terminal; one line per finished task, and one per tenth of a long one, elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._started: dict[str, tuple[float, int]] = {}  # task -> (seconds, done at start)
        self._tenth: dict[str, int] = {}

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        started, first = self._started.setdefault(event.task, (now, event.done))
        finished = event.done >= event.total
        spent = now - started
        rate = (event.done - first) / spent if spent > 0 else 0.0
        text = f"{event.task} {event.share or f'{event.done}/{event.total}'}"
        facts = {name: value for name, value in event.facts.items() if name != BYTES_PER_S}
        if "eta_s" not in facts and rate > 0 and not finished:
            facts["eta_s"] = (event.total - event.done) / rate
        text += "".join(f"  {_fact(name, value)}" for name, value in facts.items())
        if finished and spent >= 0.05:
            text += f"  in {duration(spent)}"
        if self._terminal:
            width = 24
            filled = width * event.done // max(event.total, 1)
            bar = "█" * filled + "░" * (width - filled)
            self._stream.write(f"\r\033[K{bar} {text}" + ("\n" if finished else ""))
        elif finished or (spent >= QUICK_S and self._is_new_tenth(event)):
            self._stream.write(text + "\n")
        self._stream.flush()
        if finished:
            self._started.pop(event.task, None)
            self._tenth.pop(event.task, None)

    def _is_new_tenth(self, event: ProgressEvent) -> bool:
        tenth = 10 * event.done // max(event.total, 1)
        new = tenth > self._tenth.get(event.task, 0)
        self._tenth[event.task] = max(tenth, self._tenth.get(event.task, 0))
        return new


def duration(seconds: float) -> str:
    """ "45 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _fact(name: str, value: float | str) -> str:
    if isinstance(value, str):
        return value if name in ("", "safe") else f"{name} {value}"
    if name == "eta_s":
        return f"{duration(value)} left"
    if name.endswith("_mib"):
        return f"{name[:-4]} {value:,.0f} MiB"
    return f"{name} {value:.4g}"
