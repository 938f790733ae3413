"""A server of files that behaves badly in every way that downloads meet: one path for each (`WAYS`).

It speaks raw HTTP over sockets, because no HTTP library would say what this one says. It notes what it was asked.
"""

from __future__ import annotations

import gzip
import json
import re
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fastsd_lib.models.downloading import DownloadRules

ETAG = '"one"'
# A download from here: few tries, short waits, several parts of a small file.
QUICK = DownloadRules(
    stall_s=5,
    tries=2,
    wait_s=0.01,
    save_s=0.05,
    segment_bytes=32 << 10,
    http_allowed=True,
    private_allowed=True,
)
PAGE = b"<!DOCTYPE html><html><head><title>Google Drive - Quota\n exceeded &amp; more</title></head><body>no</body></html>"


def model_bytes(values: int = 20_000, key: str = "lora_unet_x.lora_down.weight") -> bytes:
    """A small LoRA as a .safetensors file: one float32 matrix of rank 4, and its partner."""
    width = values // 4
    size = 16 * width
    up = key.replace("lora_down", "lora_up")
    header = json.dumps(
        {
            key: {"dtype": "F32", "shape": [4, width], "data_offsets": [0, size]},
            up: {"dtype": "F32", "shape": [4, 4], "data_offsets": [size, size + 64]},
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    data = b"".join(struct.pack("<f", number / values) for number in range(4 * width + 16))
    return struct.pack("<Q", len(header)) + header + data


@dataclass
class Request:
    """One request, and the way to answer it by hand."""

    server: BadServer
    wire: socket.socket
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    number: int  # how often this path was asked for before

    def say(
        self, status: int | str, body: bytes = b"", length: int | str | None = "real", **headers: str
    ) -> None:
        """Status line, headers and body; `length` None leaves Content-Length out."""
        length = len(body) if length == "real" else length
        lines = [f"HTTP/1.1 {status} x"] + [
            f"{name.replace('_', '-')}: {value}" for name, value in headers.items()
        ]
        lines += [] if length is None else [f"content-length: {length}"]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def send(self, data: bytes) -> None:
        self.wire.sendall(data)

    def reset(self) -> None:
        """Break the connection so that the other side gets an error, not an end."""
        self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wire.close()

    def asked_range(self, size: int) -> tuple[int, int] | None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        return (int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)) if found else None

    def give(self, data: bytes, etag: str = ETAG, stop_after: int | None = None, **headers: str) -> bool:
        """As a good server does: parts, If-Range, keep-alive. `stop_after` bytes of the body it breaks off."""
        asked = self.asked_range(len(data))
        if etag:
            headers["etag"] = etag
        if asked and self.headers.get("if-range", etag) == etag:
            start, end = asked
            body = data[start:end]
            headers["content-range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self.say(206, body[:stop_after], length=len(body), **headers)
        else:
            body = data
            self.say(200, body[:stop_after], length=len(body), **headers)
        return stop_after is None or stop_after >= len(body)


@dataclass
class BadServer:
    data: bytes
    url: str = ""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # path with query, headers
    times: list[float] = field(default_factory=list)  # of each of these, by the monotonic clock
    connections: set[tuple[str, int]] = field(default_factory=set)
    pace: float = 0.0  # seconds of rest before each 16 kB of /paced, per connection
    ways: dict[str, Callable[[Request], bool | None]] = field(
        default_factory=dict
    )  # more ways, by their name

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@contextmanager
def bad_server(
    data: bytes, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> Iterator[BadServer]:
    bad = BadServer(data)
    server = _Threads(bad, tls)
    bad.url = f"{'https' if tls else 'http'}://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield bad
    server.ending.set()
    server.shutdown()
    server.server_close()
    thread.join()


class _Threads(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, bad: BadServer, tls: ssl.SSLContext | None) -> None:
        self.bad, self.tls, self.seen, self.ending = bad, tls, Counter(), threading.Event()
        super().__init__(("127.0.0.1", 0), _Connection)


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.server.bad.connections.add(self.client_address)
        with suppress(OSError, ValueError):
            wire = self.request
            if self.server.tls is not None:
                wire = self.server.tls.wrap_socket(wire, server_side=True)
            with wire:
                while self.answer(wire):
                    pass

    def answer(self, wire: socket.socket) -> bool:
        """One request; whether the connection goes on."""
        raw = b""
        while not raw.endswith(b"\r\n\r\n"):
            if not (got := wire.recv(1)):
                return False
            raw += got
        first, *lines = raw.decode("latin-1").split("\r\n")
        target = first.split()[1]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.server.bad.times.append(time.monotonic())
        self.server.bad.asked.append((target, headers))
        parts = urlsplit(target)
        way = parts.path.split("/")[1]
        number = self.server.seen[parts.path]
        self.server.seen[parts.path] += 1
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        request = Request(self.server.bad, wire, parts.path, query, headers, number)
        answer = self.server.bad.ways.get(way) or WAYS.get(way)
        if answer is None:
            request.say(404, b"nothing")
            return True
        return bool(answer(request))


def until_hung_up(request: Request, piece: bytes, rest_s: float) -> None:
    """Send `piece` again and again; ends when the other side has gone (at most 20 s)."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        request.send(piece)
        time.sleep(rest_s)


# ------------------------------------------------------------------ ways to answer: True = the connection goes on


def good(r: Request) -> bool:
    return r.give(r.server.data)


def paced(r: Request) -> bool:
    """A good server that gives each connection so many bytes a second."""
    data, asked = r.server.data, r.asked_range(len(r.server.data))
    start, end = asked or (0, len(data))
    r.say(206 if asked else 200, length=end - start, etag=ETAG,
          **({"content-range": f"bytes {start}-{end - 1}/{len(data)}"} if asked else {}))  # fmt: skip
    for at in range(start, end, 16384):
        time.sleep(r.server.pace)
        r.send(data[at : min(at + 16384, end)])
    return True


def chunked(r: Request, whole: bool = True) -> bool:
    r.say(200, length=None, transfer_encoding="chunked")
    for at in range(0, len(r.server.data), 10_000):
        piece = r.server.data[at : at + 10_000]
        r.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        if not whole:
            return False
    r.send(b"0\r\n\r\n")
    return True


def endless(r: Request) -> None:
    r.say(200, length=None)
    until_hung_up(r, r.server.data, 0)


def drip(r: Request) -> None:
    r.say(200, r.server.data[:600], length=len(r.server.data))
    until_hung_up(r, b"x", 0.05)


def slow_headers(r: Request) -> None:
    r.send(b"HTTP/1.1 200 OK\r\nx-slow: ")
    until_hung_up(r, b"x", 0.05)


def silent(r: Request) -> None:
    with suppress(OSError):
        r.wire.recv(1)  # until the other side hangs up


def redirect(r: Request) -> bool:
    r.say(302, location=r.query["to"])
    return True


def hops(r: Request) -> bool:
    left = int(r.path.split("/")[2])
    return good(r) if left == 0 else r.say(302, location=f"/hops/{left - 1}") is None


def etag_each_time(r: Request) -> bool:
    return r.give(r.server.data, etag=f'"{r.number}"')


def ends_early(r: Request) -> bool:
    r.say(200, r.server.data[: len(r.server.data) // 2], length=len(r.server.data))
    return False


def breaks(r: Request) -> bool:
    """Gives 30,000 bytes of whatever is asked for, then resets the connection."""
    if not r.give(r.server.data, stop_after=30_000):
        time.sleep(0.05)  # a reset overtakes what was sent before it
        r.reset()
    return False


def first_time(status: int, **headers: str) -> Callable[[Request], bool]:
    """This status once, then the file."""

    def answer(r: Request) -> bool:
        if r.number:
            return good(r)
        r.say(status, b"later", **headers)
        return True

    return answer


def always(status: int, body: bytes = b"no", length: int | str | None = "real", **headers: str):
    def answer(r: Request) -> bool:
        r.say(status, body, length, **headers)
        return length == "real"

    return answer


def named(disposition: str) -> Callable[[Request], bool]:
    return lambda r: r.give(r.server.data, content_disposition=disposition)


def one_line_at_a_time(r: Request) -> bool:
    """Serves one connection; each further one at the same time gets 429."""
    busy = r.server.__dict__.setdefault("busy", threading.Lock())
    if not busy.acquire(blocking=False):
        r.say(429, b"one only")
        return True
    try:
        time.sleep(0.05)
        return good(r)
    finally:
        busy.release()


WAYS: dict[str, Callable[[Request], bool | None]] = {
    "good": good, "paced": paced, "hops": hops, "redirect": redirect,
    "loop": always(302, location="/loop"),
    "downgrade": always(302, location="http://files.example/good"),
    "plain": lambda r: r.say(200, r.server.data) is None,  # knows no parts
    "untold": lambda r: r.say(200, r.server.data, length=None, connection="close"),
    "chunked": chunked, "chunked-short": lambda r: chunked(r, whole=False),
    "untagged": lambda r: r.give(r.server.data, etag=""),  # parts, but no sign of the version
    "weak": lambda r: r.give(r.server.data, etag='W/"one"'),
    "short": ends_early, "breaks": breaks, "etag-each-time": etag_each_time, "one-line": one_line_at_a_time,
    "endless": endless, "drip": drip, "slow-headers": slow_headers, "silent": silent,
    "huge": always(200, b"x", length=10**15), "large": always(200, b"x", length=3 * 10**11),
    "negative": always(200, b"x" * 700, length="-5"),
    "gzip": always(200, gzip.compress(bytes(10**7)), content_encoding="gzip"),
    "empty": always(200, b""),
    "page": always(200, PAGE, content_type="text/html"),
    "page-named-model": lambda r: r.give(PAGE + b" " * 9000, content_type="application/octet-stream"),
    "unauthorised": always(401), "forbidden": always(403), "gone": always(410), "missing": always(404),
    "teapot": always(418), "busy-long": always(429, retry_after="86400"), "down": always(503),
    "busy-once": first_time(429, retry_after="0"),
    "busy-a-second": first_time(429, retry_after="1"), "down-once": first_time(502),
    "busy-until": first_time(503, retry_after="Wed, 21 Oct 2015 07:28:00 GMT"),
    "wrong-part": lambda r: r.say(206, b"abc", content_range="bytes 5-7/100000", etag=ETAG) is None,
    "nameless-part": lambda r: r.say(206, b"abc", etag=ETAG) is None,
    "part-of-star": always(206, b"abc", content_range="bytes 0-2/*"),
    "long-part": lambda r: r.say(206, bytes(9), content_range="bytes 0-2/3", etag=ETAG) is None,
    "not-satisfiable": always(416),
    "traversal": named('attachment; filename="../../../evil.safetensors"'),
    "backslashes": named(r'attachment; filename="..\\..\\evil.safetensors"'),
    "starred": named("attachment; filename=old.bin; filename*=UTF-8''na%C3%AFve%20%E2%9C%93.safetensors"),
    "nul": named('attachment; filename="a\x00b\x1b[31mc.safetensors"'),
    "device": named('attachment; filename="CON.safetensors"'),
    "long-name": named(f'attachment; filename="{"n" * 400}.safetensors"'),
    "giant-header": lambda r: r.send(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000 + b"\r\n\r\n"),
    "many-headers": lambda r: r.send(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 5000 + b"\r\n"),
    "garbage": lambda r: r.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "nothing": lambda r: r.reset(),
}  # fmt: skip


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """(file to believe in, the server's side of it): for files.example, other.example, inside.example, 127.0.0.1."""
    file = folder / "server.pem"
    file.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return file, context


# Made for these tests, until 2126.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgIk3e6TQn/taP9zKM
u7ybdisJtG6ejO8UDjh7JI3NDzahRANCAARtWSUcc5mPyF5EOo6bE4fKwgwTby5r
tsgWTgGDSTKLKTfbv+gUP7dIEJ4wIOhc5zzPIeKWozzBSxlZHEz7wPIl
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIB8DCCAZagAwIBAgIUC5pYYq72eXpAEyak4sFzHF8uk6UwCgYIKoZIzj0EAwIw
GDEWMBQGA1UEAwwNZmlsZXMuZXhhbXBsZTAgFw0yNjExMjEyMjAxMjdaGA8yMTI2
MTAyODIyMDEyN1owGDEWMBQGA1UEAwwNZmlsZXMuZXhhbXBsZTBZMBMGByqGSM49
AgEGCCqGSM49AwEHA0IABG1ZJRxzmY/IXkQ6jpsTh8rCDBNvLmu2yBZOAYNJMosp
N9u/6BQ/t0gQnjAg6FznPM8h4pajPMFLGVkcTPvA8iWjgbswgbgwHQYDVR0OBBYE
FHW2NpxuxuvDFhCl/OtL3SpJvtDdMB8GA1UdIwQYMBaAFHW2NpxuxuvDFhCl/OtL
3SpJvtDdMA8GA1UdEwEB/wQFMAMBAf8wZQYDVR0RBF4wXIINZmlsZXMuZXhhbXBs
ZYINb3RoZXIuZXhhbXBsZYIOaW5zaWRlLmV4YW1wbGWCC2Npdml0YWkuY29tgg5o
dWdnaW5nZmFjZS5jb4IJbG9jYWxob3N0hwR/AAABMAoGCCqGSM49BAMCA0gAMEUC
IGsVMa5a8idW57f9w75ezg8ZphCMk03Dh3t1nEtusRe0AiEAkqKF4GJoT8UCX5CI
f2YBh15zDOBdNDEF2ui4G5A4tPc=
-----END CERTIFICATE-----
"""
