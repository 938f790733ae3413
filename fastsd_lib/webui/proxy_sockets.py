"""One websocket through the proxy: messages of both kinds both ways, subprotocol, refusals and close codes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import websockets
from websockets.asyncio.client import ClientConnection, connect

from fastsd_lib.webui.answers import Headers
from fastsd_lib.webui.asked import Answer
from fastsd_lib.webui.exchange import Receive, Scope, Send
from fastsd_lib.webui.proxy_headers import answer_headers
from fastsd_lib.webui.proxy_page import Trouble, unavailable

OPENING_S = 20.0
CLOSING_S = 5.0
#: Never sent themselves (RFC 6455, 7.4.1): there was no code; the connection broke.
_SENDABLE = {1005: 1000, 1006: 1011, 1015: 1011}


async def pass_on(
    scope: Scope,
    receive: Receive,
    send: Send,
    upstream: str,
    headers: Headers,
    trouble: Callable[[], Trouble],
    message_bytes: int,
) -> None:
    """Connect to the upstream first, so that its refusal reaches the browser as the refusal it is."""
    await receive()  # websocket.connect
    try:
        line = await _connected(scope, upstream, headers, message_bytes)
    except websockets.InvalidStatus as refused:
        answer = refused.response
        kept = answer_headers(_raw(answer.headers), upstream, scope["scheme"] == "wss")
        kept = [pair for pair in kept if pair[0] != b"content-length"]
        await _refuse(scope, send, Answer(answer.status_code, answer.body or b"", kept))
        return
    except (OSError, TimeoutError, websockets.WebSocketException):
        await _refuse(scope, send, unavailable(trouble(), None, wants_page=False))
        return
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(line.close)
        cookies = [pair for pair in _raw(line.response.headers) if pair[0].lower() == b"set-cookie"]
        await send(
            {
                "type": "websocket.accept",
                "subprotocol": line.subprotocol,
                "headers": answer_headers(cookies, upstream, scope["scheme"] == "wss"),
            }
        )
        ways = [asyncio.ensure_future(_to_upstream(receive, line)), asyncio.ensure_future(_back(line, send))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


async def _connected(scope: Scope, upstream: str, headers: Headers, message_bytes: int) -> ClientConnection:
    target = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    query = scope.get("query_string", b"").decode("latin-1")
    address = f"ws{upstream.removeprefix('http')}{target}{'?' + query if query else ''}"
    made_there = (b"host", b"user-agent")  # by the library
    more = [(name.decode(), value.decode("latin-1")) for name, value in headers if name not in made_there]
    return await connect(
        address,
        additional_headers=more,
        user_agent_header=next((v.decode("latin-1") for k, v in headers if k == b"user-agent"), None),
        subprotocols=scope.get("subprotocols") or None,
        compression=None,  # both ends are this machine
        max_size=message_bytes,
        ping_interval=None,  # a program that computes may be silent for minutes
        open_timeout=OPENING_S,
        close_timeout=CLOSING_S,
        proxy=None,
    )


async def _to_upstream(receive: Receive, line: ClientConnection) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or 1005
            await line.close(_SENDABLE.get(code, code), message.get("reason") or "")
            return
        text = message.get("text")
        try:
            await line.send(text if text is not None else message["bytes"])
        except websockets.ConnectionClosed:
            return  # the other way tells the browser


async def _back(line: ClientConnection, send: Send) -> None:
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            message = await line.recv()
            kind = "text" if isinstance(message, str) else "bytes"
            await send({"type": "websocket.send", kind: message})
    code = line.close_code or 1006
    await send(
        {
            "type": "websocket.close",
            "code": _SENDABLE.get(code, code),
            "reason": line.close_reason or "",
        }
    )


async def _refuse(scope: Scope, send: Send, answer: Answer) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": answer.body})


def _raw(headers: websockets.Headers) -> Headers:
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.raw_items()]
