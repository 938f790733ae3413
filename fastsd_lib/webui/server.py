"""An app on a port, behind the guard, in a thread of its own."""

from __future__ import annotations

import errno
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.access import Access
from fastsd_lib.webui.answers import OWN, Rules
from fastsd_lib.webui.asked import Limits, Names
from fastsd_lib.webui.door import USUAL_USER, Door, new_password
from fastsd_lib.webui.guard import Guard

STARTING_S = 60.0


class Server:
    """A running page; `close()` frees the port."""

    def __init__(
        self,
        guard: Guard,
        door: Door,
        running: uvicorn.Server,
        bound: socket.socket,
        scratch: Path | None,
        closing: Callable[[], None],
        stopping: threading.Event | None,
    ) -> None:
        self.guard, self._closing = guard, closing
        self._stopping = stopping or threading.Event()
        self._door, self._running, self._socket, self._scratch = door, running, bound, scratch
        self.port: int = bound.getsockname()[1]
        self._thread = threading.Thread(target=running.run, args=([bound],), name="webui", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._door.host, self._door.host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.port}/"

    def wait_until_ready(self) -> None:
        end = time.monotonic() + STARTING_S
        while not self._running.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.close()
                raise UserError("The web server did not start.", fix="the lines above say why.")
            time.sleep(0.005)

    def ask_for_password(self) -> list[str]:
        """Before a tunnel begins: make a password if there is none. What the terminal must show, once."""
        if self.guard.access.asks or self._door.open_to_all:
            return []
        password = new_password()
        self.guard.mask_too(password)
        self.guard.access = Access({USUAL_USER: password})
        return [f"User: {USUAL_USER}   Password: {password}   (made for this start; shown only here)"]

    def add_tunnel(self, url: str) -> list[str]:
        """Let requests in by the name of a tunnel. What the terminal must show once: a password, if there was none."""
        lines = self.ask_for_password()
        self.guard.names.add_tunnel(url)
        return lines

    def remove_tunnel(self, url: str) -> None:
        """Refuse the name of a tunnel that is gone: its next owner may be anybody. The password stays."""
        self.guard.names.remove_tunnel(url)

    def wait(self, ending: threading.Event | None = None) -> None:
        """Stay until the server ends, somebody who may ends it, `ending` is set, or Ctrl-C."""
        while self._thread.is_alive() and not self._stopping.wait(timeout=0.5):
            if ending is not None and ending.is_set():
                break

    def close(self) -> None:
        self._running.should_exit = True
        self._thread.join(timeout=10)
        self._running.force_exit = True
        self._socket.close()
        self.guard.close()
        self._closing()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


def serve_app(
    app: Any,
    door: Door,
    port: int | None = 7860,
    scratch: Path | None = None,
    limits: Limits | None = None,
    closing: Callable[[], None] = lambda: None,
    stopping: threading.Event | None = None,
    rules: Rules = OWN,
    sockets: bool = True,
) -> Server:
    """Serve any ASGI app behind the guard and return when it answers. UserError when the port is taken.

    When the server closes, `closing` is called and `scratch` removed. `stopping`: `Server.wait` ends when it is set.
    `limits` and `rules` are those of our own app; a program that is not ours has its own (`reverse_proxy`).
    `sockets`: whether it has websockets, for which a package of that name must be there.
    """
    limits = limits or Limits()
    guard = Guard(
        app, Access(door.users), Names(door.host, door.names), limits, door.users.values(), rules=rules
    )
    config = uvicorn.Config(
        guard,
        http="h11",  # the parser that bounds headers
        h11_max_incomplete_event_size=64 * 1024,
        ws="websockets-sansio" if sockets else "none",
        ws_max_size=limits.message_bytes,
        proxy_headers=False,  # else a header decides who the client is
        server_header=False,
        access_log=False,  # addresses may hold secrets
        log_level="warning",
        limit_concurrency=1024,
        timeout_graceful_shutdown=2,
    )
    bound = _bind(door.host.strip("[]"), port)
    server = Server(guard, door, uvicorn.Server(config), bound, scratch, closing, stopping)
    server.wait_until_ready()
    return server


def _bind(host: str, port: int | None) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise UserError(f"There is no address {host!r} here.", fix="try --host 127.0.0.1") from None
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
    except OSError as error:
        bound.close()
        raise UserError(
            f"Port {port} on {host} is taken."
            if error.errno == errno.EADDRINUSE
            else f"{host} port {port}: {error.strerror}.",
            fix="take another one: --port 7861",
        ) from None
    bound.setblocking(False)
    return bound
