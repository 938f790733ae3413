"""Thirty ways around the door, as bytes on a real connection; and every route there is, asked without a password.

An app that notes whatever reaches it stands behind the door: nothing may.
"""

from __future__ import annotations

import base64
import contextlib
import re
import socket
from collections.abc import Iterator

import pytest
from guarded import ASKING, PASSWORD, basic, client
from starlette.routing import Mount, WebSocketRoute

from fastsd_lib.webui.access import Access
from fastsd_lib.webui.server import Server, serve_app
from fastsd_lib.webui.throttle import Throttle

reached: list[str] = []


async def inside(scope, receive, send) -> None:
    """Notes the request and lets it in."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    reached.append(f"{scope['type']} {scope['path']}")
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = serve_app(inside, ASKING, None)
    yield running
    running.close()


@pytest.fixture(autouse=True)
def fresh(server):
    server.guard.throttle = Throttle()
    reached.clear()


@pytest.fixture(scope="module")
def cookie(server) -> str:
    return f"fastsd_session_{server.port}={server.guard.access.begin_session('me')}"


def said(server: Server, text: str) -> bytes:
    """What comes back for these lines until the server closes or is silent for a second. HOST, COOKIE filled in."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=8) as line:
        line.sendall(text.encode("latin-1"))
        line.settimeout(1.0)
        heard = b""
        with contextlib.suppress(OSError):
            while piece := line.recv(65536):
                heard += piece
    return heard


