"""Whether sources answer: asked of a real HTTP server on this machine, which tells what it heard."""

from __future__ import annotations

import socket
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastsd_lib.core.https_client import Reach
from fastsd_lib.models.known_models import KnownModel, find_known
from fastsd_lib.models.liveness import SourceState, ask, check_mirrors

HERE = partial(ask, reach=Reach(http_allowed=True, private_allowed=True))
ANSWERS = {"there": 200, "elsewhere": 302, "gated": 401, "forbidden": 403, "gone": 404, "ill": 503}


@pytest.fixture
def hub():
    """Its address, and the (path, Authorization) that it was asked."""
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(ANSWERS.get(self.path.split("/")[2], 500))
            self.send_header("Location", "http://127.0.0.1:9/never")
            self.send_header("Content-Length", "7000000000")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def states(*names: str, hub: str, gated: bool = False, token: str = "") -> tuple[SourceState, ...]:
    model = KnownModel("m", "sd1", mirrors=tuple(f"hf:org/{name}" for name in names), gated=gated)
    return check_mirrors(model, HERE, token, hub)


@pytest.mark.parametrize(
    ("name", "gated", "there", "told"),
    [
        ("there", False, True, "there"),
        ("elsewhere", False, True, "there"),
        ("gated", True, True, "gated: its licence must be accepted at https://huggingface.co/org/gated"),
        ("gated", False, False, "gone (401)"),
        ("forbidden", False, True, "gated: its licence must be accepted"),
        ("gone", True, False, "gone (404)"),
        ("ill", False, False, "answers 503; try again"),
    ],
)
def test_each_answer_is_told_in_words(hub, name, gated, there, told):
    (state,) = states(name, hub=hub[0], gated=gated)
    assert (state.source, state.there) == (f"org/{name}", there) and state.told.startswith(told)


def test_every_source_is_asked_in_order_for_the_file_that_tells_and_the_token_goes_to_the_hub_alone(hub):
    address, asked = hub
    sources = (
        "hf:org/gone",
        "hf:org/there@fp16",
        "hf:org/there/in/a.safetensors",
        f"{address}/x/there/b?key=s",
    )
    model = KnownModel("m", "sd1", mirrors=sources)
    found = check_mirrors(model, HERE, "hf_secret", address)
    assert [state.there for state in found] == [False, True, True, True]
    assert asked == [
        ("/org/gone/resolve/main/model_index.json", "Bearer hf_secret"),
        ("/org/there/resolve/main/model_index.json", "Bearer hf_secret"),
        ("/org/there/resolve/main/in/a.safetensors", "Bearer hf_secret"),
        ("/x/there/b?key=s", None),
    ]
    assert not any("hf_secret" in f"{state}" or "key=s" in f"{state}" for state in found)


def test_without_a_network_each_source_says_so(monkeypatch):
    assert [state.told for state in states("a", "b", hub="http://127.0.0.1:9")] == [
        "no connection (ConnectionRefusedError)"
    ] * 2

    def resolve(*given, **more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    (state,) = check_mirrors(KnownModel("m", "sd1", mirrors=("https://none.invalid/a.safetensors",)))
    assert (state.there, state.told) == (False, "no connection, or no such host")


def test_private_addresses_are_not_asked():
    (state,) = check_mirrors(KnownModel("m", "sd1", mirrors=("https://127.0.0.1/a.safetensors",)))
    assert not state.there and state.told.startswith("not asked")


def test_the_embedded_model_needs_no_source():
    assert check_mirrors(find_known("embedded")) == ()
