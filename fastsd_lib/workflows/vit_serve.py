"""A ViT as a server: on this machine, or with a password and a public address for others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.environment import hosts, tokens
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.webui.vit_server.config import ServeConfig
from fastsd_lib.workflows import vit, webui_launch
from fastsd_lib.workflows.webui_launch import LaunchConfig, Launched, Say

if TYPE_CHECKING:
    from fastsd_lib.webui.tunnels.config import Tunnel, TunnelConfig


@dataclass(frozen=True)
class VitServeConfig:
    """What a ViT is served with, for a notebook or `fastsd vit serve --tunnel`."""

    model: str | Path = "embedded"
    tunnels: str = (
        "none"  # none, auto, or routes in order: "ngrok, gradio, localtunnel, cloudflared, ssh, colab"
    )
    ssh_host: str = ""  # for ssh: user@host:port
    user: str = "fastsd"
    password: str = field(
        default="", repr=False
    )  # "" = the secret FASTSD_PASSWORD, else one is made where it is needed
    port: int = 8080  # 0 = any free one
    top_k: int = 5
    i_have_paid_compute_units: bool = False  # on Colab: said by whoever runs the notebook


def launch(
    config: VitServeConfig | None = None,
    *,
    serve_config: ServeConfig | None = None,
    runner: RunnerConfig | None = None,
    tunnel_config: TunnelConfig | None = None,
    root: Path | None = None,
    say: Say = print,
    show_once: Say | None = None,
    on_url: Callable[[Tunnel], None] = lambda tunnel: None,
    stopping: threading.Event | None = None,
) -> Launched:
    """Serve, and open a public address if one is asked for; with it there is always a password.

    The arguments are those of `webui_launch.launch`: `say` hears each line to read, `show_once` the password that was
    made. UserError for what does not work, and then nothing is left running.
    """
    config = config or VitServeConfig()
    asked = LaunchConfig(
        str(config.model),
        tunnels=config.tunnels,
        ssh_host=config.ssh_host,
    )
    order = webui_launch.tunnel_order(asked, tunnel_config)
    if order and hosts.which() == "colab" and not config.i_have_paid_compute_units:
        raise UserError(
            webui_launch.COLAB_NOTICE,
            fix="if you have paid compute units, tick i_have_paid_compute_units; if not, leave tunnels at none.",
        )
    if config.tunnels.strip() not in ("", "none") and not order:
        raise UserError(
            "`auto` finds no public address for this machine.", fix="name a route, such as gradio."
        )
    for package in ("httpx", "segno") if order else ():
        require(package, group="webui")  # what public addresses need is not part of the vit packages
    tunnels = webui_launch.chosen_tunnels(asked, order, tunnel_config)
    choices = replace(
        serve_config or ServeConfig(),
        port=config.port or None,
        user=config.user.strip(),
        password=config.password or tokens.secret(webui_launch.PASSWORD_SECRET) or "",
        tunnel=bool(order),
        top_k=config.top_k,
    )
    running = vit.serve(config.model, choices, runner)
    with ExitStack() as opened:
        opened.callback(running.close)
        launched = Launched(running.server, ExitStack())
        for line in running.announcement:
            (show_once or say)(line)
        if tunnels is not None:
            webui_launch.open_tunnels(launched, tunnels, opened, say, on_url, stopping or threading.Event())
        launched.end_with(opened.pop_all())
    return launched