def statuses(heard: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", heard)]


HOST = "Host: 127.0.0.1:{port}\r\n"
LAST = "Connection: close\r\n\r\n"
RIGHT = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
WRONG = base64.b64encode(b"me:guess").decode()
UPGRADE = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
UPGRADE += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
MINE = "Origin: http://127.0.0.1:{port}\r\n"


def get(path: str, *headers: str) -> str:
    return f"GET {path} HTTP/1.1\r\n{HOST}{''.join(f'{one}{chr(13)}{chr(10)}' for one in headers)}{LAST}"


def post(path: str, *headers: str, body: str = "{{}}") -> str:
    length = len(body.replace("{{", "{").replace("}}", "}"))
    lines = "".join(f"{one}\r\n" for one in headers)
    return f"POST {path} HTTP/1.1\r\n{HOST}Content-Length: {length}\r\n{lines}{LAST}{body}"


JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"

#: name: (what is sent, the answers that refuse it)
REQUESTS: dict[str, tuple[str, set[int]]] = {
    # paths, without a password
    "a path below the log-in page": (get("/login/sdapi/v1/options"), {401}),
    "dots behind the log-in page": (get("/login/../sdapi/v1/options"), {401}),
    "encoded dots behind the log-in page": (get("/login/%2e%2e/sdapi/v1/options"), {401}),
    "an encoded slash": (get("/login%2f..%2fsdapi%2fv1%2foptions"), {401}),
    "two slashes": (get("//sdapi/v1/options"), {401}),
    "a parameter of the path": (get("/login;/sdapi/v1/options"), {401}),
    "a null byte": (get("/login%00/sdapi/v1/options"), {401}),
    "capitals": (get("/LOGIN"), {401}),
    "a file that looks harmless": (get("/static/../favicon.ico?/login"), {401}),
    "a whole address with another host": (get("http://evil.example/login/../x"), {400, 401, 403}),
    "a guessed nonce with dots": (get("/.fsd/../sdapi/v1/options"), {401}),
    # headers, without a password
    "a password in the address": (f"GET / HTTP/1.1\r\nHost: me:x@127.0.0.1\r\n{LAST}", {400, 403}),
    "a proxy's word for the sender": (
        get("/sdapi/v1/options", "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1"),
        {401},
    ),
    "a proxy's word for the user": (get("/", "X-Forwarded-User: me", "Remote-User: me", "X-Remote-User: me"), {401}),
    "another path in a header": (get("/sdapi/v1/options", "X-Original-URL: /login", "X-Rewrite-URL: /login"), {401}),
    "another method in a header": (post("/sdapi/v1/options", JSON, "X-HTTP-Method-Override: GET"), {401}),
    "two lengths": (
        f"POST /login HTTP/1.1\r\n{HOST}{FORM}\r\nContent-Length: 4\r\nContent-Length: 50\r\n\r\nabcd",
        {400},
    ),
    "a second request in the body": (
        f"POST /login HTTP/1.1\r\n{HOST}{FORM}\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n"
        "0\r\n\r\n" + get("/sdapi/v1/options"),
        {400, 401},
    ),
    "a space before the colon": (f"GET / HTTP/1.1\r\nHost : 127.0.0.1\r\n{LAST}", {400}),
    "no host": (f"GET / HTTP/1.1\r\n{LAST}", {400, 403}),
    "two hosts": (f"GET / HTTP/1.1\r\n{HOST}Host: evil.example\r\n{LAST}", {400, 403}),
    "another scheme of passwords": (get("/", f"Authorization: Bearer {RIGHT}"), {401}),
    "the wrong one of two passwords first": (
        get("/", f"Authorization: Basic {WRONG}", f"Authorization: Basic {RIGHT}"),
        {401},
    ),
    "a cookie of another server's key": (get("/", "Cookie: fastsd_session_{port}={other}"), {401}),
    "an upgrade to HTTP/2": (
        f"GET / HTTP/1.1\r\n{HOST}Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n",
        {401},
    ),
    # with the session of somebody who may, led here by another site
    "another host with a session": (f"GET / HTTP/1.1\r\nHost: evil.example\r\nCookie: {{cookie}}\r\n{LAST}", {403}),
    "another origin with a session": (
        post("/sdapi/v1/txt2img", JSON, "Cookie: {cookie}", "Origin: http://evil.example"),
        {403},
    ),
    "no origin at all (null) with a session": (
        post("/sdapi/v1/txt2img", JSON, "Cookie: {cookie}", "Origin: null"), {403}
    ),
    "a picture of another site's page with a session": (
        get("/sdapi/v1/options", "Cookie: {cookie}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
        {403},
    ),
    "a form of plain text with a session": (
        post("/sdapi/v1/options", "Content-Type: text/plain", "Cookie: {cookie}"), {415}
    ),
    "TRACE with a session": (f"TRACE / HTTP/1.1\r\n{HOST}Cookie: {{cookie}}\r\n{LAST}", {405}),
    # websockets
    "a websocket without a cookie": (f"GET /queue/join HTTP/1.1\r\n{HOST}{MINE}{UPGRADE}", {401}),
    "a websocket of another site with a session": (
        f"GET /queue/join HTTP/1.1\r\n{HOST}Origin: http://evil.example\r\nCookie: {{cookie}}\r\n{UPGRADE}",
        {403},
    ),
    "a websocket by another host with a session": (
        f"GET /ws HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\nCookie: {{cookie}}\r\n{UPGRADE}",
        {403},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_way_around_the_door_is_refused(server, cookie, name):
    text, refusals = REQUESTS[name]
    other = Access({"me": PASSWORD}).begin_session("me")
    heard = said(server, text.format(port=server.port, cookie=cookie, other=other))
    assert statuses(heard) and set(statuses(heard)) <= refusals, heard[:300]
    assert reached == [] and b"inside" not in heard


def test_there_are_thirty_of_them_and_the_right_ones_do_get_in(server, cookie):
    assert len(REQUESTS) >= 30
    for headers in ((f"Authorization: Basic {RIGHT}",), (f"Cookie: {cookie}",)):
        heard = said(server, get("/", *headers).format(port=server.port))
        assert statuses(heard) == [200] and b"inside" in heard
    heard = said(
        server, f"GET /ws HTTP/1.1\r\n{HOST}{MINE}Cookie: {cookie}\r\n{UPGRADE}".format(port=server.port)
    )
    assert statuses(heard) == [101] and reached == ["http /", "http /", "websocket /ws"]


def test_a_password_opens_one_request_of_a_connection_and_not_the_next(server):
    first = get("/", f"Authorization: Basic {RIGHT}").replace("Connection: close\r\n", "")
    heard = said(server, (first + get("/second")).format(port=server.port))
    assert statuses(heard) == [200, 401] and reached == ["http /"]


@pytest.mark.parametrize("way", ["basic", "form"])
def test_brute_force_tries_few_and_even_the_right_password_then_waits(server, way):
    """Two hundred guesses, each as another client of a proxy that nobody asked."""
    with client(server) as guesser:
        answers = []
        for number in range(200):
            lie = {"X-Forwarded-For": f"10.0.0.{number}", "X-Real-IP": f"10.0.0.{number}"}
            guess = PASSWORD if number == 199 else f"guess {number}"
            if way == "basic":
                answers.append(guesser.get("/", auth=basic("me", guess), headers=lie).status_code)
            else:
                form = {"username": "me", "password": guess}
                answers.append(guesser.post("/login", data=form, headers=lie).status_code)
    assert set(answers) == {401, 429} and answers[-1] == 429
    assert answers.count(401) <= 8 and reached == []


# ------------------------------------------------------------------ every route that exists


def every_route(routes, below: str = "") -> Iterator[tuple[str, str]]:
    """(verb, path) of all routes, those of mounted apps, too; websockets as ("WEBSOCKET", path)."""
    for route in routes:
        path = below + getattr(route, "path", "")
        included = getattr(route, "original_router", None)  # FastAPI keeps routers that were included whole
        if included is not None:
            yield from every_route(included.routes, path)
        elif isinstance(route, Mount):
            yield "GET", f"{path}/anything"
            yield from every_route(route.routes or [], path)
        elif isinstance(route, WebSocketRoute):
            yield "WEBSOCKET", path
        else:
            for verb in sorted(getattr(route, "methods", None) or {"GET", "POST"}):
                yield verb, path


def test_every_route_of_the_api_of_gradio_and_of_mounted_apps_refuses_without_a_password(tmp_path):
    from fastsd_lib.generation.library import LibraryFolders
    from fastsd_lib.generation.resources import Library
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf
    from fastsd_lib.webui.api import api_app
    from fastsd_lib.webui.app import build_page

    service = Service(Shelf(Library.of(LibraryFolders.under(tmp_path))))
    app = api_app(service, pictures_dir=tmp_path, page=build_page)
    routes = sorted(set(every_route(app.routes)))
    paths = {path for _, path in routes}
    for known in ("/sdapi/v1/txt2img", "/fastsd/v1/jobs", "/docs", "/gradio_api/queue/join", "/gradio_api/upload",
                  "/gradio_api/heartbeat/{session_hash}", "/config", "/login", "/openapi.json"):  # fmt: skip
        assert known in paths, known
    assert len(routes) > 100
    running = serve_app(app, ASKING, None)
    try:
        with client(running) as stranger:
            for verb, path in routes:
                if path.rstrip("/") == "/login" or path == "/logout":
                    continue  # ours: the door itself
                filled = re.sub(r"\{[^}]*\}", "0", path) or "/"
                if verb == "WEBSOCKET":
                    heard = said(
                        running, f"GET {filled} HTTP/1.1\r\n{HOST}{UPGRADE}".format(port=running.port)
                    )
                    assert statuses(heard) == [401], path
                    continue
                assert stranger.request(verb, filled).status_code == 401, (verb, path)
                if verb == "GET":
                    led = stranger.get(filled, headers={"Accept": "text/html"})
                    assert led.status_code == 303 and led.headers["location"].startswith("/login"), path
    finally:
        running.close()
        service.close()
