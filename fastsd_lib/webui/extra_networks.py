"""/sd_extra_networks: the pictures and notes that lie beside LoRA files, embeddings and models.

Whatever a client names, only files inside the library's own folders are read, after every link is followed.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import FileResponse, Response

from fastsd_lib.webui.a1111_lists import networks_of
from fastsd_lib.webui.api_errors import Refused, answers
from fastsd_lib.webui.context import ApiContext

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
PAGES = ("lora", "textual_inversion", "checkpoints")
_OLD_PAGES = {"textual inversion": "textual_inversion", "embeddings": "textual_inversion"}


def router(context: ApiContext) -> APIRouter:
    routes = APIRouter(prefix="/sd_extra_networks", tags=["extra networks"])

    @routes.get("/thumb", response_class=Response, responses=answers(404))
    async def thumb(filename: str = "") -> Any:
        """A preview picture by its place, inside the library's folders alone."""
        return _file(await context.aside(allowed, context, filename))

    @routes.get("/cover-images", response_class=Response, responses=answers(404))
    async def cover(page: str = "", item: str = "", index: int = 0) -> Any:
        """The picture beside a LoRA, an embedding or a model."""
        place = await context.aside(item_path, context, page, item)
        pictures = await context.aside(covers, place)
        if not 0 <= index < len(pictures):
            raise Refused(404, f"{item[:100]!r} has no cover {index}.", f"it has {len(pictures)}.")
        return _file(await context.aside(allowed, context, str(pictures[index])))

    @routes.get("/metadata", response_model=dict[str, Any])
    async def metadata(page: str = "", item: str = "") -> Any:
        """What the file says of itself, as JSON in a string."""
        found = await context.aside(_metadata, context, page, item)
        return {"metadata": json.dumps(found, indent=4, ensure_ascii=False, default=str)} if found else {}

    @routes.get("/get-single-card", response_model=dict[str, Any], responses=answers(404))
    async def card(page: str = "", tabname: str = "", name: str = "") -> Any:
        """One card of the page, as HTML without anything of the file's own in it but its name."""
        await context.aside(item_path, context, page, name)
        shown = html.escape(name, quote=True)
        return {"html": f'<div class="card" data-name="{shown}"><span class="name">{shown}</span></div>'}

    return routes


def folders_of(context: ApiContext) -> list[Path]:
    folders = context.service.shelf.folders
    return [*folders.loras, *folders.embeddings, *folders.checkpoints]


def allowed(context: ApiContext, filename: str) -> Path:
    """The real path of a picture inside the library's folders; Refused, and the same for every other file."""
    refusal = Refused(
        404, f"There is no preview {filename[:200]!r}.", "take one from the lists of the server."
    )
    try:
        real = Path(filename).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, a NUL in it, a circle of links
        raise refusal from None
    inside = any(real.is_relative_to(folder.resolve()) for folder in folders_of(context))
    if not inside or real.suffix.lower() not in PICTURE_ENDINGS or not real.is_file():
        raise refusal
    return real


def _file(path: Path) -> FileResponse:
    return FileResponse(
        path, media_type=_TYPES[path.suffix.lower()], headers={"x-content-type-options": "nosniff"}
    )


def item_path(context: ApiContext, page: str, item: str) -> Path:
    """The file of a LoRA, an embedding or a model by its name."""
    items = {name: path for name, path, _ in items_of(context, page)}
    if item not in items:
        known = ", ".join(list(items)[:20]) or "none"
        raise Refused(404, f"There is no {item[:100]!r} on the page {page!r}.", f"there are: {known}.")
    return items[item]


def _metadata(context: ApiContext, page: str, item: str) -> dict[str, Any]:
    try:
        return next((notes for name, _, notes in items_of(context, page) if name == item), {})
    except Refused:
        return {}


def items_of(context: ApiContext, page: str) -> Iterable[tuple[str, Path, dict[str, Any]]]:
    """Name, file and notes of everything on a page."""
    page = _OLD_PAGES.get(page.strip().lower(), page.strip().lower())
    library = networks_of(context)
    if page == "checkpoints":
        return [(model.name, model.path, {}) for model in context.service.shelf.models()]
    if page not in PAGES:
        raise Refused(404, f"There is no page {page[:100]!r}.", f"there are: {', '.join(PAGES)}.")
    if page == "lora":
        return [(one.name, one.path, dict(one.metadata)) for one in library.loras()]
    return [(one.name, one.path, {}) for one in library.embeddings()]


def covers(path: Path) -> list[Path]:
    """The pictures beside a file: name.png, name.preview.png and their like."""
    stem = path.with_suffix("") if path.is_file() else path
    names = [stem.name + mark + ending for mark in ("", ".preview") for ending in PICTURE_ENDINGS]
    return [place for name in names if (place := stem.with_name(name)).is_file()]
