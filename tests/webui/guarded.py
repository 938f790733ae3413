"""A small app with a route for each trouble, served behind the guard on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from fastsd_lib.webui.asked import Limits
from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.server import Server, serve_app

PASSWORD = "a:b,c and ü"
USERS = {"me": PASSWORD, "you": "another, of yours"}
ASKING = Door(users=USERS)


async def _seen(request: Request) -> Response:
    return JSONResponse(
        {
            "headers": dict(request.headers),
            "scheme": request.url.scheme,
            "user": request.scope["fastsd.user"],
            "client": request.client.host,
            "bytes": len(await request.body()),
        },
        headers={"access-control-allow-origin": "*", "server": "secret/1.0"},
    )


async def _stream(request: Request) -> Response:
    async def pieces():
        for number in range(6):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0.1)

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def _slow(request: Request) -> Response:
    await asyncio.sleep(float(request.query_params.get("s", "1")))
    return PlainTextResponse("done")


async def _fails(request: Request) -> Response:
    raise RuntimeError(f"the password is {PASSWORD}")


async def _refuses(request: Request) -> Response:
    return JSONResponse({"detail": f"no sampler {PASSWORD}", "more": [1]}, 404)


async def _traces(request: Request) -> Response:
    return PlainTextResponse("Traceback (most recent call last):\n  File secret.py", 500)


async def _page(request: Request) -> Response:
    return Response("<h1>the page</h1><p id=who>in</p>", media_type="text/html")


async def _echo(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(await socket.receive_text())
    await socket.close()


app = Starlette(
    routes=[
        Route("/", _page),
        Route("/seen", _seen, methods=["GET", "POST", "PUT"]),
        Route("/stream", _stream),
        Route("/slow", _slow),
        Route("/fails", _fails),
        Route("/refuses", _refuses, methods=["GET", "POST"]),
        Route("/traces", _traces),
        Route("/file={path:path}", _page),
        WebSocketRoute("/echo", _echo),
    ]
)


@contextmanager
def served(door: Door = LOOPBACK, **limits: float) -> Iterator[Server]:
    server = serve_app(app, door, None, limits=Limits(**limits))
    try:
        yield server
    finally:
        server.close()


def client(server: Server, **settings) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=10, trust_env=False, **settings)


def basic(user: str, password: str) -> httpx.BasicAuth:
    import base64

    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    auth = httpx.BasicAuth("", "")
    auth._auth_header = f"Basic {text}"
    return auth
