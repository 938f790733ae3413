"""Cloudflare's quick tunnels: no account, a new name at each start."""

from __future__ import annotations

import re

from fastsd_lib.webui.tunnels.opening import Claim, Opening, write_private

_BOXED = re.compile(r"\|\s+(https?://\S+)\s+\|")
_AGAIN = "wait some minutes, or take the next route."
TROUBLES = (
    ("429 Too Many Requests", "Cloudflare gives this address no more quick tunnels for now (429).", _AGAIN),
    ("error code: 1015", "Cloudflare gives this address no more quick tunnels for now (1015).", _AGAIN),
    (
        "failed to request quick Tunnel",
        "Cloudflare cannot be asked for a quick tunnel.",
        "check the network to api.trycloudflare.com.",
    ),
    (
        "failed to unmarshal quick Tunnel",
        "Cloudflare's answer is not understood.",
        "get the latest cloudflared, or wait.",
    ),
    ("no such host", "Cloudflare's servers are not found.", "check the network."),
    ("flag provided but not defined", "this cloudflared is too old.", "get the latest one."),
)
UNREACHED = "a new name can take a minute to be known: try again; it needs outgoing connections to port 7844."
NOTES = (
    "Quick tunnels hold server-sent events back: the page may show its progress late. At most 200 requests at once.",
)


def open_cloudflared(opening: Opening) -> Claim:
    """Start the client without any config of the user's: with one, it makes no quick tunnels."""
    program = opening.program(
        "cloudflared",
        "get it from https://github.com/cloudflare/cloudflared/releases and put it on PATH.",
    )
    empty = write_private(opening.folder() / "config.yml", "")
    origin = f"http://127.0.0.1:{opening.port}"
    child = opening.start([program, "tunnel", "--no-autoupdate", "--config", str(empty), "--url", origin])

    def look(line: str) -> str | None:
        found = _BOXED.search(line)
        return found[1] if found else None

    url = opening.wait_for(
        child, look, TROUBLES, "check the network to api.trycloudflare.com, or take the next route."
    )
    return Claim(url, NOTES, child, unreached=UNREACHED)
