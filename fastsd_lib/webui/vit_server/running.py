"""A ViT server from its start to its end."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from fastsd_lib.core.errors import require
from fastsd_lib.core.paths import expanded
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.model import EMBEDDED, VitModel, open_model
from fastsd_lib.vit.model_files import EXPORT
from fastsd_lib.webui.asked import Limits
from fastsd_lib.webui.door import open_door
from fastsd_lib.webui.server import Server, serve_app
from fastsd_lib.webui.vit_server.config import ServeConfig


class Running:
    """A server that answers: `url` on this machine; `server` is what a tunnel leads to. `close()` ends it."""

    def __init__(self, server: Server, service: object, announcement: list[str]) -> None:
        self.server, self.service, self.announcement = server, service, announcement
        self.url = server.url
        self._closed = threading.Lock()

    def wait(self, ending: threading.Event | None = None) -> None:
        """Stay until the server ends or `ending` is set; Ctrl-C raises as usual."""
        self.server.wait(ending)

    def wait_for_the_end(self) -> None:
        """Stay until Ctrl-C or SIGTERM, then finish what is under way and close. For the main thread of a program."""
        ending = threading.Event()
        before = {
            number: signal.signal(number, lambda *_: ending.set())
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            self.wait(ending)
            self.close()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def close(self, grace_s: float | None = None) -> None:
        """Refuse new requests with 503, give those under way `grace_s`, then free the port. A second call does nothing."""
        if not self._closed.acquire(blocking=False):
            return
        self.service.ending = True
        end = time.monotonic() + (self.service.config.grace_s if grace_s is None else grace_s)
        while self.service.under_way and time.monotonic() < end:
            time.sleep(0.02)
        self.server.close()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _opened(model: VitModel | str | Path) -> tuple[VitModel, Path | None]:
    """The model; and the export of it (model/exports/int8) when it was that which was named."""
    if isinstance(model, VitModel):
        return model, None
    folder = expanded(model)
    if (folder / EXPORT).is_file():
        return open_model(folder.resolve().parents[1]), folder
    return open_model(model), None


def serve(
    model: VitModel | str | Path = EMBEDDED,
    config: ServeConfig = ServeConfig(),  # noqa: B008  frozen
    runner_config: RunnerConfig = RunnerConfig(),  # noqa: B008  frozen
) -> Running:
    """Open the model, serve it, and return when the server answers. `announcement` is what the terminal shows once.

    UserError when the port is taken, the model cannot be opened, or what was said of the door contradicts itself.
    """
    for module in ("fastapi", "uvicorn"):
        require(module, group="vit")
    from fastsd_lib.webui.vit_server.app import vit_app
    from fastsd_lib.webui.vit_server.service import VitService

    door = open_door(
        config.host,
        config.user or None,
        config.password or None,
        config.password_file,
        config.tunnel,
        config.no_auth,
        config.anyone_may_use_this_machine,
        config.names,
    )
    model, export = _opened(model)
    service = VitService(model, config, runner_config, export)
    limits = Limits(
        body_bytes=config.body_mib << 20,
        requests_per_client=config.requests_per_client,
        any_content_type=True,  # pictures come as they are; the routes look at the type themselves
        body_s=config.body_s,
        silence_s=config.silence_s,
        answer_s=config.timeout_s + 30,  # the routes answer before that
    )
    try:
        server = serve_app(
            vit_app(service), door, config.port, limits=limits, closing=service.close, sockets=False
        )
    except BaseException:
        service.close()
        raise
    return Running(server, service, door.announcement())
