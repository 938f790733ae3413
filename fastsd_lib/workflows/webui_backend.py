"""AUTOMATIC1111, Forge or ComfyUI on this machine: its place, its models, and a start that can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.environment import drive

if TYPE_CHECKING:
    from fastsd_lib.webui.backends.config import Backend, BackendConfig
    from fastsd_lib.webui.backends.running import Running


def choices(
    backend: Backend,
    given: BackendConfig | None,
    model: ModelFiles | None,
    library: Path,
    root: Path,
    ref: str,
    controlnet: bool,
) -> BackendConfig:
    """The program on the local disk, its models where they are, its settings and pictures where sessions live.

    `given` says all of this itself, but for model, ref and ControlNet. UserError for a model that is no single file.
    """
    if model is not None and model.layout != "single_file":
        raise UserError(
            f"{backend.title} opens single files, and {model.path} is a folder of parts.",
            fix=f'convert it: python3 -m fastsd_lib convert "{model.path}" model.safetensors',
        )
    base = given or usual(backend.name, library, root)
    return replace(
        base, model=model.path if model else base.model, ref=ref or base.ref, controlnet=controlnet
    )


def usual(backend: str, library: Path, root: Path) -> BackendConfig:
    """What holds unless somebody says otherwise."""
    from fastsd_lib.webui.backends.config import BackendConfig

    return BackendConfig(
        folder=drive.local_disk(root) / "fastsd-backends",
        settings_dir=root / "webui" / "settings",
        models_dir=library if library.is_dir() else None,
        outputs_dir=root / "webui" / backend,
    )


def start(
    backend: Backend, config: BackendConfig, say: Callable[[str], None], stopping: threading.Event
) -> Running:
    """Ready to draw; a version that never worked here and fails gives way to the last one that did."""
    from fastsd_lib.webui.backends.checkout import prepare, rollback
    from fastsd_lib.webui.backends.running import launch

    checkout = prepare(backend, config, say)
    went_back = False
    while True:
        running = launch(checkout, say=say)
        try:
            with heeding(stopping, running.stop):
                running.wait_until_ready()
            return running
        except BaseException as error:
            running.stop()
            final = went_back or checkout.has_worked or stopping.is_set() or not isinstance(error, UserError)
            if final:
                raise
            try:
                checkout, went_back = rollback(backend, config, say), True
            except UserError:
                raise error from None
            say(error.message)


@contextmanager
def heeding(stopping: threading.Event, end: Callable[[], None]) -> Iterator[None]:
    """While the block waits for something, `end` it when `stopping` is set."""
    over = threading.Event()

    def heed() -> None:
        while not over.wait(0.2):
            if stopping.is_set():
                end()
                return

    threading.Thread(target=heed, name="heeds stop", daemon=True).start()
    try:
        yield
    finally:
        over.set()
