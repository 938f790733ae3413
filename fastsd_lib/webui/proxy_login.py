"""Signing in at the program behind the door, so that its own password never leaves this machine."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from urllib.parse import urlencode

from fastsd_lib.webui.proxy_lines import Broken, UpstreamLines

SIGN_IN_S = 10.0


class Login:
    """Its user and password: as Basic for its API, and as the cookie of its /login (Gradio) for its pages."""

    def __init__(self, upstream: str, user: str, password: str) -> None:
        self._upstream, self._user, self._password = upstream, user, password
        self.authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self._cookies: str | None = None
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Login({self._upstream})"

    def forget(self) -> None:
        """Sign in anew next time: the upstream was started again."""
        self._cookies = None

    async def cookies(self, lines: UpstreamLines) -> str:
        """The cookies of a signed-in browser, "name=value; ..."; empty where there is no such page."""
        async with self._turn:
            if self._cookies is None:
                self._cookies = await self._sign_in(lines)
            return self._cookies or ""

    async def _sign_in(self, lines: UpstreamLines) -> str | None:
        form = urlencode({"username": self._user, "password": self._password}).encode()
        headers = [
            (b"host", self._upstream.partition("://")[2].encode()),
            (b"origin", self._upstream.encode()),
            (b"content-type", b"application/x-www-form-urlencoded"),
            (b"content-length", str(len(form)).encode()),
        ]
        try:
            answer = await asyncio.wait_for(lines.ask("POST", b"/login", headers, _once(form)), SIGN_IN_S)
        except (Broken, asyncio.TimeoutError):
            return None  # not there yet: the request itself will say so
        answer.close()
        given = [value.partition(b";")[0].strip().decode("latin-1") for value in answer.all(b"set-cookie")]
        return "; ".join(given) if answer.status < 400 else ""


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
