"""What a reverse proxy changes in the headers of both ways; nothing here touches the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from fastsd_lib.webui.answers import Headers

#: They speak of one connection only (RFC 9110, 7.6.1), and each of the two here has its own.
HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"trailers", b"transfer-encoding", b"upgrade",
}  # fmt: skip
_OF_SOCKETS = b"sec-websocket-"
#: Said by us alone, or of the address by which the browser came.
_OURS = {b"host", b"origin", b"referer", b"expect", b"forwarded", b"x-real-ip", b"x-gradio-server"}
OWN_COOKIE = "fastsd_session_"


def request_headers(
    scope: Mapping[str, object], upstream: str, authorization: str = "", cookies: str = ""
) -> Headers:
    """What the upstream hears. `upstream` is its origin, `http://127.0.0.1:8188`.

    It is called by its own name and asked by its own pages: ComfyUI and old Gradio refuse a Host and an Origin that
    differ, and the guard has compared them already. Where the browser came in is told in X-Forwarded-*.
    `authorization` and `cookies` are the upstream's own secrets, and replace or join what the browser sent.
    """
    given: Headers = [(name.lower(), value) for name, value in scope["headers"]]  # type: ignore[attr-defined]
    named = _named_by_connection(given)
    dropped = HOP_BY_HOP | _OURS | named | ({b"authorization"} if authorization else set())
    if chunked := any(name == b"transfer-encoding" for name, _ in given):
        dropped = dropped | {b"content-length"}  # which counts less, and may lie
    kept = [
        (name, value)
        for name, value in given
        if name not in dropped and not name.startswith((b"x-forwarded-", _OF_SOCKETS)) and name != b"cookie"
    ]
    headers = [(b"host", urlsplit(upstream).netloc.encode()), *kept]
    cookie = _joined_cookies(given, cookies)
    if cookie:
        headers.append((b"cookie", cookie))
    if authorization:
        headers.append((b"authorization", authorization.encode("latin-1")))
    if any(name == b"origin" for name, _ in given):
        headers.append((b"origin", upstream.encode()))
    if referer := _first(given, b"referer"):
        parts = urlsplit(referer.decode("latin-1"))
        query = f"?{parts.query}" if parts.query else ""
        headers.append((b"referer", f"{upstream}{parts.path}{query}".encode("latin-1")))
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    return headers + _forwarded(scope, given)


def answer_headers(headers: Iterable[tuple[bytes, bytes]], upstream: str, encrypted: bool) -> Headers:
    """What the browser hears: addresses of the upstream become ours, cookies stay on our name.

    `encrypted`: the browser speaks https, so its cookies may be for https alone.
    """
    given = [(name.lower(), value) for name, value in headers]
    named = _named_by_connection(given)
    kept: Headers = []
    for name, value in given:
        if name in HOP_BY_HOP or name in named or name == b"date":  # our server dates its answers itself
            continue
        if name in (b"location", b"content-location"):
            value = _ours(value, upstream)
        elif name == b"refresh":
            start, equals, address = value.partition(b"=")
            value = start + equals + _ours(address, upstream)
        elif name == b"set-cookie":
            value = _our_cookie(value, encrypted)
            if not value:
                continue
        kept.append((name, value))
    return kept


def _forwarded(scope: Mapping[str, object], given: Headers) -> Headers:
    """Gradio 4 and later build their addresses from these."""
    client = scope.get("client") or ("", 0)
    scheme = {"ws": "http", "wss": "https"}.get(str(scope["scheme"]), str(scope["scheme"]))
    return [
        (b"x-forwarded-for", str(client[0]).encode()),  # type: ignore[index]
        (b"x-forwarded-host", _first(given, b"host")),
        (b"x-forwarded-proto", scheme.encode()),
    ]


def _named_by_connection(headers: Headers) -> set[bytes]:
    lists = [value.lower().split(b",") for name, value in headers if name == b"connection"]
    return {one.strip() for words in lists for one in words}


def _joined_cookies(given: Headers, own: str) -> bytes:
    """The browser's cookies without the door's, then the upstream's own."""
    text = "; ".join(value.decode("latin-1") for name, value in given if name == b"cookie")
    replaced = {part.partition("=")[0].strip() for part in own.split(";")} if own else set()
    pairs = [part.strip() for part in text.split(";") if part.strip()]
    kept = [
        one
        for one in pairs
        if not one.startswith(OWN_COOKIE) and one.partition("=")[0].strip() not in replaced
    ]
    return "; ".join([*kept, *([own] if own else [])]).encode("latin-1")


def _ours(address: bytes, upstream: str) -> bytes:
    """An address on the upstream as a path here; others as they are.

    The upstream may call itself by any name of this machine's loopback, and by the one that it was told.
    """
    text = address.decode("latin-1")
    parts, own = urlsplit(text), urlsplit(upstream)
    if not parts.netloc:
        return address
    try:
        here = parts.hostname in {own.hostname, "localhost", "127.0.0.1", "0.0.0.0", "::1"}
        if not (here and (parts.port or 80) == (own.port or 80)):
            return address
    except ValueError:  # no port number
        return address
    rest = text.partition(parts.netloc)[2]
    return (rest if rest.startswith("/") else f"/{rest}").encode("latin-1")


def _our_cookie(value: bytes, encrypted: bool) -> bytes:
    """Without the upstream's name; empty when it would overwrite the door's own."""
    first, *rest = (part.strip() for part in value.decode("latin-1").split(";"))
    if first.startswith(OWN_COOKIE):
        return b""
    kept = [part for part in rest if part.partition("=")[0].strip().lower() not in ("domain", "secure")]
    if encrypted:
        kept.append("Secure")
    return "; ".join([first, *kept]).encode("latin-1")


def _first(headers: Headers, name: bytes) -> bytes:
    return next((value for key, value in headers if key == name), b"")
