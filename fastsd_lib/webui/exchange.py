"""One request on its way through: the limits while it runs, and the form of what comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastsd_lib.webui.answers import FILE_POLICY, KEPT_ERROR_BYTES, OWN, Rules, reshaped_error, secured
from fastsd_lib.webui.asked import Answer, Asked, Limits

log = logging.getLogger("fastsd_lib.webui.guard")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def answer(asked: Asked, send: Send, found: Answer) -> None:
    """Send an answer of our own, and close the connection after one that leaves a body unread."""
    headers = [*found.headers, (b"content-length", str(len(found.body)).encode())]
    if found.status >= 400 and asked.has_body:
        headers.append((b"connection", b"close"))
    await send(
        {"type": "http.response.start", "status": found.status, "headers": secured(headers, found.policy)}
    )
    await send({"type": "http.response.body", "body": b"" if asked.method == "HEAD" else found.body})


async def refuse_socket(asked: Asked, receive: Receive, send: Send, found: Answer) -> None:
    """Refuse before the handshake is done, with the answer itself where the server can carry one."""
    await receive()  # websocket.connect
    if "websocket.http.response" in (asked.scope.get("extensions") or {}):
        headers = [*found.headers, (b"content-length", str(len(found.body)).encode())]
        start = {"status": found.status, "headers": secured(headers, found.policy)}
        await send({"type": "websocket.http.response.start", **start})
        await send({"type": "websocket.http.response.body", "body": found.body})
    else:
        await send({"type": "websocket.close", "code": 1008})


class Exchange:
    """One HTTP request while the routes work on it."""

    def __init__(
        self,
        asked: Asked,
        receive: Receive,
        send: Send,
        limits: Limits,
        secrets: list[str],
        rules: Rules = OWN,
    ) -> None:
        self._asked, self._limits, self._secrets, self._rules = asked, limits, secrets, rules
        self._ask, self._tell = receive, send
        self._received, self._whole = 0, False
        self._begun = self._sent = False  # the routes' answer
        self._over = self._late = False  # answered by us, ran out of time
        self._held: tuple[Message, bytearray] | None = None  # an error that is being put into shape
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, app: Callable[..., Awaitable[None]], scope: Scope) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        self._deadline_s = loop.time() + self._limits.body_s
        self._task = task
        body_s = self._limits.body_s if self._asked.has_body else 0.0
        self._timer = loop.call_later(body_s + self._limits.answer_s, self._run_out)
        try:
            await app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            if not self._late:
                raise
            if hasattr(task, "uncancel"):
                task.uncancel()
            await self._end(Answer.error(504, f"There was no answer within {self._limits.answer_s:g} s."))
        except Exception as error:
            if self._over:
                return  # it fell over our having answered already
            log.error("%s %s failed", self._asked.method, self._asked.path, exc_info=error)
            if self._begun and not self._sent:
                raise ConnectionAbortedError("the answer broke off") from None
            await self._end(Answer.error(500, "The server failed at this; its log says why."))
        finally:
            self._timer.cancel()

    def _run_out(self) -> None:
        self._late = True
        self._task.cancel()

    async def _end(self, found: Answer) -> None:
        """Answer in the routes' place; nothing of theirs is sent after it."""
        if self._over or self._begun:
            return
        self._over = True
        await answer(self._asked, self._tell, found)

    # ------------------------------------------------------------------ what comes in

    async def _receive(self) -> Message:
        if self._over:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._ask()  # waits for the client to leave: as long as it likes
        loop = asyncio.get_running_loop()
        left_s = min(self._limits.silence_s, self._deadline_s - loop.time())
        try:
            message = await asyncio.wait_for(self._ask(), max(left_s, 0.0))
        except asyncio.TimeoutError:
            await self._end(Answer.error(408, "The body of the request did not come in time."))
            return {"type": "http.disconnect"}
        self._whole = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self._limits.body_bytes:
            await self._end(Answer.error(413, f"A request may have {self._limits.body_bytes} bytes."))
            return {"type": "http.disconnect"}
        if self._whole and not self._begun:
            self._timer.cancel()
            self._timer = loop.call_later(self._limits.answer_s, self._run_out)
        return message

    # ------------------------------------------------------------------ what goes out

    async def _send(self, message: Message) -> None:
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._timer.cancel()
            made = "/file=" in self._asked.path or "/file/" in self._asked.path
            policy = FILE_POLICY if made else self._rules.policy
            headers = secured(message.get("headers", []), policy, self._rules)
            message = {**message, "headers": headers}
            if self._needs_shape(message):
                self._held = (message, bytearray())
                return
            self._begun = True
        elif message["type"] == "http.response.body" and self._held is not None:
            await self._hold(message)
            return
        self._sent = self._begun and not message.get("more_body", False) and "body" in message["type"]
        await self._tell(message)

    def _needs_shape(self, start: Message) -> bool:
        html = _header(start, b"content-type").startswith("text/html")
        return (
            self._rules.shapes_errors
            and self._asked.method != "HEAD"
            and (start["status"] >= 500 or (start["status"] >= 400 and not html))
        )

    async def _hold(self, message: Message) -> None:
        start, raw = self._held
        if len(raw) <= KEPT_ERROR_BYTES:
            raw += message.get("body", b"")
        if message.get("more_body", False):
            return
        self._held, self._begun, self._sent = None, True, True
        kind = _header(start, b"content-type")
        unread = bool(_header(start, b"content-encoding")) or len(raw) > KEPT_ERROR_BYTES
        readable = "json" in kind or kind.startswith("text/plain")
        content = bytes(raw) if readable and not unread else b"{}"
        body = reshaped_error(start["status"], kind if content == raw else "json", content, self._secrets)
        dropped = (b"content-type", b"content-length", b"content-encoding")
        headers = [pair for pair in start["headers"] if pair[0].lower() not in dropped]
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *([] if self._whole or not self._asked.has_body else [(b"connection", b"close")]),
        ]
        await self._tell({**start, "headers": headers})
        await self._tell({"type": "http.response.body", "body": body})


def _header(start: Message, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in start["headers"] if key.lower() == name), "")
