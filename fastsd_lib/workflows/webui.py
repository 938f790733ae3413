"""The web UI and its API on a model of any kind."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.paths import expanded
from fastsd_lib.environment import tokens
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.models import registry
from fastsd_lib.workflows.drawing import library_folders

if TYPE_CHECKING:
    from fastsd_lib.webui.door import Door
    from fastsd_lib.webui.server import Server


@dataclass(frozen=True)
class WebuiConfig:
    """What is served, and how. Who gets in is said to `serve`: a password is no setting."""

    model: str | Path = registry.EMBEDDED
    ui: bool = True  # False: the HTTP API alone, which starts sooner
    library: Path | None = None  # models/Stable-diffusion, models/Lora, embeddings ... lie below it
    folder: Path | None = None  # pictures, history and settings; None = webui/ where sessions live
    root: Path | None = None  # where sessions live, for the Train tab; None = the usual place
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    budget_mib: int | None = (
        None  # memory for models that are kept loaded; None = what the machine has to spare
    )
    most_waiting: int | None = None  # orders in the queue; None = the usual bound
    fetch_urls: bool = False  # let the API fetch pictures from https addresses
    server_stop: bool = False  # let the API end the server

    @property
    def data_folder(self) -> Path:
        return expanded(self.folder or default_root() / "webui")


def serve(
    config: WebuiConfig = WebuiConfig(),
    door: Door | None = None,
    port: int = 7860,
    ending: threading.Event | None = None,
) -> None:
    """Serve on this machine, or to whom `door` opens, until Ctrl-C or until `ending` is set."""
    server = start(config, door, port)
    what = "The web UI is at" if config.ui else "The API is at"
    print(f"{what} {server.url}   (its description: {server.url}docs; Ctrl-C ends it)", flush=True)
    for line in door.announcement() if door else []:
        print(line, flush=True)
    try:
        server.wait(ending)
    finally:
        server.close()


def start(config: WebuiConfig, door: Door | None = None, port: int | None = 7860) -> Server:
    """Serve and return when it answers; `port` None takes any free one. UserError for what cannot be served."""
    folders = library_folders(config.library)
    model = registry.base_model(config.model, token=lambda: tokens.hub_token(None))
    for package in ("fastapi", "diffusers", *(["gradio"] if config.ui else [])):
        require(package, group="webui")
    folder = config.data_folder
    try:
        (folder / "outputs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made: {error.strerror}.", fix="name another one with --folder DIR."
        ) from None
    from fastsd_lib.generation.history import History
    from fastsd_lib.generation.jobs import QueueLimits
    from fastsd_lib.generation.resources import Library
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf
    from fastsd_lib.webui.api import api_app
    from fastsd_lib.webui.context import ApiFlags
    from fastsd_lib.webui.door import LOOPBACK
    from fastsd_lib.webui.options import Options
    from fastsd_lib.webui.server import serve_app
    from fastsd_lib.workflows.trainings import SessionTrainings

    settings = Options(folder / "options.json")  # a damaged file is said before the model takes its seconds
    history = History(folder / "history.sqlite")
    shelf = Shelf(
        Library.of(folders),
        model,
        config.device,
        config.dtype,
        config.budget_mib,
        config.threads,
        hashes=folder / "hashes.json",
    )
    shelf.engine()  # the first order shall not wait for it
    limits = QueueLimits(most_waiting=config.most_waiting) if config.most_waiting else QueueLimits()
    service = Service(shelf, history, limits)

    trainings = SessionTrainings(service, config.root) if config.ui else None

    def close() -> None:
        if trainings is not None:
            trainings.close()
        service.close()
        history.close()

    try:
        page = None
        if config.ui:
            from fastsd_lib.webui.app import build_page  # gradio loads here

            page = partial(build_page, trainings=trainings)
        flags = ApiFlags(fetch_urls=config.fetch_urls, server_stop=config.server_stop)
        app = api_app(service, settings=settings, pictures_dir=folder / "outputs", page=page, flags=flags)
        return serve_app(app, door or LOOPBACK, port, closing=close, stopping=app.state.context.stopping)
    except BaseException:
        close()
        raise


def hide_password(password: str) -> None:
    """Take a password that was typed as an argument out of the list of running programs, where that can be done."""
    from fastsd_lib.webui.door import hide_from_listings

    hide_from_listings(password)
