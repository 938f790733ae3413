"""Signing in at the program behind the door, so that its own password never leaves this machine."""

from __future__ import annotations

import asyncio
import base64
from urllib.parse import urlencode

import httpx


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

    async def cookies(self, lines: httpx.AsyncHTTPTransport) -> str:
        """The cookies of a signed-in browser, "name=value; ..."; empty where there is no such page."""
        async with self._turn:
            if self._cookies is None:
                self._cookies = await self._sign_in(lines)
            return self._cookies or ""

    async def _sign_in(self, lines: httpx.AsyncHTTPTransport) -> str | None:
        form = urlencode({"username": self._user, "password": self._password}).encode()
        headers = {"content-type": "application/x-www-form-urlencoded", "origin": self._upstream}
        limits = dict.fromkeys(("connect", "read", "write"), 10.0)
        request = httpx.Request(
            "POST", f"{self._upstream}/login", headers=headers, content=form, extensions={"timeout": limits}
        )
        try:
            answer = await lines.handle_async_request(request)
        except httpx.TransportError:
            return None  # not there yet: the request itself will say so
        try:
            given = [value.partition(";")[0].strip() for value in answer.headers.get_list("set-cookie")]
            return "; ".join(given) if answer.status_code < 400 else ""
        finally:
            await answer.aclose()
