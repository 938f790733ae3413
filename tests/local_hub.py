"""A Hugging Face Hub on this machine: a real HTTP server that speaks its API for the folders below one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = "hf_verysecret"


@dataclass
class Hub:
    """Serves the folders below `root` as models "org/<folder>"; `answer` overrides with a status."""

    root: Path
    url: str = ""
    answer: tuple[int, str] | None = None  # status, X-Error-Code
    fetched: list[str] = field(default_factory=list)


@contextmanager
def served(root: Path) -> Iterator[Hub]:
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if hub.answer:
                return self.reply(
                    hub.answer[0], b"{}", {"X-Error-Code": hub.answer[1], "X-Error-Message": SECRET}
                )
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and (hub.root / parts[3]).is_dir():
                files = [path for path in (hub.root / parts[3]).rglob("*") if path.is_file()]
                names = [path.relative_to(hub.root / parts[3]).as_posix() for path in files]
                sizes = [{"size": path.stat().st_size} if "blobs=" in self.path else {} for path in files]
                siblings = [{"rfilename": name, **size} for name, size in zip(names, sizes, strict=True)]
                body = {"id": f"org/{parts[3]}", "sha": COMMIT, "siblings": siblings}
                if "tree" in parts:
                    body = [
                        {"type": "file", "path": name, "oid": "0", "size": path.stat().st_size}
                        for name, path in zip(names, files, strict=True)
                    ]
                return self.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
            file = hub.root.joinpath(parts[1], *parts[4:]) if parts[2:3] == ["resolve"] else hub.root / "none"
            if not file.is_file():
                return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if self.command == "GET":
                hub.fetched.append("/".join(parts[4:]))
            headers = {"ETag": f'"{len(parts)}{file.stat().st_size}"', "X-Repo-Commit": COMMIT}
            return self.reply(200, file.read_bytes(), headers)

        def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # the client was told to stop
                    self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler
