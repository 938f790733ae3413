"""The door in front of programs that are not ours: real servers on both sides of it, on loopback."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import upstreams
import uvicorn
import websockets
from guarded import ASKING, PASSWORD, basic, client
from upstreams import FILE, comfyui, gradio_like, seen, upstream, various

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.asked import FOREIGN_LIMITS
from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.proxy_page import Trouble
from fastsd_lib.webui.reverse_proxy import proxy_app, serve_proxy

HOST = "abc.tunnel.example"


@pytest.fixture(scope="module")
def behind():
    """A program behind the door, with a password."""
    with upstream(various) as origin:
        server = serve_proxy(origin, ASKING, None)
        server.origin = origin
        server.add_tunnel(f"https://{HOST}")
        yield server
        server.close()


@pytest.fixture(autouse=True)
def forget():
    seen.clear()


def signed_in(server, **more) -> httpx.Client:
    return client(server, auth=basic("me", PASSWORD), **more)


def eventually(condition, patience_s: float = 5.0):
    end = time.monotonic() + patience_s
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


# ------------------------------------------------------------------ who, and what the upstream hears of it


def test_nothing_reaches_the_program_without_a_password(behind):
    for verb in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        assert client(behind).request(verb, "/anything").status_code == 401
    with pytest.raises(websockets.InvalidStatus):
        asyncio.run(talk(behind, ["x"], signed=False))
    assert signed_in(behind).get("/x", headers={"Host": "evil.example"}).status_code == 403
    cross = signed_in(behind).post("/x", content=b"a=b", headers={"Origin": "http://evil.example"})
    assert cross.status_code == 403


def test_the_program_hears_its_own_name_and_none_of_our_secrets(behind):
    with client(behind) as browser:
        browser.post("/login", data={"username": "me", "password": PASSWORD})
        browser.cookies.set("theme", "dark")
        browser.cookies.set("fastsd_session_1", "of another door of ours")
        reply = browser.post(
            "/a%2Fb//c/../d?x=1&y=%20", content=b"a=b",
            headers={"Host": HOST, "Origin": f"https://{HOST}", "Referer": f"https://{HOST}/page?q=1",
                     "Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": "1.2.3.4",
                     "X-Forwarded-Host": "evil", "X-Real-IP": "1.2.3.4", "Connection": "keep-alive, X-Hop",
                     "X-Hop": "1", "TE": "trailers", "Keep-Alive": "timeout=5", "X-Mine": "kept"},
        ).json()  # fmt: skip
    assert reply["query"] == "x=1&y=%20" and reply["body"] == "a=b"
    assert reply["path"].startswith("/a%2Fb//")  # as it came
    told = {name: value for name, value in reply["headers"]}
    assert len(told) == len(reply["headers"])  # nothing twice
    origin = behind.origin
    assert told["host"] == origin.removeprefix("http://") and told["origin"] == origin
    assert told["referer"] == f"{origin}/page?q=1"
    assert told["cookie"] == "theme=dark" and "authorization" not in told
    assert told["x-forwarded-for"] == "127.0.0.1" and told["x-forwarded-host"] == HOST
    assert told["x-forwarded-proto"] == "https" and told["x-mine"] == "kept"
    assert not {"x-hop", "te", "keep-alive", "x-real-ip", "forwarded"} & set(told)
    assert PASSWORD not in json.dumps(reply) and "fastsd_session" not in json.dumps(reply)


def test_every_method_and_any_content_type_pass(behind):
    with signed_in(behind) as one:
        for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            reply = one.request(verb, "/x", content=b"\x00raw", headers={"Content-Type": "image/png"})
            assert (reply.json()["method"], reply.json()["body"]) == (verb, "\x00raw")
        assert one.options("/x").json()["method"] == "OPTIONS"


def test_redirects_and_cookies_stay_on_our_name(behind):
    with signed_in(behind) as one:
        for there, here in (
            ("SELF/next?a=1", "/next?a=1"), ("/next", "/next"), ("next", "next"), ("SELF", "/"),
            ("https://huggingface.co/x", "https://huggingface.co/x"),
            (behind.origin.replace("127.0.0.1", "localhost") + "/y", "/y"),
        ):  # fmt: skip
            assert one.get("/leads", params={"to": there}).headers["location"] == here
        given = one.get("/cookies").headers.get_list("set-cookie")
        assert given == ["theirs=1; Path=/; HttpOnly"]
        given = one.get("/cookies", headers={"Host": HOST}).headers.get_list("set-cookie")
        assert given == ["theirs=1; Path=/; HttpOnly; Secure"]


def test_the_programs_own_password_stays_on_this_machine():
    with upstream(gradio_like("child", "its+own")) as origin:
        server = serve_proxy(origin, LOOPBACK, None, credentials=("child", "its own"))
        try:
            with client(server) as one:
                reply = one.get("/")
                assert (reply.status_code, reply.text) == (200, "in")
                assert "set-cookie" not in reply.headers  # the browser never holds it
                assert one.post("/", json={}).text == "in"
                upstreams.gradio_token[0] = "second"  # the program was started again
                assert one.get("/").text == "in"
        finally:
            server.close()


# ------------------------------------------------------------------ how it comes back


def test_errors_of_the_program_pass_as_its_own_page_expects_them(behind):
    reply = signed_in(behind).post("/refused", json={})
    assert reply.status_code == 400
    assert reply.json() == {"error": {"type": "invalid_prompt"}, "node_errors": {"3": []}}


def test_answers_carry_no_leave_for_others_and_may_run_what_they_are_made_of(behind):
    reply = signed_in(behind).get("/x")
    assert not [name for name in reply.headers if name.startswith("access-control-")]
    policy = reply.headers["content-security-policy"]
    assert "frame-ancestors 'self'" in policy and "script-src" not in policy and "default-src" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert len(reply.headers.get_list("date")) == 1 and "server" not in reply.headers


def test_packed_bodies_ranges_and_heads_pass_unchanged(behind):
    with signed_in(behind) as one:
        with one.stream("GET", "/packed") as reply:
            assert gzip.decompress(b"".join(reply.iter_raw())) == b"packed " * 100
            assert reply.headers["content-encoding"] == "gzip"
        part = one.get("/file", headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, FILE[1000:2000])
        assert part.headers["content-range"] == f"bytes 1000-1999/{len(FILE)}"
        head = one.head("/file")
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(FILE)), b"")


def test_events_arrive_when_they_are_sent(behind):
    arrived = []
    with signed_in(behind).stream("GET", "/events") as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        for line in reply.iter_lines():
            if line:
                arrived.append(time.monotonic())
    gaps = [later - earlier for earlier, later in pairwise(arrived)]
    assert len(arrived) == 6 and min(gaps) > 0.07, gaps


def test_a_browser_that_leaves_frees_the_program(behind):
    with signed_in(behind).stream("GET", "/events?n=10000") as reply:
        next(reply.iter_raw())
    assert eventually(lambda: seen.get("events_ended"))
    with pytest.raises(httpx.ReadTimeout):
        signed_in(behind).get("/slow?s=60", timeout=0.3)
    assert eventually(lambda: seen.get("slow_left"))


def test_an_answer_that_breaks_off_is_no_whole_answer(behind):
    with pytest.raises(httpx.RemoteProtocolError):
        signed_in(behind).get("/breaks")


# ------------------------------------------------------------------ how much


def test_fifty_megabytes_go_up_whole_in_a_few_of_memory(behind):
    data = FILE * 50
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]

        def pieces():
            for at in range(0, len(data), 1 << 18):
                yield data[at : at + (1 << 18)]

        with signed_in(behind, headers={"Content-Type": "application/octet-stream"}) as one:
            for said in ({"Content-Length": str(len(data))}, {}):  # and of unsaid length
                reply = one.post("/hash", content=pieces(), headers=said, timeout=60)
                assert reply.json() == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 12 * 2**20, f"{peak / 2**20:.1f} MiB"  # client, proxy and program together


def test_the_program_waits_for_a_slow_browser_and_others_do_not(behind):
    with signed_in(behind).stream("GET", "/big?mib=200") as reply:
        body = reply.iter_raw()
        next(body)
        time.sleep(1.0)
        sent = seen["sent_mib"]
        assert sent < 60  # what the buffers of two connections hold, and no more
        assert signed_in(behind).get("/x").status_code == 200
        time.sleep(0.3)
        assert seen["sent_mib"] == sent


def test_a_slow_upload_does_not_hold_up_others_and_one_that_breaks_off_ends(behind):
    with socket.create_connection(("127.0.0.1", behind.port)) as line:
        auth = basic("me", PASSWORD)._auth_header
        line.sendall(
            f"POST /hash HTTP/1.1\r\nHost: localhost\r\nAuthorization: {auth}\r\nContent-Length: 1000000\r\n\r\n".encode()
        )
        line.sendall(b"x" * 1000)
        assert eventually(lambda: seen.get("received") == 1000)  # it is there before the rest is
        assert signed_in(behind).get("/x").status_code == 200
    assert eventually(lambda: seen.get("broken_off") == 1000)


def test_more_than_the_limit_is_refused_and_the_limit_can_be_chosen():
    with upstream(various) as origin:
        server = serve_proxy(origin, LOOPBACK, None, limits=replace(FOREIGN_LIMITS, body_bytes=1000))
        try:
            raw = {"Content-Type": "application/octet-stream"}
            assert client(server).post("/hash", content=b"x" * 1000, headers=raw).json()["bytes"] == 1000
            assert client(server).post("/hash", content=b"x" * 1001, headers=raw).status_code == 413
            cut = client(server).post("/hash", content=iter([b"x" * 600] * 2), headers=raw)
            assert cut.status_code == 413
        finally:
            server.close()


def test_twenty_requests_pass_side_by_side(behind):
    begun = time.monotonic()
    with signed_in(behind) as one, ThreadPoolExecutor(20) as crowd:
        answers = list(crowd.map(lambda _: one.get("/slow?s=1").text, range(20)))
    assert answers == ["done"] * 20 and time.monotonic() - begun < 4


def raw_upstream(answers: list[bytes], hold: bool = False) -> tuple[str, list[bytes]]:
    """A server of bytes: one answer for each connection, whatever is asked; what it was asked."""
    bound, heard = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        for answer in answers:
            line, _ = bound.accept()
            heard.append(line.recv(65536))
            line.sendall(answer)
            if not hold:
                line.close()
        bound.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{bound.getsockname()[1]}", heard


@pytest.mark.parametrize(
    "answer, status, body",
    [
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
        (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nok\r\n1\r\n!\r\n0\r\nT: 1\r\n\r\n",
            200,
            b"ok!",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", 502, None),
        (b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n", 502, None),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000 + b"\r\n", 502, None),
        (b"", 502, None),
    ],
)
def test_answers_of_all_shapes_are_read_and_what_is_no_answer_is_refused(answer, status, body):
    origin, _ = raw_upstream([answer])
    server = serve_proxy(origin, LOOPBACK, None)
    try:
        reply = client(server).get("/")
        assert reply.status_code == status
        assert body is None or reply.content == body
    finally:
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nlonger\r\n0\r\n\r\n",
    ],
)
def test_an_answer_that_ends_too_early_is_not_passed_off_as_whole(answer):
    origin, _ = raw_upstream([answer])
    server = serve_proxy(origin, LOOPBACK, None)
    try:
        with pytest.raises(httpx.RemoteProtocolError):
            client(server).get("/")
    finally:
        server.close()


def test_a_length_that_lies_beside_chunks_is_not_passed_on():
    origin, heard = raw_upstream([b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"], hold=True)
    server = serve_proxy(origin, LOOPBACK, None)
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
            line.sendall(
                b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"4\r\nabcd\r\n0\r\n\r\n"
            )
            line.recv(65536)
        told = heard[0].lower() if heard else b""
        assert b"content-length" not in told  # either refused, or passed on as the chunks that it is
    finally:
        server.close()


# ------------------------------------------------------------------ websockets


async def talk(server, messages, path="/echo", signed=True, end=None, **more):
    cookie = f"fastsd_session_{server.port}={server.guard.access.begin_session('me')}"
    headers = {"Cookie": cookie + "; theme=dark"} if signed else {}
    async with websockets.connect(
        f"ws://127.0.0.1:{server.port}{path}", proxy=None, additional_headers=headers, max_size=2**27, **more
    ) as line:
        got = []
        for message in messages:
            await line.send(message)
            got.append(await line.recv())
        if end:
            await line.close(*end)
        return got, line


def test_text_and_eight_mebibytes_pass_a_websocket_both_ways(behind):
    own = f"http://127.0.0.1:{behind.port}"
    got, line = asyncio.run(
        talk(behind, ["hällo", FILE * 8], origin=own, subprotocols=["a", "b"], compression=None)
    )
    assert got == ["hällo", FILE * 8] and line.subprotocol == "b"
    told = seen["socket_headers"]
    assert told["origin"] == behind.origin and told["host"] == behind.origin.removeprefix("http://")
    assert told["cookie"] == "theme=dark" and "authorization" not in told


def test_close_codes_pass_both_ways(behind):
    asyncio.run(talk(behind, ["x"], end=(4000, "enough")))
    assert eventually(lambda: seen.get("socket_end")) == (4000, "enough")
    with pytest.raises(websockets.ConnectionClosedError) as closed:
        asyncio.run(talk(behind, ["x", "bye"]))
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "was nice")


def test_a_websocket_that_the_program_refuses_is_refused_as_it_does(behind):
    for path, status in (("/private", 418), ("/nowhere", 403)):
        with pytest.raises(websockets.InvalidStatus) as refused:
            asyncio.run(talk(behind, ["x"], path=path))
        assert refused.value.response.status_code == status
    assert seen.get("socket_headers") is None


# ------------------------------------------------------------------ when it is not there


@pytest.fixture
def dead():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_a_program_that_is_down_is_a_page_that_says_so_and_tries_again(dead):
    story = Trouble("ComfyUI is still starting.", ["line <one>", "line two"])
    server = serve_proxy(dead, ASKING, None, trouble=lambda: story)
    try:
        html = {"Accept": "text/html"}
        page = signed_in(server, headers=html).get("/")
        assert page.status_code == 502 and page.headers["retry-after"] == "5"
        assert "ComfyUI is still starting." in page.text and 'http-equiv="refresh" content="5"' in page.text
        assert "line &lt;one&gt;" in page.text
        stranger = client(server, headers=html).get("/")
        assert stranger.status_code == 303 and "line" not in stranger.text
        reply = signed_in(server).get("/system_stats")
        assert reply.status_code == 502 and reply.json()["detail"] == "ComfyUI is still starting."
        assert "line" not in reply.text
        form = signed_in(server, headers=html).post("/x", data={"a": "b"})
        assert form.status_code == 502 and "refresh" not in form.text
        with pytest.raises(websockets.InvalidStatus) as refused:
            asyncio.run(talk(server, ["x"]))
        assert refused.value.response.status_code == 502
    finally:
        server.close()


def test_nobody_reads_the_log_where_no_password_is_asked(dead):
    server = serve_proxy(dead, LOOPBACK, None, trouble=lambda: Trouble("It is down.", ["secret line"]))
    try:
        assert "secret line" not in client(server, headers={"Accept": "text/html"}).get("/").text
    finally:
        server.close()


def test_a_program_that_comes_back_is_there_again(dead):
    port = int(dead.rpartition(":")[2])
    server = serve_proxy(dead, LOOPBACK, None)
    try:
        for _ in range(2):
            assert client(server).get("/x").status_code == 502
            with socket.create_server(("127.0.0.1", port)) as bound:
                running = uvicorn.Server(
                    uvicorn.Config(various, log_level="error", timeout_graceful_shutdown=1)
                )
                thread = threading.Thread(target=running.run, args=([bound],), daemon=True)
                thread.start()
                assert eventually(lambda: client(server).get("/x").status_code == 200)
                running.should_exit = True
                thread.join(10)
    finally:
        server.close()


@pytest.mark.parametrize("address", ["https://127.0.0.1:1", "http://example.com", "http://10.0.0.1:80",
                                     "127.0.0.1:8188", "http://127.0.0.1:1/path"])  # fmt: skip
def test_only_a_program_of_this_machine_can_stand_behind_it(address):
    with pytest.raises(UserError, match="no program on this machine") as error:
        proxy_app(address)
    assert "http://127.0.0.1:7860" in error.value.fix


# ------------------------------------------------------------------ real programs' habits


def test_comfyui_takes_orders_and_tells_of_them_through_a_tunnels_name():
    with upstream(comfyui) as origin:
        server = serve_proxy(origin, ASKING, None)
        server.add_tunnel(f"https://{HOST}")
        page = {"Host": HOST, "Origin": f"https://{HOST}", "Sec-Fetch-Site": "same-origin"}

        async def order():
            cookie = f"fastsd_session_{server.port}={server.guard.access.begin_session('me')}"
            raw = socket.create_connection(("127.0.0.1", server.port))
            async with websockets.connect(
                f"ws://{HOST}/ws?clientId=7", sock=raw, proxy=None, origin=f"https://{HOST}",
                additional_headers={"Cookie": cookie}, max_size=2**22,
            ) as line:  # fmt: skip
                first = json.loads(await line.recv())
                with signed_in(server, headers=page) as one:
                    ordered = await asyncio.to_thread(one.post, "/api/prompt", json={"prompt": {}})
                return first, ordered, json.loads(await line.recv()), await line.recv()

        try:
            first, ordered, told, preview = asyncio.run(order())
            assert first == {"type": "status", "sid": "7"} and ordered.json()["prompt_id"] == "1"
            assert told["type"] == "executing" and preview == b"\0\0\0\1" + FILE
            direct = httpx.post(
                f"{origin}/api/prompt", json={}, headers={"Origin": f"https://{HOST}"}, trust_env=False
            )
            assert direct.status_code == 403  # what every browser would get without the proxy's change
        finally:
            server.close()


def test_a_gradio_page_works_behind_it_with_files_and_events():
    from gradio_client import Client, handle_file

    from fastsd_lib.webui.app import gr  # as our page imports it

    def count(text: str, file: str):
        for number in range(3):
            yield f"{text} {number}", file

    with gr.Blocks(analytics_enabled=False) as page:
        text, file, out, back = gr.Textbox(), gr.File(), gr.Textbox(), gr.File()
        gr.Button("go").click(count, [text, file], [out, back], api_name="count")
    app = gr.mount_gradio_app(__import__("fastapi").FastAPI(), page.queue(), path="/", ssr_mode=False)
    with upstream(app) as origin:
        server = serve_proxy(origin, Door(users={"me": "secret"}), None)
        try:
            here = Client(server.url, auth=("me", "secret"), verbose=False)
            job = here.submit("picture", handle_file(__file__), api_name="/count")
            text, file = job.result(timeout=30)
            assert text == "picture 2" and [one[0] for one in job.outputs()] == [
                f"picture {n}" for n in range(3)
            ]
            assert Path(file).read_bytes() == Path(__file__).read_bytes()
            shown = client(server, auth=("me", "secret"), headers={"Accept": "text/html"}).get("/")
            assert shown.status_code == 200 and origin.removeprefix("http://") not in shown.text
        finally:
            server.close()
