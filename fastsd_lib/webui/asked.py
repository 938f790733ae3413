"""One request as the guard sees it, and what is wrong with it before anybody is asked who they are."""

from __future__ import annotations

import ipaddress
import json
import re
from dataclasses import dataclass, field, replace
from typing import Any

from fastsd_lib.webui import login
from fastsd_lib.webui.answers import PAGE_POLICY, Headers, error_body
from fastsd_lib.webui.door import is_loopback

METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
READING = {"GET", "HEAD", "OPTIONS"}
OWN_FORMS = ("/login", "/logout")
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+?)\.?(?::(\d{1,5}))?")


@dataclass(frozen=True)
class Limits:
    """How much and how long; streams, once begun, may last."""

    body_bytes: int = 64 * 2**20
    url_bytes: int = 8192
    header_bytes: int = 32 * 1024
    header_count: int = 100
    requests_per_client: int = 64
    message_bytes: int = 16 * 2**20  # of a websocket
    any_content_type: bool = False  # else JSON and multipart alone
    body_s: float = 600.0  # until a body is there
    silence_s: float = 30.0  # between two pieces of it
    answer_s: float = 3600.0  # until an answer begins


#: For a program that is not ours. Its users send it models; its pages load hundreds of previews at once through a
#: tunnel of HTTP/2; its forms and raw bytes pass, as browsers name the origin of each of them.
FOREIGN_LIMITS = Limits(
    body_bytes=2 * 2**30,
    requests_per_client=256,
    message_bytes=128 * 2**20,
    any_content_type=True,
    body_s=2 * 3600.0,
    silence_s=120.0,
    answer_s=6 * 3600.0,
)


