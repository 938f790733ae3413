"""What Gradio's files need on their way: names that hold a hash of the content are asked for once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
FOREVER = (b"cache-control", b"private, max-age=31536000, immutable")


class KeptFiles:
    """An ASGI layer that lets browsers keep `/assets/...`; everything else passes as it is.

    A browser asks again for each of a hundred files otherwise, at every visit. Gradio packs them itself.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or not path.startswith("/assets/"):
            await self._app(scope, receive, send)
            return

        async def kept(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] in (200, 304):
                headers = [pair for pair in message.get("headers", []) if pair[0].lower() != FOREVER[0]]
                message = {**message, "headers": [*headers, FOREVER]}
            await send(message)

        await self._app(scope, receive, kept)
