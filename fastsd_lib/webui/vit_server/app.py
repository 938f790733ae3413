"""The routes: those of Hugging Face's inference toolkit for pictures, and what a host asks of a server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.batching import Busy, TooLate
from fastsd_lib.webui import docs_page
from fastsd_lib.webui.api_errors import ClientLeft, Refused, one_line, plain
from fastsd_lib.webui.vit_server import bodies, told
from fastsd_lib.webui.vit_server.metrics import CONTENT_TYPE
from fastsd_lib.webui.vit_server.observed import Observed
from fastsd_lib.webui.vit_server.service import Given, VitService

T = TypeVar("T")
ABOUT = """
Labels and features of pictures. Requests are those of Hugging Face's Inference Endpoints: JSON with `inputs` and
`parameters`, or a picture itself as the body, with parameters in the address.

Requests of many clients are computed in batches. An error is `{error, detail, error_type, request_id}`; a server that has
no room answers 503 and says in `Retry-After` when to come again.
"""
ROUTES = frozenset(
    ("/", "/predict", "/embed", "/health", "/healthz", "/info", "/metrics", "/openapi.json", "/docs")
)


def vit_app(service: VitService) -> FastAPI:
    """The app for a service; `running.serve` puts it behind the door."""

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        await service.started()
        yield
        await service.ended()

    app = FastAPI(
        title=f"fastsd vit: {service.model.name}",
        description=ABOUT,
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Observed, metrics=service.metrics, routes=ROUTES)
    for kind, handler in ((UserError, _user_error), (HTTPException, _http_error), (ClientLeft, _nobody)):
        app.add_exception_handler(kind, handler)
    _add_questions(app, service)
    _add_states(app, service)
    app.include_router(docs_page.router(None))
    return app


def _add_questions(app: FastAPI, service: VitService) -> None:
    async def classify(request: Request) -> Any:
        """Labels of one picture, or of each of several, best first."""
        return await _answered(
            request, service, bodies.ClassifyBody, bodies.ClassifyParameters, service.classify
        )

    async def embed(request: Request) -> Any:
        """Features of one picture, or of each of several: a row of numbers that stands for it."""
        return await _answered(request, service, bodies.EmbedBody, bodies.EmbedParameters, service.embed)

    labels = list[bodies.Label] | list[list[bodies.Label]]
    vectors = list[float] | list[list[float]]
    for path in ("/predict", "/"):
        _add(app, path, classify, bodies.ClassifyBody, bodies.ClassifyParameters, labels, path != "/")
    _add(app, "/embed", embed, bodies.EmbedBody, bodies.EmbedParameters, vectors)


def _add(
    app: FastAPI,
    path: str,
    route: Callable[..., Any],
    body: type[BaseModel],
    parameters: type[BaseModel],
    answer: Any,
    in_schema: bool = True,
) -> None:
    picture = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": told.schema_of(body)}, "image/*": picture}
    content["application/octet-stream"] = picture
    app.add_api_route(
        path,
        route,
        methods=["POST"],
        response_model=None,
        include_in_schema=in_schema,
        responses={200: {"model": answer}, **told.ERRORS},
        openapi_extra={
            "requestBody": {"required": True, "content": content},
            "parameters": told.query_of(parameters),
        },
    )


def _add_states(app: FastAPI, service: VitService) -> None:
    async def root(request: Request) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "")
        return RedirectResponse("docs") if wants_page else await health()

    async def health() -> Response:
        """Ok while the server takes requests, as the toolkit says it; 503 when it is ending."""
        return PlainTextResponse("ending" if service.ending else "Ok", 503 if service.ending else 200)

    async def healthz() -> Response:
        """The same in JSON, with what is under way."""
        told_ = {"status": "ending" if service.ending else "ok", "requests": service.under_way}
        return JSONResponse(told_, 503 if service.ending else 200)

    async def info() -> dict[str, Any]:
        """The model, what computes it, and the limits of a request."""
        return told.info(service)

    async def metrics() -> Response:
        """For Prometheus: requests, times, sizes of batches, what waits."""
        return PlainTextResponse(told.metrics(service), media_type=CONTENT_TYPE)

    app.add_api_route("/", root, include_in_schema=False)
    for route in (health, healthz, info, metrics):
        app.add_api_route(f"/{route.__name__}", route, response_model=None)


async def _answered(
    request: Request,
    service: VitService,
    body: type[BaseModel],
    parameters: type[BaseModel],
    work: Callable[[list[Given], Any], Awaitable[list[Any]]],
) -> Response:
    """One answer for one picture, a list for a list; no longer than the time limit, and no longer than anybody waits."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    raw_picture = kind.startswith("image/") or kind == "application/octet-stream"
    if not raw_picture and kind != "application/json":
        said = f"The content type is {kind[:60]!r}." if kind else "There is no content type."
        raise Refused(415, said, "send application/json, or a picture as image/jpeg, image/png ...")
    length = request.headers.get("content-length")
    with service.room(int(length) if length else service.config.body_mib << 20):
        raw = await request.body()
        single, given, asked = True, [raw], None
        if not raw_picture:
            read = await service.read(lambda data: bodies.read_json(body, data), raw)
            single, asked = isinstance(read.inputs, str), read.parameters
            given = [read.inputs] if single else read.inputs
        if asked is None:
            asked = bodies.read_query(parameters, dict(request.query_params))
        found = await _while_waited_for(request, work(given, asked), service.config.timeout_s)
    return JSONResponse(found[0] if single else found)


async def _while_waited_for(request: Request, work: Awaitable[T], timeout_s: float) -> T:
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task in done:
            return task.result()
        if gone in done:
            raise ClientLeft
        text = f"There was no answer within {timeout_s:g} s."
        raise TooLate(text, fix="try again later, or send fewer pictures.")
    finally:
        task.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ------------------------------------------------------------------ errors


def _error(
    request: Request, status: int, text: str, kind: str, headers: dict[str, str] | None = None
) -> Response:
    shape = {"error": text, "detail": text, "error_type": kind, "request_id": request.state.request_id}
    return JSONResponse(plain(shape), status, headers)


async def _user_error(request: Request, error: UserError) -> Response:
    if isinstance(error, Busy):
        wait = {"retry-after": str(min(max(math.ceil(error.retry_after_s), 1), 60))}
        return _error(request, 503, one_line(error), "busy", wait)
    if isinstance(error, TooLate):
        return _error(request, 504, one_line(error), "timeout")
    status = getattr(error, "status", 422)
    return _error(
        request, status, one_line(error), {413: "too_large", 415: "content_type"}.get(status, "refused")
    )


async def _http_error(request: Request, error: HTTPException) -> Response:
    text = f"There is no {request.url.path[:100]} here." if error.status_code == 404 else str(error.detail)
    return _error(request, error.status_code, text, "route", dict(error.headers or {}))


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's "client closed request"; it reaches nobody
