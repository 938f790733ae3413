"""What Gradio's page needs on its way: packed, files named by their content asked for once, no picture by a guess."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
FOREVER = (b"cache-control", b"private, max-age=31536000, immutable")
PAGE = ("", "/", "/config")  # a megabyte of text, a tenth of that when packed; Gradio packs all else itself


class PrivateFolder:
    """An ASGI layer that refuses files of `folder` by their own path: one user could guess the names of another's pictures.

    The page does not need it: what it shows, Gradio has copied to a place whose name is a hash of the content.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        self._app, self._folder = app, os.path.realpath(folder)

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        _, asked, name = scope.get("path", "").replace("/file/", "/file=").partition("/file=")
        if asked and os.path.realpath(name).startswith(self._folder + os.sep):
            await PlainTextResponse("Pictures are shown by the page that drew them.", 403)(
                scope, receive, send
            )
            return
        await self._app(scope, receive, send)


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
