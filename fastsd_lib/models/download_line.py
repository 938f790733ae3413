"""One connection of a download."""

from __future__ import annotations

import http.client
import ssl
from typing import TYPE_CHECKING

from fastsd_lib.core.https_client import (
    REDIRECTS,
    USER_AGENT,
    Dialled,
    Opened,
    Reach,
    open_url,
    parse_address,
)

if TYPE_CHECKING:
    from fastsd_lib.models.downloading import DownloadRules, Source

_MOVED_ON = {*REDIRECTS, 401, 403, 404, 410}  # from where redirects once led: such addresses expire
_ASKED = {"user-agent": USER_AGENT, "accept": "*/*", "accept-encoding": "identity"}


class Line:
    """One connection, kept from request to request; it goes the way of the redirects again when it must."""

    def __init__(self, source: Source, rules: DownloadRules, context: ssl.SSLContext | None) -> None:
        self._source, self._rules = source, rules
        self._reach = Reach(rules.http_allowed, rules.private_allowed, context)
        self._home = parse_address(source.url, http_allowed=rules.http_allowed)
        self._url = source.url  # where redirects led
        self._kept: Opened | None = None
        self._dialling: Dialled | None = None
        self._cut = False

    def ask(self, headers: dict[str, str]) -> Opened:
        opened = self._ask_again(headers)
        if opened is None:
            opened = self._open(self._url, headers)
            if self._url != self._source.url and opened.response.status in _MOVED_ON:
                opened.connection.close()
                opened = self._open(self._source.url, headers)
        self._kept, self._url = opened, opened.url
        return opened

    def _ask_again(self, headers: dict[str, str]) -> Opened | None:
        """On the connection that is there, if the server keeps it."""
        kept = self._kept
        if kept is None or not kept.response.isclosed() or kept.connection.sock is None:
            self.close()
            return None
        address = kept.connection.address
        try:
            own = self._source.headers if address.origin == self._home.origin else {}
            kept.connection.request("GET", address.target, headers={**_ASKED, **headers, **own})
            response = kept.connection.getresponse()
        except (OSError, http.client.HTTPException):
            self.close()
            return None
        if response.status in _MOVED_ON:
            self.close()
            return None
        return Opened(kept.connection, response, kept.url, [])

    def _open(self, url: str, headers: dict[str, str]) -> Opened:
        return open_url(
            url, {**_ASKED, **headers}, secrets=self._source.headers, home=self._home,
            redirects=self._rules.redirects, reach=self._reach, seconds_left=lambda: self._rules.stall_s,
            watch=self._watch,
        )  # fmt: skip

    def _watch(self, connection: Dialled) -> None:
        self._dialling = connection
        if self._cut:
            connection.cut()

    def cut(self) -> None:
        """End what waits; from another thread."""
        self._cut = True
        if self._dialling is not None:
            self._dialling.cut()

    def close(self) -> None:
        if self._kept is not None:
            self._kept.response.close()
            self._kept.connection.close()
        self._kept = None
