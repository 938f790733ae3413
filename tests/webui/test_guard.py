"""Who gets in, from where, by which name: over real HTTP and websockets."""

from __future__ import annotations

import asyncio
import logging
import time

import httpx
import pytest
import websockets
from guarded import ASKING, PASSWORD, basic, client, served

from fastsd_lib.webui.asked import Asked, Limits, Names, refusal
from fastsd_lib.webui.door import Door


@pytest.fixture(scope="module")
def asking():
    with served(ASKING) as server:
        yield server


@pytest.fixture(scope="module")
def open_server():
    with served() as server:
        yield server


def signed_in(server, user="me", password=PASSWORD) -> httpx.Client:
    session = client(server)
    done = session.post("/login", data={"username": user, "password": password})
    assert done.status_code == 200 and done.json() == {"success": True}
    return session


def socket(server, path="/echo", **settings) -> str:
    async def talk() -> str:
        async with websockets.connect(f"ws://127.0.0.1:{server.port}{path}", proxy=None, **settings) as one:
            await one.send("hello")
            return await one.recv()

    return asyncio.run(talk())


def refused_socket(server, **settings) -> websockets.Response:
    with pytest.raises(websockets.InvalidStatus) as refused:
        socket(server, **settings)
    return refused.value.response


# ------------------------------------------------------------------ who


