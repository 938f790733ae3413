"""Around every route: an id for the request, its time, its status."""

from __future__ import annotations

import re
import secrets
import time
from typing import Any

from fastsd_lib.webui.vit_server.metrics import Metrics

HEADER = "x-request-id"
_GIVEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Observed:
    """An ASGI layer. A client's own X-Request-Id is kept when it is plain, and told in every answer of a route."""

    def __init__(self, app: Any, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next(
            (value.decode("latin-1") for name, value in scope["headers"] if name == HEADER.encode()), ""
        )
        id_ = given if _GIVEN.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = id_
        began, status = time.perf_counter(), 500

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (HEADER.encode(), id_.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"  # a scan makes no new series
            self._metrics.note(route, status, time.perf_counter() - began)
