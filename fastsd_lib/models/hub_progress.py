"""What the Hub's own downloader tells of its bytes, as events; and a way to stop it."""

from __future__ import annotations

import threading
import time
from typing import Any

from fastsd_lib.core.progress import BYTES_PER_S, ProgressEvent, Report
from fastsd_lib.core.text import escaped

EVERY_S = 0.5


class HubProgress:
    """Hears the bars of one download, which is of `total` bytes (0 = not known), and reports them under one task.

    What `report` raises is raised in each of the downloader's threads, and is kept as `stopped`: not each of its ways
    lets an error through.
    """

    def __init__(self, hub_id: str, total: int, report: Report) -> None:
        self._task, self._total, self._report = f"download {escaped(hub_id[:60])}", total, report
        self._lock = threading.Lock()
        self._told_s, self._told_bytes = time.monotonic(), 0
        self._told = False
        self.stopped: BaseException | None = None

    def finish(self) -> None:
        """All is there: said where anything was said before."""
        if self.stopped is not None:
            raise self.stopped
        if self._told:
            self.tell(self._total or self._told_bytes, finished=True)

    def tell(self, done: int, finished: bool = False) -> None:
        """So many bytes are there. Raises what `report` raises."""
        with self._lock:
            if self.stopped is not None:
                raise self.stopped
            self._told = True
            now, total = time.monotonic(), self._total
            done = max(done, self._told_bytes)  # a slower thread counted before a faster one
            done = min(done, total) if total else done
            speed = max(done - self._told_bytes, 0) / max(now - self._told_s, 1e-3) / 1e6
            self._told_s, self._told_bytes = now, done
            text = f"{done / 1e6:,.0f}{f' of {total / 1e6:,.0f}' if total else ''} MB, {speed:.1f} MB/s"
            facts = {"": text, BYTES_PER_S: speed * 1e6}
            try:
                # Of an untold size there is no bar: 0 of 1.
                self._report(ProgressEvent(self._task, done if total else int(finished), total or 1, facts))
            except BaseException as error:
                self.stopped = error
                raise

    def _heard(self, done: int) -> None:
        if self.stopped is not None:
            raise self.stopped
        if time.monotonic() - self._told_s >= EVERY_S:
            self.tell(done)

    def bars(self) -> type[Any]:
        """The class of bars for the downloader: they draw nothing."""
        from tqdm.std import tqdm

        heard = self._heard

        class Bar(tqdm):
            most_bytes = 0  # of several bars of bytes, one may stand still

            def __init__(self, *words: Any, **settings: Any) -> None:
                self._counts_bytes = settings.get("unit") == "B"
                super().__init__(*words, **{**settings, "disable": True})

            def update(self, n: float | None = 1) -> None:
                self.n += n or 0
                if self._counts_bytes:  # others count files
                    Bar.most_bytes = max(Bar.most_bytes, int(self.n))
                heard(Bar.most_bytes)

        return Bar
