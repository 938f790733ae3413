"""A picture by its https address: off unless the server was started so, and then never from this network.

The name is resolved once and that very address is dialled, so no second answer of the name server counts
(DNS rebinding); it must be a public one; redirects are not followed; size and time are bounded.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import urlsplit

from fastsd_lib.webui.api_errors import Refused

LONGEST_S = 20.0
CHUNK_BYTES = 64 * 1024
# IPv6 addresses that carry an IPv4 address which another machine would dial: 6to4, Teredo, NAT64.
_CARRIERS = tuple(
    ipaddress.ip_network(net) for net in ("2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48")
)


def fetch_picture(url: str, most_bytes: int) -> bytes:
    """The body of an https address. Refused for whatever is not a plain answer of a public server."""
    shown = url[:200]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:
        raise _refused(shown, "is no address") from None
    if parts.scheme != "https" or not host or parts.username or parts.password:
        raise _refused(shown, "is not a plain https address")
    deadline = time.monotonic() + LONGEST_S
    address = public_address(host, port, shown)
    connection = _Dialled(host, port, address, deadline)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", path, headers={"user-agent": "fastsd", "accept": "image/*"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise _refused(shown, f"answers {answer.status} (redirects are not followed)")
        return _read(answer, connection, most_bytes, deadline, shown)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _refused(shown, f"cannot be fetched: {type(error).__name__}") from None
    finally:
        connection.close()


def public_address(host: str, port: int, shown: str) -> str:
    """The one address that is dialled for `host`; Refused when any of its addresses is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _refused(shown, "has a host that is not known") from None
    addresses = [entry[4][0] for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _refused(shown, "leads to this machine or its network")
    return addresses[0]


def is_public(address: str) -> bool:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    carries = ip.version == 6 and any(ip in net for net in _CARRIERS)
    return ip.is_global and not (carries or ip.is_multicast or ip.is_reserved or ip.is_unspecified)


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
    answer: http.client.HTTPResponse, connection: _Dialled, most_bytes: int, deadline: float, shown: str
) -> bytes:
    data = bytearray()
    while True:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise _refused(shown, f"takes longer than {LONGEST_S:g} s")
        if connection.sock is not None:
            connection.sock.settimeout(left_s)
        piece = answer.read1(CHUNK_BYTES)
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > most_bytes:
            raise _refused(shown, f"is larger than {most_bytes >> 20} MB")


def _refused(shown: str, why: str) -> Refused:
    return Refused(422, f"The picture {shown!r} {why}.", "send the picture itself in base64.")
