"""One request to an address that was looked at first: where it leads, who is dialled, who hears a secret.

A name is resolved once and that very address is dialled, so no second answer of the name server counts (DNS
rebinding); it must be a public one; a redirect is looked at like the first address and never leads from https to
http; a secret goes to the host it was given for and to no other.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urljoin, urlsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped

USER_AGENT = "fastsd"
REDIRECTS = {301, 302, 303, 307, 308}
# IPv6 addresses that carry an IPv4 address which another machine would dial: 6to4, Teredo, NAT64.
_CARRIERS = tuple(
    ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48")
)
#: What may be shown of an address's query; every other value may be a key.
_HARMLESS = {"id", "modelversionid", "fileid", "type", "format", "fp", "size", "download", "export", "dl"}
_URL_LETTERS = "%/:=&?~#+!$,;'@()*[]"  # what is not quoted once more in a server's Location


class FetchRefused(UserError):
    """An address that is not fetched, or does not answer with a file."""

    why = ""  # what is wrong with it, without the address


class UnknownHost(FetchRefused):
    """No name server knows it: it is mistyped, or there is no network."""


@dataclass(frozen=True)
class Reach:
    """Where a request may go. The defaults are for addresses that strangers give."""

    http_allowed: bool = False
    private_allowed: bool = False
    context: ssl.SSLContext | None = None  # None = the certificates that this machine believes


PUBLIC = Reach()


@dataclass(frozen=True)
class Address:
    scheme: str
    host: str
    port: int
    target: str  # path and query, as the request line has them

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port


@dataclass
class Opened:
    """An answer whose body is not read yet."""

    connection: Dialled
    response: http.client.HTTPResponse
    url: str  # after the redirects
    hops: list[Mapping[str, str]]  # headers of the answers that redirected


def open_url(
    url: str,
    headers: Mapping[str, str],
    *,
    secrets: Mapping[str, str] | None = None,
    home: Address | None = None,
    redirects: int = 0,
    reach: Reach = PUBLIC,
    seconds_left: Callable[[], float],
    watch: Callable[[Dialled], None] = lambda connection: None,
) -> Opened:
    """GET `url`; with `redirects`, through as many. `secrets` are headers for the host of `home` (or of `url`) alone.

    `seconds_left` bounds each wait on the socket, not all of them; `watch` gets every connection before it is dialled,
    so that another thread can `cut` it, as `Deadline` does. FetchRefused for what must not be asked; OSError and
    HTTPException for what went wrong.
    """
    home = home or parse_address(url, http_allowed=reach.http_allowed)
    hops: list[Mapping[str, str]] = []
    for _ in range(redirects + 1):
        address = parse_address(url, http_allowed=reach.http_allowed)
        addresses = reachable(address.host, address.port, url, reach)
        connection = Dialled(address, addresses, seconds_left, reach.context)
        watch(connection)
        try:
            sent = {"user-agent": USER_AGENT, **headers}
            sent |= (secrets or {}) if address.origin == home.origin else {}
            connection.request("GET", address.target, headers=sent)
            response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        to = response.getheader("location")
        if not (redirects and response.status in REDIRECTS and to):
            return Opened(connection, response, url, hops)
        hops.append({name.lower(): value for name, value in response.getheaders()})
        connection.close()
        url = _next_url(url, to)
    raise refused(url, f"leads through more than {redirects} redirects")


def parse_address(url: str, *, http_allowed: bool = False) -> Address:
    """FetchRefused for anything but a plain https address (or http, where that is allowed)."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)
    except ValueError:
        raise refused(url, "is no address") from None
    plain = parts.scheme == "https" or (http_allowed and parts.scheme == "http")
    if not plain or not host or parts.username or parts.password or any(ord(one) < 32 for one in url):
        raise refused(url, "is not a plain https address")
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_URL_LETTERS)
    return Address(parts.scheme, host, port, target)