@dataclass(frozen=True)
class Answer:
    """A whole answer of the guard's own."""

    status: int
    body: bytes = b""
    headers: Headers = field(default_factory=list)
    policy: str = PAGE_POLICY
    detail: str = ""

    @staticmethod
    def json(status: int, body: bytes, headers: Headers | None = None, detail: str = "") -> Answer:
        kept = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *(headers or [])]
        return Answer(status, body, kept, detail=detail)

    @staticmethod
    def error(status: int, detail: str, headers: Headers | None = None) -> Answer:
        return Answer.json(status, error_body(status, detail), headers, detail)

    @staticmethod
    def text(body: bytes) -> Answer:
        return Answer(200, body, [(b"content-type", b"text/plain"), (b"cache-control", b"no-store")])

    @staticmethod
    def page(body: bytes, status: int = 200, headers: Headers | None = None) -> Answer:
        kept = [pair for pair in headers or [] if pair[0] not in (b"content-type", b"cache-control")]
        kept += [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
        return Answer(status, body, kept, login.POLICY)

    @staticmethod
    def redirect(address: str) -> Answer:
        return Answer(
            303, b"", [(b"location", address.encode("ascii", "ignore")), (b"cache-control", b"no-store")]
        )

    def with_headers(self, headers: Headers) -> Answer:
        return replace(self, headers=[*self.headers, *headers])


class Asked:
    """The parts of an ASGI scope that decisions are made from."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope
        self.is_socket = scope["type"] == "websocket"
        self.method = "GET" if self.is_socket else scope["method"].upper()
        self.path: str = scope["path"]
        self.query: str = scope.get("query_string", b"").decode("latin-1")
        self.headers: Headers = [(name.lower(), value) for name, value in scope["headers"]]
        self.client: str = (scope.get("client") or ("?", 0))[0]  # the peer itself, whatever it says of others

    def header(self, name: bytes) -> str:
        return next((value.decode("latin-1").strip() for key, value in self.headers if key == name), "")

    def count(self, name: bytes) -> int:
        return sum(key == name for key, _ in self.headers)

    def cookies(self) -> dict[str, str]:
        text = "; ".join(value.decode("latin-1") for key, value in self.headers if key == b"cookie")
        pairs = (part.strip().partition("=") for part in text.split(";"))
        return {name: value for name, equals, value in pairs if equals}

    @property
    def media_type(self) -> str:
        return self.header(b"content-type").partition(";")[0].strip().lower()

    @property
    def wants_html(self) -> bool:
        return "text/html" in self.header(b"accept")

    @property
    def is_page_load(self) -> bool:
        """A browser goes to an address, rather than a program or a script asks for data."""
        mode = self.header(b"sec-fetch-mode")
        return not self.is_socket and self.method == "GET" and self.wants_html and mode in ("", "navigate")

    @property
    def has_body(self) -> bool:
        return self.header(b"content-length") not in ("", "0") or bool(self.count(b"transfer-encoding"))


class Names:
    """The names by which this server may be called: anything else is another site's name led here (DNS rebinding)."""

    def __init__(self, bound: str, names: tuple[str, ...] = ()) -> None:
        self._names = {bound.lower().strip("[]"), "localhost", *(name.lower() for name in names)}
        self._tunnels: dict[str, str] = {}  # authority: scheme

    def add_tunnel(self, url: str) -> None:
        scheme, authority = _parts(url)
        self._tunnels = {**self._tunnels, authority: scheme}  # replaced whole: requests read it meanwhile

    def remove_tunnel(self, url: str) -> None:
        """Be called so no longer; a name that was given otherwise, and one never added, stay as they are."""
        gone = _parts(url)[1]
        self._tunnels = {name: scheme for name, scheme in self._tunnels.items() if name != gone}

    def knows(self, asked: Asked) -> bool:
        found = _AUTHORITY.fullmatch(asked.header(b"host").lower())
        if asked.count(b"host") != 1 or found is None:
            return False
        name = found[1].strip("[]")
        if name in self._names or self._tunnel_scheme(asked) or is_loopback(name):
            return True
        reached = (asked.scope.get("server") or ("",))[0]  # the address of this machine that was dialled
        return _is_address(name) and name == reached

    def _tunnel_scheme(self, asked: Asked) -> str:
        host = asked.header(b"host").lower()  # some programs name the port of https, browsers do not
        return self._tunnels.get(host) or self._tunnels.get(host.removesuffix(":443"), "")

    def scheme_of(self, asked: Asked) -> str:
        """Known from how we were opened, never from what a header says."""
        plain = {"ws": "http", "wss": "https"}.get(asked.scope["scheme"], asked.scope["scheme"])
        return self._tunnel_scheme(asked) or plain

    def is_encrypted(self, asked: Asked) -> bool:
        """Whether the browser speaks https with the tunnel, though the tunnel speaks http with us.

        A tunnel that calls us by our own name (Host: localhost) is known by the origin of the page.
        """
        by_page = _parts(asked.header(b"origin"))[1]
        return "https" in (self.scheme_of(asked), self._tunnels.get(by_page))

    def is_own_origin(self, asked: Asked, origin: str) -> bool:
        own = {f"{self.scheme_of(asked)}://{asked.header(b'host').lower()}"}
        own |= {f"{scheme}://{authority}" for authority, scheme in self._tunnels.items()}
        return _normal(origin.lower()) in {_normal(one) for one in own}


def refusal(asked: Asked, names: Names, limits: Limits) -> Answer | None:
    """Why this request goes no further, whoever sent it; None when nothing is wrong with it."""
    return (
        _too_long(asked, limits)
        or _wrong_name(asked, names)
        or _from_elsewhere(asked, names)
        or (None if asked.is_socket else _wrong_body(asked, limits))
    )


def _too_long(asked: Asked, limits: Limits) -> Answer | None:
    raw_path = asked.scope.get("raw_path") or asked.path.encode()
    if len(raw_path) + len(asked.query) > limits.url_bytes:
        return Answer.error(414, f"An address may have {limits.url_bytes} bytes.")
    total = sum(len(name) + len(value) for name, value in asked.headers)
    if len(asked.headers) > limits.header_count or total > limits.header_bytes:
        return Answer.error(
            431, f"There may be {limits.header_count} headers of {limits.header_bytes} bytes together."
        )
    return None


def _wrong_name(asked: Asked, names: Names) -> Answer | None:
    if names.knows(asked):
        return None
    shown = json.dumps(asked.header(b"host")[:100])
    return Answer.error(
        403, f"This server is not called {shown}; start it with --allow-host if it should be."
    )


def _from_elsewhere(asked: Asked, names: Names) -> Answer | None:
    """Pages of other sites may link to us, and do nothing else; a websocket is no link."""
    elsewhere = Answer.error(403, "Pages of other servers may not use this one.")
    origin, site = asked.header(b"origin"), asked.header(b"sec-fetch-site").lower()
    if asked.count(b"origin") > 1:
        return elsewhere
    if asked.method not in READING:
        if origin:
            return None if names.is_own_origin(asked, origin) else elsewhere
        return None if site in ("", "same-origin", "none") else elsewhere
    if origin and not names.is_own_origin(asked, origin):
        return elsewhere
    linked = asked.method == "GET" and asked.header(b"sec-fetch-mode") == "navigate"
    framed = asked.header(b"sec-fetch-dest") not in ("document", "")
    return None if site in ("", "same-origin", "none") or (linked and not framed) else elsewhere


def _wrong_body(asked: Asked, limits: Limits) -> Answer | None:
    if asked.method not in METHODS:
        return Answer.error(405, "There is no such method here.")
    length = asked.header(b"content-length")
    if length and (not length.isdigit() or int(length[:20]) > limits.body_bytes):
        return Answer.error(413, f"A request may have {limits.body_bytes} bytes.")
    if asked.method in READING or limits.any_content_type or (not asked.media_type and not asked.has_body):
        return None
    kind = asked.media_type
    if kind in ("application/json", "multipart/form-data") or re.fullmatch(
        r"application/[\w.-]+\+json", kind
    ):
        return None
    if asked.path in OWN_FORMS and kind == "application/x-www-form-urlencoded":
        return None
    return Answer.error(415, "Send application/json or multipart/form-data.")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _parts(url: str) -> tuple[str, str]:
    """Scheme and authority, in small letters, without the port that the scheme means anyway."""
    scheme, _, rest = url.lower().partition("://")
    origin = _normal(f"{scheme}://{rest.partition('/')[0]}")
    return scheme, origin.partition("://")[2]


def _normal(origin: str) -> str:
    for scheme, port in (("http", ":80"), ("https", ":443")):
        if origin.startswith(f"{scheme}://"):
            return origin.removesuffix(port)
    return origin
