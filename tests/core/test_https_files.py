"""Addresses of files: only public ones, resolved once, over https."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import time

import pytest
from bad_server import bad_server, certificate, until_hung_up

from fastsd_lib.core import fetching
from fastsd_lib.core.fetching import FetchRefused, fetch
from fastsd_lib.core.https_client import Reach, is_public, reachable


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "ff02::1", "nonsense",
        "fec0::1", "feff::1%eth0",
    ],
)  # fmt: skip
def test_addresses_of_this_network_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]".strip("[]")])
def test_names_that_lead_here_are_refused_however_they_are_written(host):
    with pytest.raises(FetchRefused, match=r"leads to this machine|is not known"):
        reachable(host, 443, host)


def test_one_private_address_among_public_ones_is_enough(monkeypatch):
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("1.1.1.1", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **more: answers)
    with pytest.raises(FetchRefused, match="leads to this machine"):
        reachable("two.example", 443, "two.example")


def test_the_name_is_resolved_once_and_that_address_is_dialled(monkeypatch):
    """A name server that answers 1.1.1.1 first and 127.0.0.1 then gains nothing."""
    asked, dialled = [], []

    def resolve(host, port, **more):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("1.1.1.1", port))]

    def dial(address, **more):
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", dial)
    with pytest.raises(FetchRefused, match="cannot be fetched"):
        fetch("https://rebind.example/a.png", 1000)
    assert (asked, dialled) == (["rebind.example"], [("1.1.1.1", 443)])


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png", "ftp://example.org/a", "https://user:pw@example.org/a.png", "https://",
        "https://[::1", "https://example.org:99999/", "file:///etc/passwd", "gopher://x",
    ],
)  # fmt: skip
def test_only_plain_https_addresses_are_fetched(url):
    with pytest.raises(FetchRefused):
        fetch(url, 1000)


class _Answers(http.server.BaseHTTPRequestHandler):
    """/picture is one; /to/<host>/<path> redirects there; /large is 3 MB; /none is not there."""

    def do_GET(self):
        parts = self.path.strip("/").split("/", 2)
        if parts[0] == "to":
            self.send_response(302)
            self.send_header(
                "location", f"https://{parts[1]}/{parts[2]}" if parts[1] != "here" else f"/{parts[2]}"
            )
            self.end_headers()
            return
        body = {"picture": b"pixels", "large": bytes(3 << 20)}.get(parts[0])
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *words):
        pass


@pytest.fixture
def internet(monkeypatch, tmp_path):
    """A TLS server of this machine that stands at 1.1.1.1; inside.example is an address of this network."""
    certificate = tmp_path / "server.pem"
    certificate.write_text(CERTIFICATE)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    def dial(address, timeout):
        plain = socket.socket()
        plain.settimeout(timeout)
        plain.connect(server.server_address[:2])
        return plain

    def resolve(host, port, **more):
        ip = "192.168.0.7" if host == "inside.example" else "1.1.1.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", dial)
    yield
    server.shutdown()
    server.server_close()


def test_a_redirect_is_followed_when_that_is_asked_for_and_only_then(internet):
    assert fetch("https://pictures.example/picture", 1000) == b"pixels"
    assert fetch("https://pictures.example/to/other.example/picture", 1000, redirects=3) == b"pixels"
    assert fetch("https://pictures.example/to/here/picture", 1000, redirects=3) == b"pixels"
    with pytest.raises(FetchRefused, match=r"answers 302 \(redirects are not followed\)"):
        fetch("https://pictures.example/to/other.example/picture", 1000)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("to/inside.example/picture", "leads to this machine or its network"),
        ("to/here/to/here/to/here/to/here/picture", "leads through more than 2 redirects"),
        ("none", "answers 404"),
        ("large", "is larger than 1 MB"),
    ],
)
def test_a_redirect_is_looked_at_like_the_first_address_and_everything_is_bounded(internet, path, why):
    with pytest.raises(FetchRefused, match=why) as refused:
        fetch(f"https://pictures.example/{path}", 1 << 20, redirects=2)
    assert refused.value.fix == "download the file yourself and give it instead."


def test_a_server_that_cannot_show_its_name_is_not_believed(internet):
    with pytest.raises(FetchRefused, match="cannot be fetched: SSLCertVerificationError"):
        fetch("https://unknown.example/picture", 1000)


# ------------------------------------------------------------------ time


def drips_an_address(request) -> None:
    """A redirect whose address never ends: what has come when it is cut must not be followed."""
    request.send(b"HTTP/1.1 302 Found\r\nlocation: /good?")
    until_hung_up(request, b"x", 0.05)


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("way", ["slow-headers", "drip", "endless-untold", "drips-an-address", "silent"])
def test_a_server_that_drips_is_left_when_the_time_is_up(tmp_path, monkeypatch, way, tls):
    """Each byte comes in time, so no single wait is ever too long."""
    monkeypatch.setattr(fetching, "LONGEST_S", 0.6)
    file, context = certificate(tmp_path)
    believed = ssl.create_default_context(cafile=str(file)) if tls else None
    reach = Reach(http_allowed=True, private_allowed=True, context=believed)
    with bad_server(b"x" * 100_000, context if tls else None) as server:
        server.ways["drips-an-address"] = drips_an_address
        server.ways["endless-untold"] = lambda r: (
            r.say(200, b"x", length=None),
            until_hung_up(r, b"x", 0.05),
        )
        began = time.monotonic()
        with pytest.raises(FetchRefused, match=r"takes longer than 0\.6 s") as refused:
            fetch(f"{server.url}/{way}", 1 << 20, redirects=2, reach=reach)
        assert time.monotonic() - began < 3
        assert refused.value.fix == "download the file yourself and give it instead."
        assert server.paths() == [f"/{way}"]


def test_many_addresses_that_do_not_answer_share_the_time(monkeypatch):
    monkeypatch.setattr(fetching, "LONGEST_S", 0.4)
    given: list[float] = []

    def resolve(host, port, **more):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"1.1.1.{n}", port)) for n in range(1, 200)]

    def dial(address, timeout):
        given.append(timeout)
        time.sleep(0.15)
        raise TimeoutError

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", dial)
    with pytest.raises(FetchRefused, match=r"takes longer than 0\.4 s"):
        fetch("https://silent.example/a.png", 1000)
    assert 2 <= len(given) <= 5
    assert given == sorted(given, reverse=True) and given[1] < 0.3


def test_a_fetch_leaves_no_clock_behind(internet):
    fetch("https://pictures.example/picture", 1000)
    clocks = [one for one in threading.enumerate() if isinstance(one, threading.Timer)]
    for one in clocks:
        one.join(1)  # it was called off, and may need a moment
    assert not any(one.is_alive() for one in clocks)


# Made for this test, for pictures.example and other.example, until 2126.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgHF9NncFt0USUCMz6
q02qGa0UMQmQlQ2mU4UGysYvwCqhRANCAAT7uIEcJAmanc5tSip9xuWvJbAEbmmu
wPceDHHwMhiDP0rQEmboUSiQYtBbOe8UFPWP90/j1nhs3LrSE5JKo47P
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBuTCCAV+gAwIBAgIUfI1acxiD3OPzxSFZ9NpIGeCEM4kwCgYIKoZIzj0EAwIw
GzEZMBcGA1UEAwwQcGljdHVyZXMuZXhhbXBsZTAgFw0yNjExMjExNzM4NTNaGA8y
MTI2MTAyODE3Mzg1M1owGzEZMBcGA1UEAwwQcGljdHVyZXMuZXhhbXBsZTBZMBMG
ByqGSM49AgEGCCqGSM49AwEHA0IABPu4gRwkCZqdzm1KKn3G5a8lsARuaa7A9x4M
cfAyGIM/StASZuhRKJBi0Fs57xQU9Y/3T+PWeGzcutITkkqjjs+jfzB9MB0GA1Ud
DgQWBBTjfSMDSNmz2bMKe+hz70LKKO1l8DAfBgNVHSMEGDAWgBTjfSMDSNmz2bMK
e+hz70LKKO1l8DAPBgNVHRMBAf8EBTADAQH/MCoGA1UdEQQjMCGCEHBpY3R1cmVz
LmV4YW1wbGWCDW90aGVyLmV4YW1wbGUwCgYIKoZIzj0EAwIDSAAwRQIgE6ZAoP61
gM3m91mYdAsjF+L9zV7LeSrJEaub/0wre5wCIQDuDoxxwShwEoaH5hSLm29Yt2cE
ErORHKH0GvRecLA5aQ==
-----END CERTIFICATE-----
"""
