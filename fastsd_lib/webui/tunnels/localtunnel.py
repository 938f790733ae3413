"""localtunnel: the npm client `lt`, and its servers at localtunnel.me or wherever one runs."""

from __future__ import annotations

import ipaddress
import re
import secrets
import shutil
from urllib.parse import urlsplit

from fastsd_lib.webui.tunnels.child import Child
from fastsd_lib.webui.tunnels.opening import Claim, Opening

VERSION = "2.0.2"
STARTING_S = 15.0  # the client tries for ever and says nothing
FETCHING_S = 40.0  # where npx has to fetch it first
AGAIN_S = 1.5  # a server keeps the name of a client that is gone for a second
_URL = re.compile(r"your url is: (https?://\S+)")
TROUBLES = (
    (
        "check your firewall",
        "the way from here to its server's ports is closed.",
        "it needs outgoing connections to high ports: take a route over https, such as cloudflared.",
    ),
    ("E404", "npm does not find the client.", f"install it: npm install -g localtunnel@{VERSION}"),
    (
        "npm error",
        "npm cannot fetch the client.",
        f"check the network, or install it before: npm install -g localtunnel@{VERSION}",
    ),
)


def open_localtunnel(opening: Opening) -> Claim:
    """Ask the server for a name; after a restart for the one it gave before."""
    server = opening.config.localtunnel_server.rstrip("/")
    command, limit_s = _client(opening)
    wanted = opening.config.subdomain or _name_in(opening.before) or f"fastsd-{secrets.token_hex(5)}"
    command += ["--host", server, "--port", str(opening.port), "--subdomain", wanted]
    child, url = _ask(opening, command, server, limit_s)
    if _name_in(url) != wanted and _name_in(opening.before) == wanted:
        child.stop()
        opening.stop.wait(AGAIN_S)
        child, url = _ask(opening, command, server, limit_s)
    notes = []
    if opening.config.subdomain and _name_in(url) != opening.config.subdomain:
        notes.append(
            f"The name {opening.config.subdomain!r} was not free: {server} gave {_name_in(url)!r} instead."
        )
    notes += _password_page(opening, url)
    return Claim(
        url, tuple(notes), child, unreached=f"{server} may be overloaded: try again, or take the next route."
    )


def _client(opening: Opening) -> tuple[list[str], float]:
    if "lt" in opening.config.programs or shutil.which("lt"):
        return [opening.program("lt", f"install it: npm install -g localtunnel@{VERSION}")], STARTING_S
    npx = opening.program("npx", f"install Node.js (nodejs.org), then: npm install -g localtunnel@{VERSION}")
    return [npx, "--yes", f"--package=localtunnel@{VERSION}", "--", "lt"], FETCHING_S


def _ask(opening: Opening, command: list[str], server: str, limit_s: float) -> tuple[Child, str]:
    child = opening.start(command)

    def look(line: str) -> str | None:
        found = _URL.search(line)
        return found[1].rstrip("/") if found else None

    fix = f"{server} may be down or not be reached from here (its client says nothing then): take the next route."
    return child, opening.wait_for(child, look, TROUBLES, fix, limit_s)


def _name_in(url: str) -> str:
    return (urlsplit(url).hostname or "").partition(".")[0]


def _password_page(opening: Opening, url: str) -> list[str]:
    """The public servers ask each visitor for the public address of this machine; they tell it."""
    import httpx

    parts = urlsplit(url)
    parent = (parts.hostname or "").partition(".")[2]
    if not parent or parent.endswith("localhost"):
        return []
    asking = f"{parts.scheme}://{parent}/mytunnelpassword"
    try:
        answer = opening.within(4.0, lambda: httpx.get(asking, timeout=3.0), "asking for the password", "")
        password = str(ipaddress.ip_address(answer.text.strip()))
    except Exception:  # whatever it is, the tunnel itself works
        if parent not in ("loca.lt", "localtunnel.me"):
            return []
        return [
            f"Visitors are asked for a tunnel password: the public IP of this machine. Here: curl {asking}"
        ]
    return [
        f"Visitors are asked for a tunnel password first: it is {password}, the public IP of this machine."
    ]
