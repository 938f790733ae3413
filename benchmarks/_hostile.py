"""Requests that a server of pictures must refuse and survive: for its tests and its benchmark.

Each is sent as bytes over a socket, so that it may lie about its length or never end.
"""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

JSON = "application/json"
SILENCE = 0  # the status of a connection that was closed without an answer


@dataclass(frozen=True)
class Hostile:
    name: str
    body: bytes = b""
    kind: str = JSON  # content type; "" = none is sent
    path: str = "/predict"
    method: str = "POST"
    length: str | None = None  # what Content-Length says, if not the truth; "chunked" = none
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False  # to close the connection is an answer as well


def picture(width: int = 64, height: int = 48, kind: str = "JPEG") -> bytes:
    """A small picture of noise: what an honest client sends."""
    noise = np.random.default_rng(width * height).integers(0, 255, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def png_bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of 2.7 GB, packed into little: its rows are all black."""
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 + width * 3)) for _ in range(200)) + rows.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A PNG whose text unpacks to 400 MB."""
    plain = picture(8, 8, "PNG")
    data = b"Comment\0\0" + zlib.compress(bytes(400 << 20), 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return plain[:33] + chunk + plain[33:]


def hostile_requests(body_bytes: int = 48 << 20) -> list[Hostile]:
    """`body_bytes`: the most that the server takes."""
    jpeg = picture()
    good = base64.b64encode(jpeg).decode()
    return [
        *_no_pictures(jpeg),
        *_texts(good),
        *_parameters(good),
        *_shapes(good),
        *_transport(jpeg, body_bytes),
    ]


def _no_pictures(jpeg: bytes) -> list[Hostile]:
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    entity = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    files = {
        "png bomb": png_bomb(),
        "png bomb of one row": png_bomb(200_000, 1),
        "text bomb": text_bomb(),
        "truncated jpeg": jpeg[: len(jpeg) // 2],
        "head of a jpeg": jpeg[:20],
        "zeros": bytes(4096),
        "svg": svg,
        "xml entity": entity,
        "eps": eps,
        "zip": b"PK\x03\x04" + bytes(200),
        "pickle": b"\x80\x04\x95cposix\nsystem\n(S'id'\ntR.",
        "html": b"<html><script>alert(1)</script></html>",
        "nan array": np.full((3, 8, 8), np.nan, np.float32).tobytes(),
        "numpy file": b"\x93NUMPY\x01\x00" + bytes(200),
    }
    return [Hostile(name, data, "image/png") for name, data in files.items()] + [
        Hostile("empty picture", b"", "image/jpeg")
    ]


def _texts(good: str) -> list[Hostile]:
    inputs = {
        "path": "/etc/passwd",
        "path upwards": "../../../../etc/passwd",
        "path of windows": "C:\\Windows\\win.ini",
        "file address": "file:///etc/passwd",
        "address of the metadata service": "http://169.254.169.254/latest/meta-data/",
        "address of this machine": "http://127.0.0.1:22/",
        "address in disguise": "HTTPS://[::ffff:127.0.0.1]/x.png",
        "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
        "unicode": "𝓅𝒾𝒸𝓉𝓊𝓇𝑒 \u202e gnp.tac \U0001f408",
        "nul": "\0\0\0\0",
        "data of text": "data:text/html;base64," + base64.b64encode(b"<script>").decode(),
        "base64 of nothing": "====",
        "base64 with a hole": good[:100] + "!" + good[100:],
    }
    return [Hostile(name, json.dumps({"inputs": text}).encode()) for name, text in inputs.items()]


def _parameters(good: str) -> list[Hostile]:
    wrong = {
        "top_k negative": {"top_k": -1},
        "top_k nought": {"top_k": 0},
        "top_k huge": {"top_k": 10**18},
        "top_k text": {"top_k": "5; DROP TABLE labels"},
        "top_k true": {"top_k": True},
        "top_k fraction": {"top_k": 1.5},
        "top_k list": {"top_k": [1]},
        "function of python": {"function_to_apply": "__import__('os').system('id')"},
        "unknown parameter": {"model": "../../other", "trust_remote_code": True},
    }
    found = [
        Hostile(name, json.dumps({"inputs": good, "parameters": given}).encode())
        for name, given in wrong.items()
    ]
    return [
        *found,
        Hostile("parameters as a list", json.dumps({"inputs": good, "parameters": [1]}).encode()),
        Hostile("top_k of 5000 digits", b'{"inputs": "eA==", "parameters": {"top_k": ' + b"9" * 5000 + b"}}"),
        Hostile("top_k in the address", picture(), "image/jpeg", path="/predict?top_k=-5"),
    ]


def _shapes(good: str) -> list[Hostile]:
    bodies = {
        "no inputs": b"{}",
        "null": b"null",
        "array of NaN": b'{"inputs": [[NaN, Infinity, -Infinity]]}',
        "number": b'{"inputs": 1e999}',
        "deep json": b'{"inputs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep objects": b'{"inputs": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        "half a json": b'{"inputs": "',
        "no utf-8": b'{"inputs": "\xff\xfe\xfd"}',
        "half a letter": b'{"inputs": "\\ud800"}',
        "100000 pictures": json.dumps({"inputs": ["eA=="] * 100_000}).encode(),
        "too many pictures": json.dumps({"inputs": [good] * 200}).encode(),
        "one bad among good": json.dumps({"inputs": [good, good, "eA==", good]}).encode(),
        "empty list": b'{"inputs": []}',
        "object": json.dumps({"inputs": {"image": good}}).encode(),
        "prototype": json.dumps({"inputs": good, "__proto__": {"admin": 1}}).encode(),
        "empty body": b"",
    }
    return [Hostile(name, body) for name, body in bodies.items()]


def _transport(jpeg: bytes, body_bytes: int) -> list[Hostile]:
    body = json.dumps({"inputs": "eA=="}).encode()
    return [
        Hostile("too long by its word", body, length=str(body_bytes + 1)),
        Hostile("too long in chunks", bytes(body_bytes + 2**20), "image/png", length="chunked", silent=True),
        Hostile("length below nought", body, length="-5", silent=True),
        Hostile("length of words", body, length="many", silent=True),
        Hostile("length greater than the body", body, length=str(len(body) + 500), silent=True),
        Hostile("no content type", body, ""),
        Hostile("form", b"inputs=eA==", "application/x-www-form-urlencoded"),
        Hostile("multipart", b"--x--", "multipart/form-data; boundary=x"),
        Hostile("text", body, "text/plain"),
        Hostile("another site's page", jpeg, "image/jpeg", headers={"Origin": "https://evil.example"}),
        Hostile("another name", jpeg, "image/jpeg", headers={"Host": "evil.example"}),
        Hostile("method", jpeg, "image/jpeg", method="PUT"),
        Hostile("path of a file", jpeg, "image/jpeg", path="/../../etc/passwd"),
        Hostile("long address", jpeg, "image/jpeg", path="/predict?" + "a" * 20_000, silent=True),
        Hostile("many headers", jpeg, "image/jpeg", headers={f"X-{n}": "y" for n in range(500)}, silent=True),
    ]


def send(port: int, hostile: Hostile, patience_s: float = 30.0) -> tuple[int, dict]:
    """The status and the JSON of the answer; (SILENCE, {}) when the connection was closed without one."""
    chunked = hostile.length == "chunked"
    length = (
        {"Transfer-Encoding": "chunked"}
        if chunked
        else {"Content-Length": hostile.length or str(len(hostile.body))}
    )
    headers = {"Host": f"127.0.0.1:{port}", "Connection": "close", **length}
    if hostile.kind:
        headers["Content-Type"] = hostile.kind
    headers |= hostile.headers
    head = f"{hostile.method} {hostile.path} HTTP/1.1\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as line:
        try:
            line.sendall(head.encode("latin-1"))
            for at in range(0, len(hostile.body), 2**16):
                piece = hostile.body[at : at + 2**16]
                line.sendall(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        except (ConnectionResetError, BrokenPipeError):
            pass  # refused before all of it was there: the answer may still stand in the line
        return _read(line)


def _read(line: socket.socket) -> tuple[int, dict]:
    raw = b""
    try:
        while piece := line.recv(2**16):
            raw += piece
    except (ConnectionResetError, BrokenPipeError):
        pass
    head, _, body = raw.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 "):
        return SILENCE, {}
    try:
        found = json.loads(body)
    except ValueError:
        found = {}
    return int(head.split()[1]), found if isinstance(found, dict) else {"list": found}


def refusals(
    port: int, body_bytes: int, note: Callable[[str, int], None] = lambda name, status: None
) -> list[str]:
    """Send all; the names of those that were not refused as they should be."""
    wrong = []
    for hostile in hostile_requests(body_bytes):
        status, told = send(port, hostile)
        note(hostile.name, status)
        refused = 400 <= status < 500 and bool(told.get("error") or hostile.silent)
        if not (refused or (hostile.silent and status == SILENCE)):
            wrong.append(f"{hostile.name}: {status} {str(told)[:200]}")
    return wrong
