"""Connections to the program behind the door: requests and answers of HTTP/1.1 as streams, over asyncio alone.

With a general client (httpx) guard and proxy took twice as much of the processor for a small request and for each MiB
of an answer (`benchmark proxy`). This one knows one program on loopback, follows nothing and keeps nothing but open
connections.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from fastsd_lib.webui.answers import Headers

CONNECT_S = 5.0
KEPT_LINES = 32
KEPT_S = 4.0  # less than any server's patience: uvicorn's is 5 s
PIECE_BYTES = 1 << 18
LONGEST_HEAD_BYTES = 1 << 17
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: .*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")


class Broken(Exception):
    """The upstream is not there, closed the connection, or does not speak HTTP."""


class _Line:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.used, self.since_s = reader, writer, False, 0.0

    def close(self) -> None:
        self.writer.transport.abort()


class UpstreamAnswer:
    """The head of an answer; `pieces()` once, then `close()`."""

    def __init__(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers
        self._lines: UpstreamLines
        self._line: _Line | None = None
        self._length: int | None = 0  # None: until the connection ends
        self._chunked = self._keeps = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key == name]

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes, without its framing. Broken when it ends too early."""
        reader = self._line.reader
        try:
            if self._chunked:
                async for piece in _chunks(reader):
                    yield piece
            elif self._length is None:
                while piece := await reader.read(PIECE_BYTES):
                    yield piece
            else:
                async for piece in _exactly(reader, self._length):
                    yield piece
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            raise Broken(f"the answer broke off: {error!r}") from None
        if self._keeps:
            self._lines.keep(self._line)
            self._line = None

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


class UpstreamLines:
    """The connections to one address; unused ones are kept for a moment."""

    def __init__(self, host: str, port: int) -> None:
        self._address, self._kept = (host, port), list[_Line]()

    async def ask(
        self, method: str, target: bytes, headers: Headers, body: AsyncIterator[bytes] | None = None
    ) -> UpstreamAnswer:
        """Send a request, its body as it comes, and read the head of the answer.

        `headers` are whole, and say the body's length or `transfer-encoding: chunked`. A connection that the upstream
        closed while it was kept is replaced, where there is no body. Broken when there is no answer.
        """
        while True:
            line = await self._line()
            fresh = not line.used
            line.used = True
            try:
                return await self._asked(line, method, target, headers, body)
            except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
                line.close()
                if fresh or body is not None:
                    raise Broken(repr(error)) from None
            except BaseException:
                line.close()
                raise

    def keep(self, line: _Line) -> None:
        if len(self._kept) < KEPT_LINES and not line.reader.at_eof():
            line.since_s = asyncio.get_running_loop().time()
            self._kept.append(line)
        else:
            line.close()

    def close(self) -> None:
        while self._kept:
            self._kept.pop().close()

    async def _line(self) -> _Line:
        now = asyncio.get_running_loop().time()
        while self._kept:
            line = self._kept.pop()
            if now - line.since_s < KEPT_S and not line.reader.at_eof():
                return line
            line.close()
        try:
            opening = asyncio.open_connection(*self._address, limit=LONGEST_HEAD_BYTES)
            return _Line(*await asyncio.wait_for(opening, CONNECT_S))
        except (OSError, asyncio.TimeoutError) as error:
            raise Broken(repr(error)) from None

    async def _asked(
        self, line: _Line, method: str, target: bytes, headers: Headers, body: AsyncIterator[bytes] | None
    ) -> UpstreamAnswer:
        head = [b"%s %s HTTP/1.1" % (method.encode(), target)]
        head += [b"%s: %s" % pair for pair in headers]
        if any(b"\r" in one or b"\n" in one for one in head):
            raise Broken("a line end in a header")
        line.writer.write(b"\r\n".join([*head, b"", b""]))
        whole = True
        if body is not None:
            chunked = any(name == b"transfer-encoding" for name, _ in headers)
            try:
                await _send(line.writer, body, chunked)
            except OSError:
                whole = False  # it may have answered before the end, and closed
        answer = await _head(line.reader)
        answer._lines, answer._line = self, line
        answer._keeps &= whole and method != "HEAD"  # after which some servers send a body all the same
        if method == "HEAD" or answer.status in (204, 304):
            answer._chunked, answer._length = False, 0
        return answer


async def _send(writer: asyncio.StreamWriter, body: AsyncIterator[bytes], chunked: bool) -> None:
    async for piece in body:
        if chunked and piece:
            writer.write(b"%x\r\n" % len(piece))
            writer.write(piece)
            writer.write(b"\r\n")
        elif piece:
            writer.write(piece)
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _head(reader: asyncio.StreamReader) -> UpstreamAnswer:
    while True:
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *rest = raw[:-4].split(b"\r\n")
        status = _STATUS.fullmatch(first)
        pairs = [_HEADER.fullmatch(line) for line in rest]
        if status is None or not all(pairs):
            raise Broken(f"that is not HTTP: {raw[:80]!r}")
        answer = UpstreamAnswer(int(status[2]), [(pair[1].lower(), pair[2]) for pair in pairs])
        if answer.status >= 200:
            break  # 1xx only announce it
    codings, lengths = answer.all(b"transfer-encoding"), set(answer.all(b"content-length"))
    if codings:
        answer._chunked, answer._length = codings[-1].lower().endswith(b"chunked"), None
    elif len(lengths) > 1 or not all(length.isdigit() for length in lengths):
        raise Broken("its answer has no one length")
    else:
        answer._length = int(lengths.pop()) if lengths else None
    ends = b"close" in b",".join(answer.all(b"connection")).lower()
    framed = answer._chunked or answer._length is not None or answer.status in (204, 304)
    answer._keeps = status[1] == b"1" and not ends and framed
    return answer


async def _exactly(reader: asyncio.StreamReader, left: int) -> AsyncIterator[bytes]:
    while left:
        piece = await reader.read(min(left, PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        size = _SIZE.fullmatch((await reader.readuntil(b"\r\n"))[:-2])
        if size is None:
            raise Broken("its answer is cut into no chunks")
        length = int(size[1], 16)
        if not length:
            break
        async for piece in _exactly(reader, length):
            yield piece
        if await reader.readexactly(2) != b"\r\n":
            raise Broken("its answer is cut into no chunks")
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
