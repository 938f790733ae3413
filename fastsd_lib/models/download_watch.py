"""Looks at a download from outside while it comes: progress, stall, stop, space, the note on the disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.core.text import escaped
from fastsd_lib.models.download_answers import Failed
from fastsd_lib.models.download_part import OwnDisk, Part

if TYPE_CHECKING:
    from fastsd_lib.models.downloading import DownloadRules, Source

SPARE_BYTES = 64 << 20  # a disk is never filled to the last byte
LEAST_BYTES_PER_S = 100  # slower than this for `stall_s` is a stall


class DownloadStopped(UserError):
    """`should_stop` said so; the same call goes on from there."""


class Watch:
    """Call it several times a second with the bytes that this try has received."""

    def __init__(
        self, source: Source, part: Part, rules: DownloadRules, report: Report,
        should_stop: Callable[[], bool] | None, name: str,
    ) -> None:  # fmt: skip
        self._source, self._part, self._rules, self._report = source, part, rules, report
        self._should_stop, self._task = should_stop, f"download {escaped(name[:60])}"
        self._saved = self._told = time.monotonic()
        self._told_bytes = part.bytes_done
        self._window = (time.monotonic(), 0)  # begin of the time in which a stall is looked for, bytes then

    def __call__(self, received: int) -> None:
        now = time.monotonic()
        self._stop_if_asked()
        begin, bytes_then = self._window
        if received < bytes_then:  # a new try
            self._window = (now, received)
        elif now - begin >= self._rules.stall_s:
            if received - bytes_then < LEAST_BYTES_PER_S * self._rules.stall_s:
                raise Failed(f"gave next to nothing for {self._rules.stall_s:g} s", again=True)
            self._window = (now, received)
        if now - self._told >= 0.5:
            self._tell(now)
        if now - self._saved >= self._rules.save_s:
            self._saved = now
            if self._part.size is not None:
                self._part.record()
            _check_space(self._part, 0)

    def _tell(self, now: float) -> None:
        done, size = self._part.bytes_done, self._part.size
        speed = max(done - self._told_bytes, 0) / max(now - self._told, 1e-3) / 1e6
        self._told, self._told_bytes = now, done
        text = f"{done / 1e6:,.0f}{f' of {size / 1e6:,.0f}' if size else ''} MB, {speed:.1f} MB/s"
        # A file of untold size shows no bar: 0 of 1.
        self._report(
            ProgressEvent(self._task, done if size else 0, size or 1, {"": text, "bytes_per_s": speed * 1e6})
        )

    def rest(self, seconds: float) -> None:
        """Before the next try."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._stop_if_asked()
            time.sleep(min(left, 0.1))
        self._window = (time.monotonic(), 0)

    def _stop_if_asked(self) -> None:
        if self._should_stop is not None and self._should_stop():
            raise DownloadStopped(
                f"{self._task} was stopped.", fix="run it again: it goes on where it stopped."
            )

    def check_size(self, size: int | None) -> None:
        """What the server says (None: nothing), or what came without its saying so."""
        wanted, most = self._source.size_bytes, self._rules.most_bytes
        if size == 0:
            raise Failed("gives an empty file", "check the address, or take another one.")
        if size is not None and size > most:
            raise Failed(
                f"gives {size / 1e9:,.1f} GB or more, and at most {most / 1e9:,.1f} GB are taken",
                "take another address.",
            )
        if size is not None and wanted and size != wanted:
            raise Failed(
                f"gives {size:,} bytes where {wanted:,} are expected", "take another address of this file."
            )
        _check_space(self._part, size or wanted)


def _check_space(part: Part, size: int) -> None:
    """OwnDisk when the rest of `size` bytes does not fit."""
    needed = max(size - part.bytes_done, 0)
    free = shutil.disk_usage(part.path.parent).free
    if free < needed + SPARE_BYTES:
        raise OwnDisk(
            f"{part.path.parent} has {free / 1e9:,.1f} GB free, and {(needed + SPARE_BYTES) / 1e9:,.1f} GB are needed.",
            fix="free some space there, or choose another folder.",
        )
