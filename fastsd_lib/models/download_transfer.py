"""One try at the bytes that a download still lacks: several connections where the server gives parts, else one.

The first answer says what the file is; only then are more connections opened. Each takes the next stretch of missing
bytes from a queue, so that a slow connection holds up nobody.
"""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.https_client import FetchRefused, Opened, UnknownHost
from fastsd_lib.models.download_answers import (
    TITLE_BYTES,
    Changed,
    Failed,
    Offer,
    account_fix,
    linked_hash,
    read_offer,
    web_page_title,
)
from fastsd_lib.models.download_line import Line
from fastsd_lib.models.download_part import Part

if TYPE_CHECKING:
    from fastsd_lib.models.downloading import DownloadRules, Source

READ_BYTES = 1 << 20  # at most; smaller ones cost time, more so with several connections
HEAD_BYTES = 512  # enough to tell a web page from a model
_OPEN_IT = "open the address in your browser, sign in or accept there what it asks, and take the link of the file itself."


class Transfer:
    """See the file's head. `run` may be called once."""

    def __init__(
        self, source: Source, part: Part, rules: DownloadRules, context: ssl.SSLContext | None, *, lines: int,
        ranges: bool, origin: str, check_size: Callable[[int | None], None],
    ) -> None:  # fmt: skip
        self._source, self._part, self._rules, self._context = source, part, rules, context
        self._most_lines = lines
        self._ranges, self._origin, self._check_size = ranges, origin, check_size
        self.sha256 = source.sha256.lower()  # the server may tell it on the way
        self.received = 0  # bytes, by this try
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._lines: list[Line] = []
        self._active = 0
        self._known = self._stopped = self._one_stream = False
        self._error: BaseException | None = None
        self._queue: list[tuple[int, int | None]] = self._first_wants()

    def run(self, tick: Callable[[int], None]) -> None:
        """Until nothing is missing. `tick` is called about ten times a second with the bytes received; it may raise."""
        self._start_line()
        try:
            while True:
                self._wake.wait(0.1)
                self._wake.clear()
                with self._lock:
                    error, active, more = self._error, self._active, self._known and bool(self._queue)
                if error is not None:
                    raise error
                tick(self.received)
                if not active:
                    if not (gaps := self._part.missing()):
                        return
                    with self._lock:
                        self._queue = self._cut(gaps)
                    self._start_line()
                elif more and active < self._most_lines:
                    self._start_line()
                    self._wake.set()
        finally:
            self._stopped = True
            for line in self._lines:
                line.cut()
            for thread in self._threads:
                thread.join(2.0)  # one that waits for a name server ends later: it writes nothing any more

    def _start_line(self) -> None:
        try:
            line = Line(self._source, self._rules, self._context)
        except FetchRefused as error:
            raise _plain(error) from None
        thread = threading.Thread(target=self._work, args=(line,), name="download", daemon=True)
        with self._lock:
            self._active += 1
            self._lines.append(line)
            self._threads.append(thread)
        thread.start()

    def _work(self, line: Line) -> None:
        try:
            while not self._stopped:
                with self._lock:
                    want = self._queue.pop(0) if self._queue else None
                if want is None:
                    break
                self._fetch(line, *want)
        except BaseException as error:
            self._give_up(_plain(error))
        finally:
            with suppress(OSError):
                line.close()
            with self._lock:
                self._active -= 1
            self._wake.set()

    def _give_up(self, error: BaseException) -> None:
        """One connection of several may fail: servers that allow two refuse the third."""
        with self._lock:
            if self._active > 1 and isinstance(error, Failed) and not isinstance(error, Changed):
                self._most_lines = max(1, self._most_lines - 1)
            elif self._error is None:
                self._error = error

    def _fetch(self, line: Line, start: int, end: int | None) -> None:
        asked = (start, end) if self._ranges else None
        headers = {}
        if asked is not None:
            headers["range"] = f"bytes={start}-{'' if end is None else end - 1}"
            if self._part.validator and self._part.origin == self._origin:
                headers["if-range"] = self._part.validator
        opened = line.ask(headers)
        offer = read_offer(opened.response, asked, opened.url, self._rules.most_wait_s)
        for hop in opened.hops:
            self.sha256 = self.sha256 or linked_hash(dict(hop))
        with self._lock:
            self._agree(offer)
        self._read(opened, offer)

    # ------------------------------------------------------------------ what is asked for

    def _first_wants(self) -> list[tuple[int, int | None]]:
        if self._part.size is not None:
            return self._cut(self._part.missing())[:1]
        return [(0, self._rules.segment_bytes if self._ranges else None)]

    def _cut(self, gaps: list[tuple[int, int]]) -> list[tuple[int, int | None]]:
        """Stretches that are worth a request: a large file in few of them, each connection several."""
        usual, total = self._rules.segment_bytes, sum(end - start for start, end in gaps)
        length = max(usual // 8, min(8 * usual, total // (4 * self._rules.parts)))
        return [(at, min(at + length, end)) for start, end in gaps for at in range(start, end, length)]

    def _agree(self, offer: Offer) -> None:
        """That this answer is of the file of which the other bytes are."""
        part = self._part
        if self._one_stream or (part.bytes_done and not offer.partial):
            raise Changed("gives the file only from its beginning now")
        if part.size is None:
            self._check_size(offer.size)
            part.size, part.name = offer.size, offer.name
        elif offer.size != part.size:
            raise Changed("has a file of another size now")
        if part.origin != self._origin:  # nothing is there yet, or another source's, and the hash will tell
            part.validator, part.origin = offer.validator, self._origin
        elif offer.validator != part.validator:
            raise Changed("has another file now")
        if self._known:
            return
        self._known, self._one_stream = True, not offer.partial
        if offer.partial:
            rest = [(start, end) for start, end in _without(part.missing(), offer.start, offer.end or 0)]
            if rest and not (part.validator or self.sha256):
                raise Changed("gives no sign by which parts of one file are known", ranges=False)
            self._queue = self._cut(rest)

    # ------------------------------------------------------------------ what comes

    def _read(self, opened: Opened, offer: Offer) -> None:
        run, response = self._part.run_from(offer.start), opened.response
        left = None if offer.end is None else offer.end - offer.start
        head: bytes | None = b"" if offer.start == 0 else None
        while left is None or left:
            data = response.read1(READ_BYTES if left is None else min(READ_BYTES, left))
            if self._stopped:
                return
            if not data:
                break
            left = None if left is None else left - len(data)
            self.received += len(data)
            if head is not None:
                head += data
                if len(head) < HEAD_BYTES and left != 0:
                    continue
                self._refuse_page(head, opened)
                data, head = head, None
            self._part.write(run, data)
            if offer.size is None:
                self._check_size(None if run[1] <= self._rules.most_bytes else run[1])
        if head:
            self._refuse_page(head, opened)
            self._part.write(run, head)
        if left:
            raise Failed(f"broke off after {run[1]:,} of {offer.end:,} bytes", again=True)
        if offer.end is None:
            self._check_size(run[1])
            self._part.size = run[1]
        if response.length == 0:
            response.read()  # tells http.client that the connection is free

    def _refuse_page(self, head: bytes, opened: Opened) -> None:
        said = opened.response.getheader("content-type") or ""
        if web_page_title(head, said) is None:
            return
        with suppress(OSError, http.client.HTTPException):
            while len(head) < TITLE_BYTES and b"</title" not in head.lower():
                if not (more := opened.response.read1(READ_BYTES)):
                    break
                head += more
        title = web_page_title(head, said)
        raise Failed(
            "gives a web page in place of the file" + (f': "{title}"' if title else ""),
            account_fix(opened.url, _OPEN_IT),
        )


def _without(gaps: list[tuple[int, int]], start: int, end: int) -> list[tuple[int, int]]:
    """`gaps` less what lies between `start` and `end`."""
    pieces = [piece for a, b in gaps for piece in ((a, min(b, start)), (max(a, end), b))]
    return [(a, b) for a, b in pieces if a < b]


def _plain(error: BaseException) -> BaseException:
    """Troubles of the way in words; ours and bugs as they are."""
    if isinstance(error, FetchRefused):
        unknown = isinstance(error, UnknownHost)
        return Failed(
            error.why, "check the address and your network." if unknown else error.fix, again=unknown
        )
    if isinstance(error, UserError | Failed):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return Failed(
            "cannot show that it is who it says (certificate)", "check the address and this machine's clock."
        )
    if isinstance(error, TimeoutError):
        return Failed("does not answer in time", again=True)
    if isinstance(error, http.client.HTTPException):
        return Failed(f"does not speak proper HTTP ({type(error).__name__})", again=True)
    if isinstance(error, OSError):
        return Failed(f"broke the connection ({type(error).__name__})", again=True)
    return error
