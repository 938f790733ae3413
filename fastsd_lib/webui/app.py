"""The page in the browser, and the server behind it."""

from __future__ import annotations

import asyncio
import html
import os
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.engine import GeneratedImage
from fastsd_lib.generation.infotext import infotext, read_record, save_picture
from fastsd_lib.generation.jobs import Order
from fastsd_lib.generation.request import MAX_SEED, GenerationRequest
from fastsd_lib.generation.service import Service

# Gradio reads this when it is imported, and calls home otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"

import gradio as gr
from fastapi import FastAPI

from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.drawing import Orders, Progress, state
from fastsd_lib.webui.look import CSS, theme
from fastsd_lib.webui.page import READY, lay_out
from fastsd_lib.webui.server import Server, serve_app


def build_app(service: Service, pictures_dir: Path) -> gr.Blocks:
    """The page for the service's current model, which is loaded now; pictures are saved in `pictures_dir`,
    their record inside. UserError when the model cannot be loaded.
    """
    orders, engine = Orders(service), service.load().result()

    async def generate(  # its arguments are the names in the HTTP API; `request` is found by its type
        prompt: str, negative_prompt: str, steps: int, guidance_scale: float, sampler: str,
        count: int, seed: int, width: int, height: int, request: gr.Request,
    ) -> AsyncIterator[tuple[Any, ...]]:  # fmt: skip
        wanted = GenerationRequest(
            prompt=prompt or "",
            negative_prompt=negative_prompt or "",
            inference_steps=int(steps),
            guidance_scale=guidance_scale,
            seed=int(seed or 0),
            count=int(count),
            width_px=int(width) if width else None,
            height_px=int(height) if height else None,
            sampler=sampler,
        )
        order = Order(wanted, owner=request.request.scope.get("fastsd.user") or "")
        async for shown in _draw(orders, order, request.session_hash or "", pictures_dir):
            yield shown

    def stop(request: gr.Request) -> None:
        orders.stop(request.session_hash or "")

    with gr.Blocks(title="fastsd", analytics_enabled=False, fill_width=True) as blocks:
        page = lay_out(engine.name, engine.side_px, engine.step_px, engine.defaults)
        inputs = [page.prompt, page.negative, page.steps, page.guidance, page.sampler, page.count, page.seed]
        ordered = gr.on(
            [page.go.click, page.prompt.submit],
            generate,
            [*inputs, page.width, page.height],
            [page.gallery, page.progress, page.record, page.go, page.stop],
            api_name="generate",
            concurrency_limit=None,  # orders wait in the service, where they can say so and be stopped
            show_progress="hidden",
        )
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        ordered.failure(_ready, None, [page.progress, page.go, page.stop], **quiet)
        page.stop.click(stop, queue=False, **quiet)
        page.dice.click(lambda: random.randint(0, MAX_SEED), None, page.seed, queue=False, **quiet)
        page.gallery.select(_record_of, page.gallery, page.record, **quiet)
        blocks.unload(stop)  # a browser that leaves is drawn for no longer
    return blocks


def start(
    service: Service, door: Door = LOOPBACK, port: int | None = 7860, pictures_dir: Path | None = None
) -> Server:
    """Serve the page alone and return at once. `port` None takes any free one; without `pictures_dir` the
    pictures are gone when the server closes.

    `door` says who gets in; nothing is shared through anybody's relay. UserError when the port is taken.
    """
    scratch = None if pictures_dir else Path(tempfile.mkdtemp(prefix="fastsd-"))
    try:
        return serve_app(
            page_app(build_app(service, pictures_dir or scratch), pictures_dir or scratch),
            door,
            port,
            scratch,
        )
    except UserError:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)
        raise


def page_app(page: gr.Blocks, folder: Path) -> FastAPI:
    """The page as one part of an app; of the disk it serves `folder` and nothing beside it."""
    app = FastAPI(title="fastsd", docs_url=None, redoc_url=None)
    return gr.mount_gradio_app(
        app,
        page.queue(max_size=64),
        path="/",
        server_name="127.0.0.1",
        allowed_paths=[str(folder)],
        blocked_paths=[str(place) for place in private_places()],
        show_error=False,
        max_file_size="32mb",
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        ssr_mode=False,
        footer_links=[],
        theme=theme(),
        css=CSS,
    )


def private_places() -> list[Path]:
    """Where programs keep settings and tokens; never served, whatever else is."""
    home = Path.home()
    return [home / name for name in (".config", ".cache/huggingface", ".ssh", ".ngrok2", ".kaggle", ".netrc")]


async def _draw(orders: Orders, order: Order, session: str, folder: Path) -> AsyncIterator[tuple[Any, ...]]:
    """One order of the page: yields (pictures, state, record, Generate, Stop) as it goes."""
    progress = Progress()
    busy = _buttons(drawing=True)
    yield gr.skip(), state("Waiting for the engine", share=0), gr.skip(), *busy
    drawing = orders.draw(order, session)
    try:
        job = None
        async for news in drawing:
            if isinstance(news, list):
                paths = await asyncio.to_thread(_saved, news, folder)
                if paths and orders.service.history is not None:
                    await asyncio.to_thread(orders.service.history.set_files, job.id, paths)
                text = _described(news[0].record) if news else gr.skip()
                shown = progress.finished(len(news), job.state == "stopped")
                yield [str(path) for path in paths] or gr.skip(), shown, text, *_buttons(drawing=False)
            else:
                job = news
                yield gr.skip(), progress.html(job), gr.skip(), *busy
    except UserError as error:
        text = html.escape(f"{error.message}\n{error.fix}", quote=False)
        raise gr.Error(text, print_exception=False) from None
    finally:
        await drawing.aclose()


def _saved(pictures: list[GeneratedImage], folder: Path) -> list[Path]:
    return [save_picture(picture, _new_file(folder, picture.seed)) for picture in pictures]


def _ready() -> tuple[Any, ...]:
    """The page after an error: the toast says what happened."""
    return state(READY), *_buttons(drawing=False)


def _buttons(drawing: bool) -> tuple[Any, Any]:
    return gr.update(interactive=not drawing), gr.update(interactive=drawing)


def _described(record: dict[str, Any]) -> str:
    return "\n".join([infotext(record), *(f"Note: {warning}" for warning in record["warnings"])])


def _record_of(pictures: list[Any], selected: gr.SelectData) -> str:
    record = read_record(Path(pictures[selected.index][0]))
    return _described(record) if record else ""


def _new_file(folder: Path, seed: int) -> Path:
    number = 1
    while (path := folder / f"seed{seed}-{number:03d}.png").exists():
        number += 1
    return path