def reachable(host: str, port: int, url: str, reach: Reach = PUBLIC) -> list[str]:
    """The addresses that are dialled for `host`; FetchRefused when any of them is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise refused(url, "has a host that is not known", UnknownHost) from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not (reach.private_allowed or all(is_public(address) for address in addresses)):
        raise refused(url, "leads to this machine or its network")
    return addresses


def is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    carries = ip.version == 6 and any(ip in net for net in _CARRIERS)
    local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local  # fec0::/10, which Python calls global
    return ip.is_global and not (local or carries or ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class Dialled(http.client.HTTPConnection):
    """A connection to addresses that were chosen before; TLS for `address.host` where it is https."""

    def __init__(
        self,
        address: Address,
        addresses: list[str],
        seconds_left: Callable[[], float],
        context: ssl.SSLContext | None,
    ) -> None:
        super().__init__(address.host, address.port)
        self.address, self._addresses, self._seconds_left = address, addresses, seconds_left
        self._tls = (context or ssl.create_default_context()) if address.scheme == "https" else None
        self.default_port = 443 if self._tls else 80
        self._wire: socket.socket | None = None  # http.client forgets its socket while the body is still read
        self._cut = False

    def connect(self) -> None:
        for number, address in enumerate(self._addresses, 1):
            if self._cut:
                raise ConnectionAbortedError
            try:
                self.sock = socket.create_connection((address, self.port), timeout=self._seconds_left())
                break
            except OSError:
                if number == len(self._addresses):
                    raise
        self._wire = self.sock
        if self._tls is not None:
            self.sock = self._wire = self._tls.wrap_socket(
                self.sock, server_hostname=self.host, do_handshake_on_connect=False
            )
        if self._cut:
            self.cut()
        if self._tls is not None:
            self.sock.do_handshake()

    def getresponse(self) -> http.client.HTTPResponse:
        response = super().getresponse()
        if self._cut:  # http.client takes the end of what arrived for the end of the headers
            response.close()
            raise ConnectionAbortedError
        return response

    def wait_at_most(self, seconds: float) -> None:
        """From now on, for each wait on the socket."""
        if self._wire is not None:
            self._wire.settimeout(seconds)

    def cut(self) -> None:
        """End whatever waits on this connection; may be called from any thread."""
        self._cut = True
        if self._wire is not None:
            with suppress(OSError):
                # Not SSLSocket's own: that one goes on to hand out what arrives, unread by TLS.
                socket.socket.shutdown(self._wire, socket.SHUT_RDWR)


class Deadline:
    """So many seconds for a whole request, redirects too: when they are over, its connection is cut.

    The timeout of a socket is for one wait, and a server that drips a byte now and then never lets it pass.
    """

    def __init__(self, seconds: float) -> None:
        self.over = False
        self._ends = time.monotonic() + seconds
        self._connection: Dialled | None = None
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def seconds_left(self) -> float:
        return max(self._ends - time.monotonic(), 0.1)

    def watch(self, connection: Dialled) -> None:
        self._connection = connection
        if self.over:
            connection.cut()

    def _end(self) -> None:
        self.over = True
        if self._connection is not None:
            self._connection.cut()


def shown_url(url: str) -> str:
    """An address for messages: no password and no key in it, no sign that steers a terminal, not too long."""
    try:
        parts = urlsplit(url)
        query = "&".join(
            f"{name}={value if name.lower() in _HARMLESS else '***'}"
            for name, value in parse_qsl(parts.query, keep_blank_values=True)
        )
        place = parts.netloc.rpartition("@")[2]
        text = f"{parts.scheme}://{place}{parts.path}" if parts.scheme and place else _bare(url)
    except ValueError:
        text, query = _bare(url), ""
    return escaped((text + (f"?{query}" if query else ""))[:200])


def _bare(url: str) -> str:
    return re.sub(r"//[^/]*@", "//", url.partition("?")[0])


def refused(url: str, why: str, kind: type[FetchRefused] = FetchRefused) -> FetchRefused:
    error = kind(f"'{shown_url(url)}' {why}.", fix="download the file yourself and give it instead.")
    error.why = why
    return error


def _next_url(url: str, to: str) -> str:
    try:
        found = urljoin(url, quote(to.encode("latin-1", "replace"), safe=_URL_LETTERS))
        downgrade = urlsplit(url).scheme == "https" and urlsplit(found).scheme == "http"
    except ValueError:
        raise refused(url, "redirects to what is no address") from None
    if downgrade:
        raise refused(url, "redirects from https to http")
    return found
