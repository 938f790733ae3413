"""The page in the browser, and the server behind it."""

from __future__ import annotations

import html
import ipaddress
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.generation.engine import Engine, load_engine
from fastsd_lib.generation.infotext import infotext, read_record, save_picture
from fastsd_lib.generation.request import MAX_SEED, GenerationRequest

# Gradio reads this when it is imported, and calls home otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from fastsd_lib.webui.drawing import Progress, Studio, state
from fastsd_lib.webui.look import CSS, theme
from fastsd_lib.webui.page import READY, lay_out


@dataclass
class Server:
    """A running page; `close()` frees the port."""

    url: str
    _blocks: gr.Blocks
    _scratch: Path | None  # pictures of this run, when nobody named a folder for them

    def close(self) -> None:
        self._blocks.close(verbose=False)
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


def build_app(engine: Engine, pictures_dir: Path) -> gr.Blocks:
    """The page for one loaded model; pictures are saved in `pictures_dir`, their record inside."""
    studio, parts = Studio(engine), engine.parts

    def generate(  # its arguments are the names in the HTTP API; `request` is found by its type
        prompt: str, negative_prompt: str, steps: int, guidance_scale: float, sampler: str,
        count: int, seed: int, width: int, height: int, request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        order = GenerationRequest(
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
        yield from _draw(studio, order, request.session_hash or "", pictures_dir)

    def stop(request: gr.Request) -> None:
        studio.stop(request.session_hash or "")

    with gr.Blocks(title="fastsd", analytics_enabled=False, fill_width=True) as blocks:
        page = lay_out(parts.name, parts.side_px, parts.vae_factor, parts.defaults)
        inputs = [page.prompt, page.negative, page.steps, page.guidance, page.sampler, page.count, page.seed]
        ordered = gr.on(
            [page.go.click, page.prompt.submit],
            generate,
            [*inputs, page.width, page.height],
            [page.gallery, page.progress, page.record, page.go, page.stop],
            api_name="generate",
            concurrency_limit=16,  # orders wait inside, where they can say so and be stopped
            show_progress="hidden",
        )
        quiet = {"api_visibility": "private", "show_progress": "hidden"}
        ordered.failure(_ready, None, [page.progress, page.go, page.stop], **quiet)
        page.stop.click(stop, queue=False, **quiet)
        page.dice.click(lambda: random.randint(0, MAX_SEED), None, page.seed, queue=False, **quiet)
        page.gallery.select(_record_of, page.gallery, page.record, **quiet)
    return blocks


def start(
    engine: Engine,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    user: str | None = None,
    password: str | None = None,
    pictures_dir: Path | None = None,
) -> Server:
    """Serve the page and return at once. `port` None takes any free one; without `pictures_dir` the pictures
    are gone when the server closes.

    Only this machine can reach it by default; another `host` needs `user` and `password`. Nothing is shared
    through anybody's relay. UserError when the port is taken.
    """
    check_door(host, user, password)
    scratch = None if pictures_dir else Path(tempfile.mkdtemp(prefix="fastsd-"))
    folder = pictures_dir or scratch
    page = build_app(engine, folder)
    try:
        _, url, _ = page.queue(max_size=64).launch(
            server_name=host,
            server_port=port,
            auth=(user, password) if user and password else None,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            allowed_paths=[str(folder)],
            theme=theme(),
            css=CSS,
        )
    except OSError:
        raise UserError(f"Port {port} on {host} is taken.", fix="take another one: --port 7861") from None
    return Server(url, page, scratch)


def serve(
    model: ModelFiles,
    host: str = "127.0.0.1",
    port: int | None = 7860,
    user: str | None = None,
    password: str | None = None,
    pictures_dir: Path | None = None,
    device: str = "auto",
) -> None:
    """Load the model, serve the page, and stay until Ctrl-C."""
    check_door(host, user, password)  # before the model takes its seconds
    server = start(load_engine(model, device), host, port, user, password, pictures_dir)
    print(f"The web UI is at {server.url}   (Ctrl-C ends it)", flush=True)
    try:
        server._blocks.block_thread()
    finally:
        server.close()


def check_door(host: str, user: str | None, password: str | None) -> None:
    """Who reaches the page uses the machine's GPU and disk: the open network gets in by password only."""
    if bool(user) != bool(password):
        raise UserError(
            "A user needs a password, and a password a user.", fix="give both: --user me --password ..."
        )
    if not _is_loopback(host) and not user:
        raise UserError(
            f"{host} can be reached from other machines, and the page would have no password.",
            fix="add --user me --password ..., or stay on --host 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _draw(studio: Studio, order: GenerationRequest, session: str, folder: Path) -> Iterator[tuple[Any, ...]]:
    """One order of the page: yields (pictures, state, record, Generate, Stop) as it goes."""
    progress = Progress()
    busy = _buttons(drawing=True)
    yield gr.skip(), state("Waiting for the engine", share=0), gr.skip(), *busy
    try:
        for news in studio.draw(order, session):
            if isinstance(news, list):
                paths = [str(save_picture(picture, _new_file(folder, picture.seed))) for picture in news]
                text = _described(news[0].record) if news else gr.skip()
                yield paths or gr.skip(), progress.finished(len(news)), text, *_buttons(drawing=False)
            else:
                yield gr.skip(), progress.html(news), gr.skip(), *busy
    except UserError as error:
        text = html.escape(f"{error.message}\n{error.fix}", quote=False)
        raise gr.Error(text, print_exception=False) from None


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
