"""The routes by name, and how one is opened: never believed before the nonce came back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from fastsd_lib.webui.tunnels.child import Child
from fastsd_lib.webui.tunnels.cloudflared import open_cloudflared
from fastsd_lib.webui.tunnels.colab import open_colab
from fastsd_lib.webui.tunnels.config import Origin, Tunnel, TunnelConfig
from fastsd_lib.webui.tunnels.gradio_share import open_gradio
from fastsd_lib.webui.tunnels.localtunnel import open_localtunnel
from fastsd_lib.webui.tunnels.ngrok import open_ngrok
from fastsd_lib.webui.tunnels.opening import LIMIT_S, Claim, Opening
from fastsd_lib.webui.tunnels.probe import ONE_TRY_S, answers_here, ask_once, came_back
from fastsd_lib.webui.tunnels.ssh import open_ssh

TUNNELS: dict[str, Callable[[Opening], Claim]] = {
    "colab": open_colab,
    "ngrok": open_ngrok,
    "gradio": open_gradio,
    "cloudflared": open_cloudflared,
    "localtunnel": open_localtunnel,
    "ssh": open_ssh,
}


@dataclass
class OpenTunnel:
    """A tunnel that was up at least once; `close()` leaves nothing of it."""

    tunnel: Tunnel
    child: Child | None
    cleanup: ExitStack = field(repr=False, default_factory=ExitStack)

    def close(self) -> None:
        self.cleanup.close()


def open_tunnel(
    name: str,
    origin: Origin,
    config: TunnelConfig,
    limit_s: float = LIMIT_S,
    before: str = "",
    stop: threading.Event | None = None,
    on_end: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = print,
) -> OpenTunnel:
    """Open one route and return when the nonce came back through it; UserError within `limit_s` (and 5 s) if not.

    `before`: the address that it had, to be asked for again. `stop`: give up when it is set. `on_end`: called in
    another thread when the client ends.
    """
    stop = stop or threading.Event()
    opening = Opening(name, origin.port, config, on_end, before, limit_s, stop)
    try:
        if trouble := answers_here(origin):
            raise opening.failed(
                f"the web server at 127.0.0.1:{origin.port} does not answer ({trouble}).",
                "start the web server first.",
            )
        for line in origin.ask_for_password():  # before anybody can come in
            say(line)
        claim = TUNNELS[name](opening)
        origin.add_tunnel(claim.url)
        opening.cleanup.callback(origin.remove_tunnel, claim.url)

        def ask(nonce: str) -> str:
            if claim.ask is None:
                return ask_once(claim.url, nonce, max(1.0, min(ONE_TRY_S, opening.left_s)))
            trouble = claim.ask(nonce)
            arrived = origin.guard.was_asked_for(nonce)
            return trouble or ("" if arrived else "the request did not arrive here")

        ended = claim.child.ended if claim.child else threading.Event()
        trouble = came_back(origin, ask, opening.until, lambda: stop.is_set() or ended.is_set())
        if trouble:
            opening.raise_if(claim.troubles, [trouble], claim.child)
            trouble = "its program ended" if ended.is_set() else trouble
            raise opening.failed(f"{claim.url} does not lead here: {trouble}.", claim.unreached, claim.child)
    except BaseException:
        opening.cleanup.close()
        raise
    pid = claim.child.pid if claim.child else None
    return OpenTunnel(Tunnel(claim.url, name, claim.notes, pid), claim.child, opening.cleanup)