@pytest.mark.parametrize(
    "path", ["/seen", "/nowhere", "/docs", "/openapi.json", "/file=/etc/passwd", "/stream"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE"])
def test_nothing_is_answered_without_a_password(asking, method, path):
    reply = client(asking).request(method, path)
    assert reply.status_code == 401
    assert reply.headers["www-authenticate"].startswith('Basic realm="fastsd"')
    if method != "HEAD":
        assert reply.json() == {
            "error": "Unauthorized",
            "detail": "Not authenticated",
            "body": "",
            "errors": "",
        }


def test_a_websocket_needs_the_password_too(asking):
    assert refused_socket(asking).status_code == 401
    cookie = "; ".join(f"{name}={value}" for name, value in signed_in(asking).cookies.items())
    assert socket(asking, additional_headers={"Cookie": cookie}) == "hello"


def test_basic_with_colons_commas_and_accents_gets_in_and_every_user_does(asking):
    for user, password in (("me", PASSWORD), ("you", "another, of yours")):
        seen = client(asking, auth=basic(user, password)).get("/seen").json()
        assert seen["user"] == user
        assert "authorization" not in seen["headers"]  # the routes never see the password


@pytest.mark.parametrize(
    "user, password",
    [("me", "a"), ("me", "a:b"), ("me", ""), ("you", PASSWORD), ("", PASSWORD), ("nobody", PASSWORD)],
)
def test_wrong_ones_do_not(user, password):
    with served(ASKING) as server:
        reply = client(server, auth=basic(user, password)).get("/seen")
        assert reply.status_code == 401 and "Incorrect" in reply.json()["detail"]


@pytest.mark.parametrize("header", ["Basic", "Basic !!!", "Basic bWU=", "Bearer x", "Basic /w==", ""])
def test_a_broken_authorization_is_none(asking, header):
    assert client(asking).get("/seen", headers={"Authorization": header}).status_code == 401


def test_a_session_works_until_logout_and_cannot_be_forged(asking):
    session = signed_in(asking)
    seen = session.get("/seen").json()
    assert seen["user"] == "me" and "cookie" not in seen["headers"]
    ((name, value),) = session.cookies.items()
    content, _, signature = value.rpartition(".")
    your_name = content.replace(content.split(".")[0], "eW91")  # base64 of "you"
    for forged in (f"{your_name}.{signature}", value[:-1], content, f"{content}.", "", "...", f"{value}0"):
        assert client(asking).get("/seen", headers={"Cookie": f"{name}={forged}"}).status_code == 401
    assert session.post("/logout").status_code == 200
    assert client(asking).get("/seen", headers={"Cookie": f"{name}={value}"}).status_code == 401


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(asking):
    reply = client(asking).post("/login", data={"username": "me", "password": PASSWORD})
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and "Path=/" in cookie and "Secure" not in cookie


def test_a_browser_is_led_to_the_login_page_and_back(asking):
    browser = client(asking, headers={"Accept": "text/html"})
    led = browser.get("/seen?a=1")
    assert (led.status_code, led.headers["location"]) == (303, "/login?next=/seen%3Fa%3D1")
    page = browser.get(led.headers["location"])
    assert page.status_code == 200 and 'value="/seen?a=1"' in page.text and "http" not in page.text
    wrong = browser.post("/login", data={"username": '"><b>', "password": "x", "next": "/seen"})
    assert wrong.status_code == 401 and 'role="alert"' in wrong.text and '"><b>' not in wrong.text
    done = browser.post("/login", data={"username": "me", "password": PASSWORD, "next": "/seen?a=1"})
    assert (done.status_code, done.headers["location"]) == (303, "/seen?a=1")
    assert "Sign out" in browser.get("/logout").text
    assert browser.post("/logout").headers["location"] == "/login"
    assert browser.get("/").headers["location"] == "/login"


@pytest.mark.parametrize(
    "there", ["//evil.com", "https://evil.com", "/\\evil.com", "\\\\evil", "", "/a\r\nX: y"]
)
def test_a_login_sends_nobody_elsewhere(asking, there):
    form = {"username": "me", "password": PASSWORD, "next": there}
    done = client(asking, headers={"Accept": "text/html"}).post("/login", data=form)
    assert done.headers["location"] == "/"


def test_a_script_of_the_page_gets_401_without_the_browsers_window(asking):
    reply = client(asking).get("/seen", headers={"Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"})
    assert reply.status_code == 401 and "Basic" not in reply.headers["www-authenticate"]


def test_an_enormous_login_form_is_refused(asking):
    assert client(asking).post("/login", data={"username": "m" * 9000, "password": "x"}).status_code == 400


# ------------------------------------------------------------------ guessing


def test_guessing_is_slowed_down_and_never_locks_out_who_is_signed_in():
    with served(ASKING) as server:
        now = 1000.0
        server.guard.throttle._clock = lambda: now
        session, stranger = signed_in(server), client(server)
        for _ in range(5):
            assert stranger.get("/seen", auth=basic("me", "guess")).status_code == 401
        blocked = stranger.get("/seen", auth=basic("me", PASSWORD))
        assert blocked.status_code == 429 and blocked.headers["retry-after"] == "1"
        assert stranger.post("/login", data={"username": "me", "password": PASSWORD}).status_code == 429
        assert session.get("/seen").status_code == 200
        now += 1.0
        assert stranger.get("/seen", auth=basic("me", PASSWORD)).status_code == 200


def test_wrong_passwords_in_the_login_page_count_too():
    with served(ASKING) as server:
        page = client(server, headers={"Accept": "text/html"})
        tries = [page.post("/login", data={"username": "me", "password": "x"}) for _ in range(6)]
        assert [one.status_code for one in tries] == [401] * 5 + [429]
        assert "Too many wrong passwords" in tries[-1].text and "retry-after" in tries[-1].headers


# ------------------------------------------------------------------ by which name, from where


@pytest.mark.parametrize("host", ["evil.com", "evil.com:{port}", "127.0.0.1.evil.com", "", "localhost@evil.com",
                                  "10.1.2.3", "[::ffff:10.0.0.1]"])  # fmt: skip
def test_another_name_is_refused(open_server, host):
    reply = client(open_server).get("/seen", headers={"Host": host.format(port=open_server.port)})
    assert reply.status_code == 403 and "not called" in reply.json()["detail"]


@pytest.mark.parametrize("twice", [b"host", b"origin"])
def test_a_name_said_twice_is_refused_whatever_the_server_in_front_lets_through(twice):
    headers = [(b"host", b"localhost"), (b"origin", b"http://localhost")]
    scope = {"type": "http", "method": "POST", "path": "/", "scheme": "http", "headers": headers}
    assert refusal(Asked(scope), Names("127.0.0.1"), Limits()) is None
    scope["headers"] = [*headers, (twice, b"http://evil.com")]
    assert refusal(Asked(scope), Names("127.0.0.1"), Limits()).status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:{port}", "LOCALHOST.", "[::1]:{port}", "127.9.9.9"])
def test_the_names_of_loopback_are_known(open_server, host):
    reply = client(open_server).get("/seen", headers={"Host": host.format(port=open_server.port)})
    assert reply.status_code == 200


def test_the_name_of_the_tunnel_is_known_once_it_is_and_makes_a_password():
    with served() as server:
        tunnel = {"Host": "abc.tunnel.example"}
        assert client(server).get("/seen", headers=tunnel).status_code == 403
        (line,) = server.add_tunnel("https://abc.tunnel.example")
        password = line.split("Password: ")[1].split()[0]
        assert client(server).get("/seen", headers=tunnel).status_code == 401
        assert client(server).get("/seen").status_code == 401  # what comes by the tunnel comes from 127.0.0.1
        seen = client(server, auth=("fastsd", password)).get("/seen", headers=tunnel).json()
        assert seen["scheme"] == "https"
        own = {"Origin": "https://abc.tunnel.example"}
        done = client(server).post(
            "/login", data={"username": "fastsd", "password": password}, headers=tunnel | own
        )
        assert done.status_code == 200 and "; Secure" in done.headers["set-cookie"]


def test_a_tunnel_keeps_the_password_that_was_chosen():
    with served(ASKING) as server:
        assert server.add_tunnel("https://abc.tunnel.example") == []
        assert client(server, auth=basic("me", PASSWORD)).get("/seen").status_code == 200


def test_a_name_can_be_allowed():
    with served(Door(names=("box.home",))) as server:
        assert client(server).get("/seen", headers={"Host": "box.home:80"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://127.0.0.1:1", "http://localhost",
                                    "https://127.0.0.1:{port}", "http://127.0.0.1:{port}.evil.com"])  # fmt: skip
def test_pages_of_other_servers_change_nothing_and_open_no_socket(open_server, origin):
    origin = origin.format(port=open_server.port)
    reply = client(open_server).post("/seen", json={}, headers={"Origin": origin})
    assert reply.status_code == 403 and "other servers" in reply.json()["detail"]
    assert refused_socket(open_server, origin=origin).status_code == 403
    assert client(open_server).options("/seen", headers={"Origin": origin}).status_code == 403


def test_our_own_page_and_programs_may(open_server):
    own = f"http://127.0.0.1:{open_server.port}"
    assert client(open_server).post("/seen", json={}, headers={"Origin": own}).status_code == 200
    assert client(open_server).post("/seen", json={}).status_code == 200
    assert socket(open_server, origin=own) == socket(open_server) == "hello"


def test_a_socket_by_another_name_is_refused(open_server):
    async def talk():
        import socket as plain

        raw = plain.create_connection(("127.0.0.1", open_server.port))
        async with websockets.connect("ws://evil.com/echo", sock=raw, proxy=None):
            pass

    with pytest.raises(websockets.InvalidStatus) as refused:
        asyncio.run(talk())
    assert refused.value.response.status_code == 403


def test_what_the_browser_says_of_the_sender_is_heeded(open_server):
    def get(**headers):
        named = {f"Sec-Fetch-{name.title()}": value for name, value in headers.items()}
        return client(open_server).get("/seen", headers=named).status_code

    assert get(site="cross-site", mode="no-cors", dest="image") == 403
    assert get(site="same-site", mode="cors", dest="empty") == 403  # another port of this machine
    assert get(site="cross-site", mode="navigate", dest="iframe") == 403
    assert get(site="cross-site", mode="navigate", dest="document") == 200  # a link
    assert get(site="same-origin", mode="cors", dest="empty") == 200
    post = client(open_server).post("/seen", json={}, headers={"Sec-Fetch-Site": "cross-site"})
    assert post.status_code == 403


def test_no_header_speaks_for_another_address(open_server):
    lies = {"X-Forwarded-For": "1.2.3.4", "X-Forwarded-Host": "evil.com", "X-Forwarded-Proto": "https",
            "Forwarded": "for=1.2.3.4", "X-Real-IP": "1.2.3.4", "X-Gradio-Server": "http://evil.com"}  # fmt: skip
    seen = client(open_server).get("/seen", headers=lies).json()
    assert seen["client"] == "127.0.0.1" and seen["scheme"] == "http"
    assert not {name.lower() for name in lies} & set(seen["headers"])
    with served(ASKING) as server:  # nor for another guesser
        for number in range(6):
            reply = client(server).get(
                "/", auth=basic("me", "x"), headers={"X-Forwarded-For": f"1.2.3.{number}"}
            )
        assert reply.status_code == 429


# ------------------------------------------------------------------ what is answered


def test_every_answer_carries_the_security_headers_and_no_leave_for_others(asking):
    session = signed_in(asking)
    for reply in (
        session.get("/seen"),
        session.get("/nowhere"),
        client(asking).get("/seen"),
        session.get("/login"),
    ):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "same-origin"
        assert reply.headers["x-frame-options"] == "SAMEORIGIN"
        assert "frame-ancestors 'self'" in reply.headers["content-security-policy"]
        assert not [name for name in reply.headers if name.startswith("access-control-")]
        assert "server" not in reply.headers
    assert "sandbox" in session.get("/file=/a.html").headers["content-security-policy"]


def test_errors_have_the_shape_that_programs_read_without_secrets(asking, caplog):
    session = signed_in(asking)
    assert session.get("/refuses").json() == {
        "error": "NotFound", "detail": "no sampler ***", "body": "", "errors": "", "more": [1]
    }  # fmt: skip
    assert session.get("/nowhere").json()["detail"] == "Not Found"
    with caplog.at_level(logging.ERROR):
        failed = session.get("/fails")
        end = time.monotonic() + 10
        while "RuntimeError" not in caplog.text and time.monotonic() < end:
            time.sleep(0.01)  # the log is written after the answer
    assert failed.status_code == 500
    assert failed.json() == {
        "error": "InternalServerError",
        "detail": "Internal Server Error",
        "body": "",
        "errors": "",
    }
    assert "RuntimeError: the password is ***" in caplog.text and PASSWORD not in caplog.text
    assert "answer broke off" not in caplog.text  # it was whole
    assert session.get("/traces").json()["detail"] == "Internal Server Error"
    assert PASSWORD not in repr(asking.guard.access) + repr(ASKING)


# ------------------------------------------------------------------ tunnels


NONCE = "n0nce-of_32-letters-0123456789ab"


def test_a_known_nonce_is_echoed_before_any_password_and_says_nothing_else(asking):
    asking.guard.answer_nonce(NONCE)
    echo = client(asking).get(f"/.fsd/{NONCE}")
    assert (echo.status_code, echo.text) == (200, NONCE)
    assert echo.headers["cache-control"] == "no-store" and "set-cookie" not in echo.headers
    by_name = client(asking).get(f"/.fsd/{NONCE}", headers={"Host": "evil.example"})
    assert by_name.status_code == 403
    for path in (f"/.fsd/{NONCE}/", f"/.fsd/{NONCE[:-1]}", f"/.fsd/{NONCE}x", "/.fsd/", f"/.FSD/{NONCE}",
                 f"/.fsd/../.fsd/{NONCE}%00", f"/.fsd/{NONCE.upper()}"):  # fmt: skip
        assert client(asking).get(path).status_code == 401, path
    for method in ("POST", "HEAD", "OPTIONS", "DELETE"):
        assert client(asking).request(method, f"/.fsd/{NONCE}").status_code == 401, method
    asking.guard.forget_nonce(NONCE)
    assert client(asking).get(f"/.fsd/{NONCE}").status_code == 401


@pytest.mark.parametrize("nonce", ["", "short", "../../../../../etc/passwd", "a" * 20 + "é", "a b" * 9])
def test_a_nonce_that_could_be_guessed_or_is_no_path_is_refused(asking, nonce):
    with pytest.raises(ValueError, match="nonce"):
        asking.guard.answer_nonce(nonce)


def test_the_name_of_a_tunnel_that_is_gone_is_refused_again():
    with served(ASKING) as server:
        tunnel = {"Host": "abc.tunnel.example"}
        server.add_tunnel("https://ABC.tunnel.example:443/")
        for host in ("abc.tunnel.example", "abc.tunnel.example:443"):
            assert client(server).get("/seen", headers={"Host": host}).status_code == 401
        server.remove_tunnel("https://abc.tunnel.example")
        assert client(server).get("/seen", headers=tunnel).status_code == 403
        server.remove_tunnel("http://127.0.0.1")  # no tunnel: our own name stays
        assert client(server, auth=basic("me", PASSWORD)).get("/seen").status_code == 200


@pytest.mark.parametrize(
    "url, host, secure",
    [
        ("https://abc.example", "abc.example", True),
        ("http://abc.example", "abc.example", False),
        ("https://abc.example", "localhost:{port}", True),  # a tunnel that calls us by our own name
        ("http://abc.example", "localhost:{port}", False),
    ],
)
def test_the_cookie_is_for_https_alone_where_the_browser_speaks_https(url, host, secure):
    with served(ASKING) as server:
        server.add_tunnel(url)
        headers = {"Origin": url, "Host": host.format(port=server.port)}
        done = client(server).post("/login", data={"username": "me", "password": PASSWORD}, headers=headers)
        assert done.status_code == 200 and ("; Secure" in done.headers["set-cookie"]) == secure
