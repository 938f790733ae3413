"""How much, how long, how many, and in which form: over real HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from guarded import ASKING, PASSWORD, basic, client, served


@pytest.fixture(scope="module")
def small():
    with served(body_bytes=1000, body_s=2.0, silence_s=0.5, answer_s=0.4, requests_per_client=3) as server:
        yield server


def raw(server, text: bytes, then: bytes = b"", pause_s: float = 0.0) -> bytes:
    """What the server says to these bytes, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=8) as line:
        line.sendall(text.replace(b"HOST", f"Host: 127.0.0.1:{server.port}".encode()))
        if then:
            time.sleep(pause_s)
            line.sendall(then)
        heard = b""
        with contextlib.suppress(ConnectionResetError):  # what it does to those who go on talking
            while piece := line.recv(65536):
                heard += piece
    return heard


def test_a_body_over_the_limit_is_refused_before_it_is_sent(small):
    head = b"POST /seen HTTP/1.1\r\nHOST\r\nContent-Type: application/json\r\nContent-Length: 1001\r\n\r\n"
    start = time.monotonic()
    heard = raw(small, head)
    assert heard.startswith(b"HTTP/1.1 413") and time.monotonic() - start < 0.4
    assert (
        client(small)
        .post("/seen", content=b"x" * 1000, headers={"Content-Type": "application/json"})
        .status_code
        == 200
    )


def test_a_body_of_unsaid_length_is_cut_at_the_limit(small):
    def pieces():
        for _ in range(20):
            yield b"x" * 100

    reply = client(small).post("/seen", content=pieces(), headers={"Content-Type": "application/json"})
    assert reply.status_code == 413 and "1000 bytes" in reply.json()["detail"]


def test_the_usual_limit_is_64_mb():
    with served() as server:
        head = b"POST /seen HTTP/1.1\r\nHOST\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        assert b" 413 " in raw(server, head % (64 * 2**20 + 1))
        reply = client(server).post(
            "/seen", content=b"0" * (64 * 2**20), headers={"Content-Type": "application/json"}
        )
        assert reply.json()["bytes"] == 64 * 2**20


def test_a_body_that_does_not_come_is_not_waited_for(small):
    head = b"POST /seen HTTP/1.1\r\nHOST\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n123"
    assert raw(small, head).startswith(b"HTTP/1.1 408")


def test_long_addresses_and_headers_are_refused(small):
    assert client(small).get("/seen?" + "a" * 9000).status_code == 414
    assert client(small).get("/seen", headers={"X-A": "a" * 40_000}).status_code == 431
    assert client(small).get("/seen", headers={f"X-{n}": "a" for n in range(120)}).status_code == 431
    heard = raw(small, b"GET / HTTP/1.1\r\nHOST\r\nX-A: " + b"a" * 300_000 + b"\r\n\r\n")
    assert heard[9:12] in (b"", b"400", b"431")  # the parser's own limit, when they come in pieces


def test_an_answer_that_does_not_begin_is_given_up_and_a_stream_is_not_cut(small):
    late = client(small).get("/slow?s=5")
    assert late.status_code == 504 and "0.4 s" in late.json()["detail"]
    assert client(small).get("/stream").text.count("data:") == 6  # lasts 0.6 s
    assert client(small).get("/slow?s=0.1").text == "done"


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "", "text/plain; application/json", "text/json"],
)
def test_only_json_and_multipart_are_read(small, kind):
    for method in ("POST", "PUT"):
        reply = client(small).request(
            method, "/seen", content=b"{}", headers={"Content-Type": kind} if kind else {}
        )
        assert reply.status_code == 415


def test_json_multipart_and_nothing_are_read(small):
    for kind in ("application/json", "application/json; charset=utf-8", "application/merge-patch+json",
                 "multipart/form-data; boundary=x"):  # fmt: skip
        assert client(small).post("/seen", content=b"{}", headers={"Content-Type": kind}).status_code == 200
    assert client(small).post("/seen").status_code == 200
    assert client(small).request("TRACE", "/seen").status_code == 405


def test_one_client_has_so_many_requests_under_way_and_another_still_gets_in():
    with served(ASKING, requests_per_client=3) as server:
        mine = dict(auth=basic("me", PASSWORD))
        session = client(server)
        session.post("/login", data={"username": "you", "password": "another, of yours"})
        under_way = [
            threading.Thread(target=lambda: client(server, **mine).get("/slow?s=1.5")) for _ in range(3)
        ]
        for one in under_way:
            one.start()
        time.sleep(0.5)
        full = client(server, **mine).get("/seen")
        assert full.status_code == 429 and full.headers["retry-after"] == "1"
        assert session.get("/seen").status_code == 200
        for one in under_way:
            one.join()
        assert client(server, **mine).get("/seen").status_code == 200
