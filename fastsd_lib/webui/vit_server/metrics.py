"""What happened, as Prometheus reads it: counters, gauges and histograms in its text format 0.0.4."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram:
    """How often a value fell under each bound. Safe in threads."""

    def __init__(self, bounds: Iterable[float] = SECONDS) -> None:
        self.bounds = tuple(bounds)
        self.counts, self.sum, self._lock = [0] * (len(self.bounds) + 1), 0.0, threading.Lock()

    def add(self, value: float) -> None:
        with self._lock:
            self.counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def lines(self, name: str, labels: Mapping[str, str]) -> Iterator[str]:
        below = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            yield sample(
                f"{name}_bucket", {**labels, "le": f"{bound:g}" if bound != "+Inf" else "+Inf"}, below
            )
        yield sample(f"{name}_sum", labels, self.sum)
        yield sample(f"{name}_count", labels, below)


class Metrics:
    """Of one server."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by route and status
        self.seconds: dict[str, Histogram] = {}  # by route
        self.pictures: Counter[str] = Counter()  # by route; those that were answered
        self.decoding = Histogram()  # seconds of one picture

    def note(self, route: str, status: int, seconds: float) -> None:
        self.requests[route, status] += 1
        self.seconds.setdefault(route, Histogram()).add(seconds)


def sample(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}"


def family(name: str, kind: str, about: str, samples: Iterable[str]) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
    yield from samples


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
