"""All routes in one app: A1111's, ControlNet's, our own, their page of documentation, and the page in the browser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from fastsd_lib.webui import (
    a1111_drawing,
    a1111_lists,
    a1111_state,
    controlnet_api,
    docs_page,
    extra_networks,
    extras_api,
    fastsd_v1,
    internal,
    token_counts,
)
from fastsd_lib.webui.api_errors import add_error_handlers, answers
from fastsd_lib.webui.context import ApiContext, ApiFlags, ApiLimits
from fastsd_lib.webui.options import Options

if TYPE_CHECKING:
    import gradio as gr

    from fastsd_lib.generation.service import Service

ABOUT = """
Pictures from Stable Diffusion models. Programs written for AUTOMATIC1111's web UI work unchanged (`/sdapi/v1`,
`/controlnet`, `/internal`); `/fastsd/v1` has orders with an id, their progress as events, and their cancelling.

Errors are `{error, detail, body, errors}`; `detail` names the value that was wrong and what to send instead.
"""
TAGS = [
    {"name": "drawing", "description": "Text to image, image to image"},
    {"name": "state", "description": "Progress, interrupt, settings, memory"},
    {
        "name": "lists",
        "description": "Models, samplers, LoRA files and whatever else can be named in a request",
    },
    {"name": "pictures", "description": "Pictures that exist: enlarge them, ask how they were made"},
    {"name": "ControlNet", "description": "Control pictures, and what makes and reads them"},
    {"name": "orders", "description": "Orders with an id: queued, watched, moved, ended, found again"},
    {"name": "internal", "description": "Progress of one task"},
    {"name": "extra networks", "description": "Previews and notes beside LoRA files and embeddings"},
]


def api_app(
    service: Service,
    *,
    settings: Options | None = None,
    pictures_dir: Path | None = None,
    page: Callable[[ApiContext], gr.Blocks] | None = None,
    limits: ApiLimits | None = None,
    flags: ApiFlags | None = None,
) -> FastAPI:
    """The app for a service; serve it with `server.serve_app`. `page` makes what is mounted last, at "/"."""
    context = ApiContext(
        service, settings or Options(), pictures_dir, limits or ApiLimits(), flags or ApiFlags()
    )

    inner = _page_app(page(context), pictures_dir) if page is not None else None

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        async with AsyncExitStack() as stack:
            if inner is not None:  # a mounted app's own is not run by the one that mounts it
                await stack.enter_async_context(inner.router.lifespan_context(inner))
            yield
        context.coders.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(
        title="fastsd",
        description=ABOUT,
        version="1",
        openapi_tags=TAGS,
        responses=answers(401, 413, 415, 429),  # the guard's, whatever the route
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.context = context
    add_error_handlers(app)
    for part in (
        a1111_drawing,
        a1111_state,
        a1111_lists,
        extras_api,
        controlnet_api,
        internal,
        token_counts,
        extra_networks,
        fastsd_v1,
        docs_page,
    ):
        app.include_router(part.router(context))
    if inner is not None:
        app.mount("", inner)
    else:
        app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    return app


def _page_app(page: gr.Blocks, pictures_dir: Path | None) -> FastAPI:
    from fastsd_lib.webui.app import page_app  # gradio loads here

    return page_app(page, pictures_dir)
