"""A file by its https address, from the public internet only.

A name is resolved once and that very address is dialled, so no second answer of the name server counts (DNS
rebinding); it must be a public one; a redirect is looked at like the first address; size and time are bounded.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped

LONGEST_S = 20.0  # for all of it, redirects too
CHUNK_BYTES = 64 * 1024
_REDIRECTS = {301, 302, 303, 307, 308}
# IPv6 addresses that carry an IPv4 address which another machine would dial: 6to4, Teredo, NAT64.
_CARRIERS = tuple(
    ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48")
)


class FetchRefused(UserError):
    """An address that is not fetched, or does not answer with a file."""


def fetch(url: str, most_bytes: int, *, redirects: int = 0, accept: str = "image/*") -> bytes:
    """The body of an https address. FetchRefused for whatever is not a plain answer of a public server."""
    deadline = time.monotonic() + LONGEST_S
    for _ in range(redirects + 1):
        found = _fetch_one(url, most_bytes, deadline, accept, follow=redirects > 0)
        if isinstance(found, bytes):
            return found
        url = found
    raise _refused(url, f"leads through more than {redirects} redirects")


def public_address(host: str, port: int, url: str) -> str:
    """The one address that is dialled for `host`; FetchRefused when any of its addresses is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _refused(url, "has a host that is not known") from None
    addresses = [entry[4][0] for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _refused(url, "leads to this machine or its network")
    return addresses[0]


def is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    carries = ip.version == 6 and any(ip in net for net in _CARRIERS)
    return ip.is_global and not (carries or ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _fetch_one(url: str, most_bytes: int, deadline: float, accept: str, *, follow: bool) -> bytes | str:
    """The body, or the address that it redirects to."""
    parts, host, port = _plain_https(url)
    connection = _Dialled(host, port, public_address(host, port, url), deadline)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", path, headers={"user-agent": "fastsd", "accept": accept})
        answer = connection.getresponse()
        to = answer.getheader("location")
        if follow and answer.status in _REDIRECTS and to:
            return urljoin(url, to)
        if answer.status != 200:
            note = " (redirects are not followed)" if answer.status in _REDIRECTS else ""
            raise _refused(url, f"answers {answer.status}{note}")
        return _read(answer, connection, most_bytes, deadline, url)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _refused(url, f"cannot be fetched: {type(error).__name__}") from None
    finally:
        connection.close()


def _plain_https(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        raise _refused(url, "is no address") from None
    if parts.scheme != "https" or not host or parts.username or parts.password:
        raise _refused(url, "is not a plain https address")
    return parts, host, port


class _Dialled(http.client.HTTPSConnection):
    """TLS for `host`, on a connection to an address that was chosen before."""

    def __init__(self, host: str, port: int, address: str, deadline: float) -> None:
        super().__init__(host, port, context=ssl.create_default_context())
        self._address, self._deadline = address, deadline

    def connect(self) -> None:
        left_s = max(self._deadline - time.monotonic(), 0.1)
        plain = socket.create_connection((self._address, self.port), timeout=left_s)
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)


def _read(
    answer: http.client.HTTPResponse, connection: _Dialled, most_bytes: int, deadline: float, url: str
) -> bytes:
    data = bytearray()
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise _refused(url, f"takes longer than {LONGEST_S:g} s")
        if connection.sock is not None:
            connection.sock.settimeout(left_s)
        piece = answer.read1(CHUNK_BYTES)
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > most_bytes:
            raise _refused(url, f"is larger than {most_bytes >> 20} MB")


def _refused(url: str, why: str) -> FetchRefused:
    return FetchRefused(
        f"{escaped(url[:200])!r} {why}.", fix="download the file yourself and give it instead."
    )
