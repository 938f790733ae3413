"""Programs on loopback as they stand behind the proxy: one with a route for each trouble, one like ComfyUI."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

VERBS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
FILE = bytes(range(256)) * 4096  # 1 MiB

seen: dict[str, Any] = {}  # what happened in the upstream that no answer tells


@contextmanager
def upstream(app: Any, **config: Any) -> Iterator[str]:
    """The app on a free port of loopback, by uvicorn alone; yields its origin."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        settings = {"log_level": "warning", "ws": "websockets-sansio", "ws_max_size": 64 * 2**20} | config
        running = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **settings))
        thread = threading.Thread(target=running.run, args=([bound],), daemon=True)
        thread.start()
        while not running.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(10)


async def _seen(request: Request) -> Response:
    body = await request.body()
    return JSONResponse(
        {
            "method": request.method,
            "path": request.scope["raw_path"].decode(),
            "query": request.scope["query_string"].decode(),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in request.headers.raw],
            "body": body.decode("latin-1"),
        },
        headers={"access-control-allow-origin": "*"},
    )


async def _hash(request: Request) -> Response:
    digest, size = hashlib.sha256(), 0
    try:
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
            seen["received"] = size
    except ClientDisconnect:
        seen["broken_off"] = size
        raise
    return JSONResponse({"sha256": digest.hexdigest(), "bytes": size})


async def _big(request: Request) -> Response:
    mib = int(request.query_params["mib"])

    async def pieces():
        for number in range(mib):
            seen["sent_mib"] = number + 1
            yield FILE

    return StreamingResponse(pieces(), headers={"content-length": str(mib * len(FILE))})


async def _events(request: Request) -> Response:
    count, pause_s = int(request.query_params.get("n", 6)), float(request.query_params.get("s", 0.15))

    async def pieces():
        try:
            for number in range(count):
                yield f"data: {number}\n\n"
                await asyncio.sleep(pause_s)
        finally:
            seen["events_ended"] = True

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def _slow(request: Request) -> Response:
    end = time.monotonic() + float(request.query_params.get("s", "1"))
    while time.monotonic() < end:
        if await request.is_disconnected():
            seen["slow_left"] = True
            break
        await asyncio.sleep(0.05)
    return PlainTextResponse("done")


async def _packed(request: Request) -> Response:
    return Response(gzip.compress(b"packed " * 100), headers={"content-encoding": "gzip"})


async def _file(request: Request) -> Response:
    asked = request.headers.get("range")
    if not asked:
        return Response(FILE, headers={"accept-ranges": "bytes"})
    first, last = (int(one) for one in asked.removeprefix("bytes=").split("-"))
    headers = {"content-range": f"bytes {first}-{last}/{len(FILE)}"}
    return Response(FILE[first : last + 1], 206, headers)


async def _leads(request: Request) -> Response:
    address = request.query_params["to"].replace("SELF", f"http://{request.headers['host']}")
    return RedirectResponse(address, 302)


async def _cookies(request: Request) -> Response:
    reply = JSONResponse(dict(request.cookies))
    reply.headers.append("set-cookie", "theirs=1; Domain=127.0.0.1; Path=/; HttpOnly; Secure")
    reply.headers.append("set-cookie", "fastsd_session_1=evil; Path=/")
    return reply


async def _refused(request: Request) -> Response:
    return JSONResponse({"error": {"type": "invalid_prompt"}, "node_errors": {"3": []}}, 400)


async def _breaks(request: Request) -> Response:
    async def pieces():
        yield b"half"
        raise RuntimeError("the upstream broke")

    return StreamingResponse(pieces(), headers={"content-length": "8"})


async def _echo(socket: WebSocket) -> None:
    """Each message back; "bye" closes with a code and a reason of its own."""
    offered = socket.scope["subprotocols"]
    await socket.accept(offered[-1] if offered else None)
    seen["socket_headers"] = dict(socket.headers)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message["code"], message.get("reason"))
            if message.get("text") == "bye":
                await socket.close(4321, "was nice")
                return
            if message.get("text") is not None:
                await socket.send_text(message["text"])
            else:
                await socket.send_bytes(message["bytes"])
    except WebSocketDisconnect as end:
        seen["socket_end"] = (end.code, end.reason)


async def _private(socket: WebSocket) -> None:
    await socket.send_denial_response(JSONResponse({"error": "not for you"}, 418))


various = Starlette(
    routes=[
        Route("/hash", _hash, methods=["POST", "PUT"]),
        Route("/big", _big),
        Route("/events", _events),
        Route("/slow", _slow),
        Route("/packed", _packed),
        Route("/file", _file, methods=["GET", "HEAD"]),
        Route("/leads", _leads),
        Route("/cookies", _cookies),
        Route("/refused", _refused, methods=["POST"]),
        Route("/breaks", _breaks),
        WebSocketRoute("/echo", _echo),
        WebSocketRoute("/private", _private),
        Route("/{rest:path}", _seen, methods=VERBS),
    ]
)


class _OriginCheck(BaseHTTPMiddleware):
    """ComfyUI's server.py: a loopback Host must be the Origin's."""

    async def dispatch(self, request: Request, call_next):
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        loopback = host.split(":")[0] in ("127.0.0.1", "localhost")
        if request.headers.get("sec-fetch-site") == "cross-site":
            return PlainTextResponse("", 403)
        if loopback and origin is not None and urlsplit(origin).netloc != host:
            return PlainTextResponse("", 403)
        return await call_next(request)


async def _order(request: Request) -> Response:
    await request.json()
    for line in list(_listeners):
        await line.send_text(json.dumps({"type": "executing", "data": {"node": "3"}}))
        await line.send_bytes(b"\0\0\0\1" + FILE)  # a preview
    return JSONResponse({"prompt_id": "1", "number": 0, "node_errors": {}})


_listeners: set[WebSocket] = set()


async def _listen(socket: WebSocket) -> None:
    origin, host = socket.headers.get("origin"), socket.headers["host"]
    if origin is not None and urlsplit(origin).netloc != host:
        await socket.close(1008)
        return
    await socket.accept()
    _listeners.add(socket)
    await socket.send_text(json.dumps({"type": "status", "sid": socket.query_params.get("clientId", "")}))
    try:
        while True:
            await socket.receive_text()
    except WebSocketDisconnect:
        _listeners.discard(socket)


async def _stats(request: Request) -> Response:
    return JSONResponse({"system": {"comfyui_version": "0"}})


comfyui = Starlette(
    routes=[
        Route("/system_stats", _stats),
        Route("/api/prompt", _order, methods=["POST"]),
        WebSocketRoute("/ws", _listen),
    ]
)
comfyui.add_middleware(_OriginCheck)


def gradio_like(user: str, password: str) -> Starlette:
    """Its own log-in as Gradio's: a cookie for pages, and Basic for the API."""

    async def login(request: Request) -> Response:
        form = (await request.body()).decode()
        if form != f"username={user}&password={password}":
            return JSONResponse({"detail": "Incorrect credentials."}, 400)
        reply = JSONResponse({"success": True})
        reply.set_cookie("access-token-x", gradio_token[0], httponly=True)
        return reply

    async def page(request: Request) -> Response:
        known = request.cookies.get("access-token-x") == gradio_token[0]
        return PlainTextResponse("in") if known else JSONResponse({"detail": "Not authenticated"}, 401)

    return Starlette(
        routes=[Route("/login", login, methods=["POST"]), Route("/", page, methods=["GET", "POST"])]
    )


gradio_token = ["first"]
