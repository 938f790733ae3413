"""What Gradio's page needs on its way: packed, and files whose names hold a hash of the content asked for once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware.gzip import GZipMiddleware

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
FOREVER = (b"cache-control", b"private, max-age=31536000, immutable")


PAGE = ("", "/", "/config")  # a megabyte of text, a tenth of that when packed; Gradio packs all else itself


class KeptFiles:
    """An ASGI layer that packs the page and lets browsers keep `/assets/...`; all else passes as it is, streams above all.

    A browser asks again for each of a hundred files otherwise, at every visit.
    """

    def __init__(self, app: Any) -> None:
        self._app, self._packed = app, GZipMiddleware(app, minimum_size=1024, compresslevel=5)

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and path in PAGE:
            await self._packed(scope, receive, send)
            return
        if scope["type"] != "http" or not path.startswith("/assets/"):
            await self._app(scope, receive, send)
            return

        async def kept(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (200, 304):
                headers = [pair for pair in message.get("headers", []) if pair[0].lower() != FOREVER[0]]
                message = {**message, "headers": [*headers, FOREVER]}
            await send(message)

        await self._app(scope, receive, kept)
