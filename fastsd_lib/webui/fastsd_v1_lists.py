"""/fastsd/v1: what can be named in an order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_modules import MODULES
from fastsd_lib.generation.request import UPSCALER_LABELS
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES
from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.context import ApiContext

Rows = list[dict[str, Any]]


def add(routes: APIRouter, context: ApiContext) -> None:
    def listed(name: str, make: Callable[[ApiContext], Rows], about: str) -> None:
        async def answer() -> Rows:  # lists read folders
            return await context.aside(make, context)

        routes.add_api_route(
            f"/{name}", answer, methods=["GET"], response_model=Rows, summary=about, name=name
        )

    listed("models", _models, "Models; the current one is drawn with unless an order names another")
    listed("vaes", _vaes, "VAEs that can stand in for a model's own")
    listed("samplers", lambda _: _samplers(), "Samplers, with the schedule that `automatic` means")
    listed("schedules", lambda _: _schedules(), "Sigma schedules")
    listed("upscalers", _upscalers, "Ways to enlarge before a second pass")
    listed("loras", _loras, "LoRA files: <lora:name:0.8> in a prompt")
    listed("embeddings", _embeddings, "Learned words")
    listed("controlnets", _controlnets, "ControlNets")
    listed("preprocessors", lambda _: _preprocessors(), "What makes control pictures")
    listed("styles", _styles, "Named pieces of prompts")


def _models(context: ApiContext) -> Rows:
    shelf = context.service.shelf
    return [{"name": one.name, "current": one.name == shelf.current} for one in shelf.models()]


def _vaes(context: ApiContext) -> Rows:
    return [{"name": one.name} for one in context.service.shelf.vaes()]


def _samplers() -> Rows:
    return [
        {"name": name, "label": one.label, "aliases": list(one.aliases), "schedule": one.schedule}
        for name, one in SAMPLERS.items()
    ]


def _schedules() -> Rows:
    return [{"name": name, "label": one.label} for name, one in SCHEDULES.items()]


def _upscalers(context: ApiContext) -> Rows:
    from fastsd_lib.generation.upscale import upscalers

    rows: Rows = [{"name": name, "label": label, "scale": None} for name, label in UPSCALER_LABELS.items()]
    for one in upscalers(context.service.shelf.folders.upscalers).values():
        if one.path is not None:
            try:
                rows.append({"name": one.name, "label": one.name, "scale": one.scale})
            except UserError:  # a file that is no network is none to choose
                continue
    return rows


def _loras(context: ApiContext) -> Rows:
    networks = getattr(context.service.shelf.library, "networks", None)
    found = networks.loras() if networks else []
    return [{"name": one.name, "alias": one.alias, "family": one.family} for one in found]


def _embeddings(context: ApiContext) -> Rows:
    networks = getattr(context.service.shelf.library, "networks", None)
    found = networks.embeddings() if networks else []
    return [{"name": one.name, "vectors": one.count, "widths": list(one.widths)} for one in found]


def _controlnets(context: ApiContext) -> Rows:
    controlnets = getattr(context.service.shelf.library, "controlnets", None)
    found = controlnets.models() if controlnets else []
    return [{"name": one.name, "title": one.title, "family": one.family} for one in found]


def _preprocessors() -> Rows:
    return [
        {"name": one.name, "about": one.about, "types": list(one.control_types), **one.detail}
        for one in MODULES.values()
    ]


def _styles(context: ApiContext) -> Rows:
    return [vars(style) for style in known_styles(context).values()]
