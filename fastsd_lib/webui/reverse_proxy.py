"""The door in front of a program that is not ours: AUTOMATIC1111, Forge or ComfyUI on this machine's loopback.

Everything passes as it comes, in both directions: nothing is collected, so events arrive when they are sent and a
model of gigabytes needs no memory. The guard has decided already who may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui import proxy_sockets
from fastsd_lib.webui.answers import FOREIGN
from fastsd_lib.webui.asked import FOREIGN_LIMITS, Answer, Asked, Limits
from fastsd_lib.webui.door import Door, is_loopback
from fastsd_lib.webui.exchange import Receive, Scope, Send
from fastsd_lib.webui.proxy_headers import answer_headers, request_headers
from fastsd_lib.webui.proxy_lines import Broken, UpstreamAnswer, UpstreamLines
from fastsd_lib.webui.proxy_login import Login
from fastsd_lib.webui.proxy_page import Trouble, unavailable
from fastsd_lib.webui.server import Server, serve_app

log = logging.getLogger(__name__)


class ReverseProxy:
    """An ASGI app that is whatever answers at `upstream`. Made by `proxy_app`."""

    def __init__(
        self,
        upstream: str,
        login: Login | None,
        headers: Mapping[str, str],
        trouble: Callable[[], Trouble],
        message_bytes: int,
    ) -> None:
        self.upstream, self.login = upstream, login
        self._more = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        self._trouble, self._message_bytes = trouble, message_bytes
        parts = urlsplit(upstream)
        self.lines = UpstreamLines(parts.hostname or "", parts.port or 80)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            headers = await self._headers(scope)
            await proxy_sockets.pass_on(
                scope, receive, send, self.upstream, headers, self._trouble, self._message_bytes
            )
        else:
            await self._pass_on(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self.lines.close()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        authorization, cookies = "", ""
        if self.login is not None:
            authorization, cookies = self.login.authorization, await self.login.cookies(self.lines)
        return request_headers(scope, self.upstream, authorization, cookies) + self._more

    # ------------------------------------------------------------------ one request

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Asked(scope)
        target = scope.get("raw_path") or scope["path"].encode()
        if not target.startswith(b"/"):
            await _say(send, Answer.error(400, "An address here begins with /."), asked)
            return
        if scope.get("query_string"):
            target += b"?" + scope["query_string"]
        left = asyncio.Event()  # the browser has gone
        body = _Body(receive, asked.has_body, left)
        work = asyncio.ensure_future(self._exchange(scope, asked, target, body, send))
        watch = asyncio.ensure_future(body.watch())
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and left.is_set():
                work.cancel()  # nobody reads on: let go of the upstream, too
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)

    async def _exchange(self, scope: Scope, asked: Asked, target: bytes, body: _Body, send: Send) -> None:
        try:
            answer = await self._answered(scope, asked, target, body)
        except Broken as error:
            if body.left.is_set():
                return
            log.info("%s does not answer: %r", self.upstream, error)
            text = unavailable(self._trouble(), scope.get("fastsd.user"), asked.wants_html, asked.has_body)
            await _say(send, text, asked)
            return
        try:
            headers = answer_headers(answer.headers, self.upstream, scope["scheme"] == "https")
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for piece in answer.pieces():  # as it comes, packed as it is
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            answer.close()

    async def _answered(self, scope: Scope, asked: Asked, target: bytes, body: _Body) -> UpstreamAnswer:
        """The head of the upstream's answer. Where our log-in there had ended, what has no body is asked once more."""
        again = self.login is not None and not asked.has_body
        while True:
            sent = body.pieces() if asked.has_body else None
            answer = await self.lines.ask(asked.method, target, await self._headers(scope), sent)
            if not again or answer.status != 401:
                return answer
            answer.close()
            self.login.forget()
            again = False


class _Body:
    """The body of a request, read from the browser as fast as the upstream takes it."""

    def __init__(self, receive: Receive, present: bool, left: asyncio.Event) -> None:
        self._receive, self.left = receive, left
        self._read = asyncio.Event()
        if not present:
            self._read.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        while not self._read.is_set():
            message = await self._receive()
            if message["type"] != "http.request":
                self.left.set()
                self._read.set()
                raise Broken("the browser left in the middle of its request")
            if not message.get("more_body", False):
                self._read.set()
            if message.get("body"):
                yield message["body"]

    async def watch(self) -> None:
        """Returns when the browser has gone; the body is read by whoever sends it on."""
        await self._read.wait()
        while not self.left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self.left.set()


async def _say(send: Send, answer: Answer, asked: Asked) -> None:
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    if asked.has_body:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if asked.method == "HEAD" else answer.body})


# ------------------------------------------------------------------ made and served


def proxy_app(
    upstream: str,
    credentials: tuple[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    trouble: Callable[[], Trouble] | None = None,
    name: str = "the web UI",
    message_bytes: int = FOREIGN_LIMITS.message_bytes,
) -> ReverseProxy:
    """An ASGI app that passes everything on to `upstream`, "http://127.0.0.1:8188", and its answers back.

    Serve it with `serve_proxy` (or `serve_app` with FOREIGN_LIMITS and FOREIGN). `credentials` are the upstream's own
    user and password, which no browser ever sees: sent as Basic, and signed in with at its /login where there is one.
    `headers` are added to every request. `trouble` says why there is no answer; without it `name` does not answer.
    UserError when `upstream` is no address on this machine's loopback.
    """
    parts = urlsplit(upstream)
    if parts.scheme != "http" or not is_loopback(parts.hostname or "") or parts.path not in ("", "/"):
        raise UserError(
            f"{upstream!r} is no program on this machine.",
            fix='give its address, as "http://127.0.0.1:7860".',
        )
    origin = f"http://{parts.netloc}"
    silent = Trouble(f"{name} does not answer.")
    login = Login(origin, *credentials) if credentials else None
    return ReverseProxy(origin, login, headers or {}, trouble or (lambda: silent), message_bytes)


def serve_proxy(
    upstream: str,
    door: Door,
    port: int | None = 7860,
    limits: Limits = FOREIGN_LIMITS,
    scratch: Path | None = None,
    closing: Callable[[], None] = lambda: None,
    **more: Any,
) -> Server:
    """Serve `proxy_app(upstream, **more)` behind the guard and return when it answers. UserError as there, and when
    the port is taken.
    """
    app = proxy_app(upstream, message_bytes=limits.message_bytes, **more)
    return serve_app(app, door, port, scratch, limits, closing, rules=FOREIGN)
