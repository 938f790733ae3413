"""/docs: every route to read and to try, from files of our own. Nothing is fetched from anywhere else."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import Response

from fastsd_lib.webui.context import ApiContext

FOLDER = Path(__file__).with_name("docs")
_FILES = {
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs/docs.css": ("docs.css", "text/css; charset=utf-8"),
    "/docs/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    for path, (name, kind) in _FILES.items():
        routes.add_api_route(path, _answer(FOLDER / name, kind), methods=["GET"], name=name)
    return routes


def _answer(file: Path, kind: str):
    async def answer() -> Response:
        return Response(file.read_bytes(), media_type=kind, headers={"cache-control": "no-cache"})

    return answer
