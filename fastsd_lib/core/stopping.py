"""Being asked to stop: Ctrl-C, the host's SIGTERM or SIGUSR1, or whoever holds the button."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastsd_lib.core.errors import UserError

# SIGUSR1 is what batch systems send before they take the machine away; Windows has none.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class TrainingStopped(UserError):
    """The user stopped the run; it is saved and can go on."""


class Stopping:
    """Call it: has anybody asked?"""

    def __init__(self, should_stop: Callable[[], bool] | None) -> None:
        self._asked = threading.Event()
        self._should_stop = should_stop
        self.at_once = False  # a second signal came: nothing more is saved

    def __call__(self) -> bool:
        return self._asked.is_set() or bool(self._should_stop and self._should_stop())

    def on_signal(self, number: int, frame: object) -> None:
        if self._asked.is_set():
            self.at_once = True
            raise KeyboardInterrupt
        self._asked.set()


@contextmanager
def polite_stop(should_stop: Callable[[], bool] | None = None) -> Iterator[Stopping]:
    """Inside, the first signal only asks, so that the running step is finished and saved; a second ends at once.

    Only the main thread may hear signals: work in another thread hears `should_stop` alone, and whoever waits for
    it in the main thread asks on its behalf.
    """
    stopping = Stopping(should_stop)
    previous = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, stopping.on_signal) for number in SIGNALS}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
