"""What must come through a tunnel, as a small app behind the guard: pages, streams, websockets, uploads."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import websockets
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from fastsd_lib.webui.asked import Limits
from fastsd_lib.webui.door import Door
from fastsd_lib.webui.server import Server, serve_app

PASSWORD = "through the tunnel"
UPLOAD_BYTES = 50 * 10**6
EVENTS, BETWEEN_S = 6, 0.25


async def _page(request: Request) -> Response:
    return Response("<h1>the page</h1>", media_type="text/html")


async def _events(request: Request) -> Response:
    async def pieces():
        for number in range(EVENTS):
            yield f"data: {number}\n\n"
            await asyncio.sleep(BETWEEN_S)

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def _hash(request: Request) -> Response:
    digest, count = hashlib.sha256(), 0
    async for piece in request.stream():
        digest.update(piece)
        count += len(piece)
    return JSONResponse({"sha256": digest.hexdigest(), "bytes": count})


async def _echo(socket: WebSocket) -> None:
    await socket.accept()
    for _ in range(2):
        message = await socket.receive()
        await socket.send(
            {"type": "websocket.send", **{k: message[k] for k in ("text", "bytes") if k in message}}
        )
    await socket.close()


app = Starlette(
    routes=[
        Route("/", _page),
        Route("/events", _events),
        Route("/hash", _hash, methods=["POST"]),
        WebSocketRoute("/echo", _echo),
    ]
)


@contextmanager
def served_app() -> Iterator[Server]:
    server = serve_app(app, Door(users={"me": PASSWORD}), None, limits=Limits(body_bytes=2 * UPLOAD_BYTES))
    try:
        yield server
    finally:
        server.close()


def reached(url: str) -> tuple[str, dict[str, str]]:
    """(address, headers) by which this machine's programs reach `url`: they do not know *.localhost."""
    parts = urlsplit(url)
    if (parts.hostname or "").endswith(".localhost"):
        return f"{parts.scheme}://127.0.0.1:{parts.port}", {"Host": parts.netloc}
    return url, {}


def visitor(url: str, signed_in: bool = True) -> httpx.Client:
    address, headers = reached(url)
    auth = ("me", PASSWORD) if signed_in else None
    return httpx.Client(base_url=address, headers=headers, auth=auth, timeout=30, trust_env=False)


def check_everything(url: str) -> dict[str, float]:
    """HTTP, server-sent events, websocket and a 50 MB upload through `url`; AssertionError for the first that fails.

    Returns figures: seconds between the first and the last event, MB/s of the upload.
    """
    with visitor(url, signed_in=False) as stranger:
        assert stranger.get("/").status_code == 401
    with visitor(url) as user:
        assert user.get("/").text == "<h1>the page</h1>"
        assert user.get("/nothing").status_code == 404
        came = []
        with user.stream("GET", "/events") as answer:
            for line in answer.iter_lines():
                if line:
                    came.append((line, time.monotonic()))
        assert [line for line, _ in came] == [f"data: {number}" for number in range(EVENTS)]
        spread = came[-1][1] - came[0][1]
        assert spread > BETWEEN_S * (EVENTS - 1) * 0.6, (
            f"all events came within {spread:.2f} s: they were held back"
        )
        sent, began = os.urandom(UPLOAD_BYTES), time.monotonic()
        told = user.post(
            "/hash", content=sent, headers={"Content-Type": "multipart/form-data; boundary=x"}
        ).json()
        took = time.monotonic() - began
        assert told == {"sha256": hashlib.sha256(sent).hexdigest(), "bytes": UPLOAD_BYTES}
    asyncio.run(_talk(url))
    return {"events_s": spread, "upload_mb_per_s": UPLOAD_BYTES / 1e6 / took}


async def _talk(url: str) -> None:
    address, headers = reached(url)
    named = headers.get("Host", urlsplit(url).netloc)
    basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
    parts = urlsplit(address)
    async with websockets.connect(
        f"ws://{named}/echo",
        host=parts.hostname,
        port=parts.port,
        additional_headers={"Authorization": f"Basic {basic}"},
        proxy=None,
        max_size=None,
    ) as socket:
        await socket.send("hello")
        assert await socket.recv() == "hello"
        blob = os.urandom(2**20)
        await socket.send(blob)
        assert await socket.recv() == blob
