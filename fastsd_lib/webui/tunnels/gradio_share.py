"""Gradio's share links, for our own port: its client `frpc`, run by us.

Gradio's own starter can hang when the client is silent, runs a file whose checksum was wrong the time before, and needs
all of Gradio loaded. What it knows (where the client is fetched from, its checksums) is read from its source.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import re
import secrets
from pathlib import Path
from typing import Any

from fastsd_lib.core.files import atomic_path, sha256_file
from fastsd_lib.webui.tunnels.opening import Claim, Opening, write_private

SHARE_API = "https://api.gradio.app/v3/tunnel-request"
FETCHING_S = 30.0
LARGEST_BYTES = 100 * 2**20
_URL = re.compile(r"start proxy success: (https?://\S+)")
NOTES = ("Gradio's share links end after a week at most.",)


def open_gradio(opening: Opening) -> Claim:
    """Fetch the client if it is not here, check its sum each time, ask for a server, start it."""
    program = _client(opening)
    host, port, certificate = _server(opening)
    command = [
        str(program),
        "http",
        "-n",
        secrets.token_urlsafe(32),
        "-l",
        str(opening.port),
        "-i",
        "127.0.0.1",
    ]
    command += ["--uc", "--sd", "random", "--ue", "--server_addr", f"{host}:{port}", "--disable_log_color"]
    if certificate:
        file = write_private(opening.folder() / "certificate.pem", certificate)
        command += ["--tls_enable", "--tls_trusted_ca_file", str(file)]
    child = opening.start(command)

    def look(line: str) -> str | None:
        found = _URL.search(line)
        return found[1].rstrip("/") if found else None

    fix = f"the share server {host}:{port} may be down or not be reached from here, or {program} does not run here."
    refused = (
        "login to server failed",
        f"the share server {host}:{port} refuses or cannot be reached.",
        f"check the network (outgoing port {port}), or take the next route.",
    )
    return Claim(opening.wait_for(child, look, (refused,), fix), NOTES, child)


def _client(opening: Opening) -> Path:
    """The file of the client, its checksum just verified. One of Gradio's that is wrong is removed."""
    if "frpc" in opening.config.programs:
        own = Path(opening.program("frpc", "check its path."))
        if sha256_file(own) != opening.config.frpc_sha256.lower():
            raise opening.failed(
                f"{own} has not the checksum that was given (frpc_sha256).", "look at what it is."
            )
        return own
    known = _gradio_knows(opening)
    name = f"frpc_{platform.system().lower()}_{_machine()}"
    extension = ".exe" if platform.system() == "Windows" else ""
    url = f"https://cdn-media.huggingface.co/frpc-gradio-{known['VERSION']}/{name}{extension}"
    wanted = known["CHECKSUMS"].get(url)
    if not wanted:
        raise opening.failed(f"Gradio has no client for this machine ({name}).", "take the next route.")
    path = _folder() / f"{name}_v{known['VERSION']}"
    by_hand = f"fetch {url} elsewhere and put it there, or take the next route."
    if not path.exists():
        _fetch(opening, url, path, wanted, by_hand)
    if sha256_file(path) != wanted:
        path.unlink()
        raise opening.failed(f"{path} had the wrong checksum and was removed.", by_hand)
    path.chmod(path.stat().st_mode | 0o100)
    return path


def _fetch(opening: Opening, url: str, path: Path, wanted: str, by_hand: str) -> None:
    import httpx

    def load() -> bytes:
        with httpx.stream("GET", url, timeout=10.0, follow_redirects=True) as answer:
            answer.raise_for_status()
            body = bytearray()
            for piece in answer.iter_bytes():
                body += piece
                if len(body) > LARGEST_BYTES:
                    raise ValueError("it is too large")
            return bytes(body)

    try:
        body = opening.within(FETCHING_S, load, f"fetching {path.name}", by_hand)
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise opening.failed(
            f"its client {path} is not here and cannot be fetched: {error}.", by_hand
        ) from None
    if hashlib.sha256(body).hexdigest() != wanted:
        raise opening.failed(
            f"what {url} sends has the wrong checksum; nothing was kept.", "take the next route."
        )
    try:
        with atomic_path(path) as scratch:
            scratch.write_bytes(body)
    except OSError as error:
        raise opening.failed(
            f"{path} cannot be written: {error.strerror}.", "make room, or mend its folder."
        ) from None


def _server(opening: Opening) -> tuple[str, int, str]:
    """(host, port, certificate) of the share server; its certificate is empty for one of your own."""
    import httpx

    own = opening.config.gradio_server
    try:
        if own:
            host, _, port = own.rpartition(":")
            return host, int(port), ""
        fix = "check the network, or take the next route."
        answer = opening.within(15.0, lambda: httpx.get(SHARE_API, timeout=10.0), f"asking {SHARE_API}", fix)
        told = answer.json()[0]
        return str(told["host"]), int(told["port"]), str(told["root_ca"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        what = f"{own!r} is no host:port." if own else f"{SHARE_API} names no server: {error}."
        raise opening.failed(what, "check the network, or take the next route.") from None


def _gradio_knows(opening: Opening) -> dict[str, Any]:
    """VERSION and CHECKSUMS of gradio/tunneling.py, without importing Gradio."""
    spec = importlib.util.find_spec("gradio")
    known: dict[str, Any] = {}
    if spec and spec.origin:
        file = Path(spec.origin).with_name("tunneling.py")
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.exists() else ast.Module([], [])
        for node in tree.body:
            name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else ""
            if name in ("VERSION", "CHECKSUMS"):
                known[name] = ast.literal_eval(node.value)
    if len(known) < 2:
        raise opening.failed(
            "Gradio is not installed here, or one without checksums.", "python3 -m fastsd_lib install webui"
        )
    return known


def _folder() -> Path:
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "gradio" / "frpc"  # where Gradio looks too


def _machine() -> str:
    machine = platform.machine().lower()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
