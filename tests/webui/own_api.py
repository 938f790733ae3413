"""The API's own routes on a small service, asked without a port; and pictures to ask with."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui.api_errors import add_error_handlers
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import Options


def context_of(model, folders: LibraryFolders | None = None, **more) -> ApiContext:
    """A context on a service of its own; close `context.service` afterwards."""
    library = Library.of(folders or LibraryFolders())
    settings = {name: more.pop(name) for name in ("flags", "limits", "pictures_dir") if name in more}
    service = Service(Shelf(library, model, device="cpu"), **more)
    return ApiContext(service, Options(), **settings)


def client_of(context: ApiContext, *routers: Callable, user: str | None = None) -> TestClient:
    """A client of an app with these routers; `user`: whom the guard would have let in."""
    app = FastAPI()
    add_error_handlers(app)
    for router in routers:
        app.include_router(router(context))

    async def as_user(scope, receive, send):
        await app({**scope, "fastsd.user": user}, receive, send)

    return TestClient(as_user, raise_server_exceptions=True)


def picture(width: int = 40, height: int = 28, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def coded(image: Image.Image, format_: str = "PNG", **options) -> str:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return base64.b64encode(file.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
