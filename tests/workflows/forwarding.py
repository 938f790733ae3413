"""A tunnel that stays on this machine: a TCP forwarder, so that a public address is another port."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import suppress
from typing import Any


def forwarding_route(opening: Any) -> Any:
    """A route for `TUNNELS`: it leads where any tunnel leads, and goes with it."""
    from fastsd_lib.webui.tunnels.opening import Claim

    server = _Forwarder(opening.port)
    opening.cleanup.callback(server.close)
    return Claim(f"http://127.0.0.1:{server.server_address[1]}")


def closed_port() -> int:
    """A port of this machine where nobody listens now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class _Forwarder(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, to: int) -> None:
        self.to = to
        super().__init__(("127.0.0.1", 0), _Connection)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.server.to)) as upstream:
            back = threading.Thread(target=_pump, args=(upstream, self.request), daemon=True)
            back.start()
            _pump(self.request, upstream)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
        target.shutdown(socket.SHUT_WR)
