"""The whole API on a real port, drawing with the embedded model."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from fastsd_lib.generation.history import History
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui.api import api_app
from fastsd_lib.webui.context import ApiContext, ApiFlags
from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.options import Options
from fastsd_lib.webui.server import Server, serve_app
from fastsd_lib.workflows.drawing import library_folders

SMALL = {"width": 64, "height": 64, "steps": 2, "sampler_name": "Euler a", "prompt": "a red star"}


@dataclass
class Served:
    server: Server
    service: Service
    context: ApiContext
    folder: Path

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.server.url, timeout=60, trust_env=False, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **more)

    def get(self, path: str, **params: Any) -> httpx.Response:
        with self.client() as client:
            return client.get(path, params=params)

    def draw(self, **fields: Any) -> dict[str, Any]:
        answer = self.post("/sdapi/v1/txt2img", SMALL | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextmanager
def served_api(
    folder: Path,
    door: Door = LOOPBACK,
    flags: ApiFlags | None = None,
    extras: bool = False,
    history: History | None = None,
) -> Iterator[Served]:
    """Models, styles and LoRA files come from `folder`, as in A1111's; pictures are saved in its outputs/.

    `extras`: with what is shipped for the embedded model, too.
    """
    folders = library_folders(folder) if extras else LibraryFolders.under(folder)
    service = Service(Shelf(Library.of(folders)), history)
    app = api_app(
        service, settings=Options(folder / "config.json"), pictures_dir=folder / "outputs", flags=flags
    )
    server = serve_app(app, door, None)
    try:
        yield Served(server, service, app.state.context, folder)
    finally:
        server.close()
        service.close()
        if history is not None:
            history.close()


def picture(text: str) -> Image.Image:
    opened = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    opened.load()
    return opened


def encoded(image: Image.Image, format_: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, format_)
    return base64.b64encode(file.getvalue()).decode()
