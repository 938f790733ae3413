"""The page in the browser, and the server behind it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError

# Gradio reads this when it is imported, and calls home otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr
from fastapi import FastAPI

from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.look import head, styles, theme
from fastsd_lib.webui.page_files import KeptFiles, PrivateFolder
from fastsd_lib.webui.page_tasks import PageTasks
from fastsd_lib.webui.tabs import (
    extras,
    history,
    img2img,
    merger,
    models,
    png_info,
    queue,
    quick_settings,
    settings,
    train,
    txt2img,
    vit,
)
from fastsd_lib.webui.tabs.desk import AT_ONCE, Desk, Usual

if TYPE_CHECKING:
    from fastsd_lib.generation.service import Service
    from fastsd_lib.webui.context import ApiContext
    from fastsd_lib.webui.server import Server

KEPT_S = 24 * 3600  # copies of pictures that browsers were shown
#: (id, label, module) in the order of the page. A module lays out its tab in `build(desk)`; what needs the other
#: tabs, it does in `connect(desk)` if it has one.
TABS: tuple[tuple[str, str, Any], ...] = (
    ("txt2img", "txt2img", txt2img),
    ("img2img", "img2img", img2img),
    ("extras", "Extras", extras),
    ("png_info", "PNG Info", png_info),
    ("vit", "ViT", vit),
    ("merger", "Checkpoint Merger", merger),
    ("train", "Train", train),
    ("models", "Models", models),
    ("settings", "Settings", settings),
    ("queue", "Queue", queue),
    ("history", "History", history),
)


def build_page(context: ApiContext, trainings: Any = None) -> gr.Blocks:
    """The page for a server; its model is loaded now. UserError when that cannot be.

    `trainings`: what the Train tab works with; None = there is no such tab.
    """
    usual = _usual(context.service)
    desk = Desk(context, PageTasks(context), trainings, usual)
    with gr.Blocks(
        title="fastsd", analytics_enabled=False, fill_width=True, delete_cache=(3600, KEPT_S)
    ) as blocks:
        quick_settings.build(desk)
        tabs = [
            (id_, label, module) for id_, label, module in TABS if id_ != "train" or trainings is not None
        ]
        with gr.Tabs(elem_id="tabs") as desk.tabs:
            for id_, label, module in tabs:
                with gr.Tab(label, id=id_, elem_id=f"tab_{id_}"):
                    module.build(desk)
        for module in (quick_settings, *(module for _, _, module in tabs)):
            if hasattr(module, "connect"):
                module.connect(desk)
        desk.connect_sendings()
        for form in desk.forms.values():
            form.wire()
        quick = list(desk.quick.values())
        blocks.load(lambda: quick_settings.shown(desk), None, quick, **AT_ONCE)
        blocks.load(None, js=f"() => {{ fastsdTheme.apply(); {list(desk.forms)}.forEach(fastsd.restore) }}")
    return blocks


def page_app(page: gr.Blocks, folder: Path | None) -> FastAPI:
    """The page as one part of an app; of the disk it serves `folder` and nothing beside it."""
    app = FastAPI(title="fastsd", docs_url=None, redoc_url=None)
    app.add_middleware(KeptFiles)
    if folder:
        app.add_middleware(PrivateFolder, folder=folder)
    return gr.mount_gradio_app(
        app,
        page.queue(max_size=64),
        path="/",
        server_name="127.0.0.1",
        allowed_paths=[str(folder)] if folder else [],
        blocked_paths=[str(place) for place in private_places()],
        show_error=False,
        max_file_size="64mb",
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        css=styles(),
        head=head(),
    )


def start(
    service: Service,
    door: Door = LOOPBACK,
    port: int | None = 7860,
    pictures_dir: Path | None = None,
    page: Callable[[ApiContext], gr.Blocks] = build_page,
) -> Server:
    """Serve the page and the API it uses, and return at once. `port` None takes any free one; without
    `pictures_dir` the pictures are gone when the server closes. UserError when the port is taken.
    """
    from fastsd_lib.webui.api import api_app
    from fastsd_lib.webui.server import serve_app

    scratch = None if pictures_dir else Path(tempfile.mkdtemp(prefix="fastsd-"))
    try:
        app = api_app(service, pictures_dir=pictures_dir or scratch, page=page)
        return serve_app(app, door, port, scratch)
    except UserError:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        raise


def private_places() -> list[Path]:
    """Where programs keep settings and tokens; never served, whatever else is."""
    home = Path.home()
    return [home / name for name in (".config", ".cache/huggingface", ".ssh", ".ngrok2", ".kaggle", ".netrc")]


def _usual(service: Service) -> Usual:
    engine = service.load().result()
    told = engine.defaults
    return Usual(
        engine.side_px,
        told.get("inference_steps", Usual.steps),
        told.get("guidance_scale", Usual.guidance_scale),
    )
