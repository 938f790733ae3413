"""`fastsd webui`: the web UI and its API, from the command line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from fastsd_lib.cli_words import add_root, command
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded


def add_webui(known: Any) -> None:
    parser = command(known, "webui", _webui, "the web UI and its HTTP API", as_json=False)
    parser.add_argument("--model", default="embedded", metavar="M")
    parser.add_argument("--no-ui", "--nowebui", action="store_true", help="the HTTP API alone")
    parser.add_argument(
        "--library", type=Path, metavar="DIR", help="a folder with models/Stable-diffusion, models/Lora ..."
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="pictures, history and settings (usual: ~/fastsd/webui)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--dtype", default="auto", help="auto, fp16, bf16, fp32")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--model-memory-mib", type=int, metavar="N", help="for models that stay loaded")
    parser.add_argument("--most-waiting", type=int, metavar="N", help="orders in the queue")
    add_root(parser)
    _add_door(parser)
    _add_tunnel(parser)
    _add_backend(parser)
    risky = parser.add_argument_group("closed unless you open it")
    risky.add_argument(
        "--fetch-urls", action="store_true", help="the API may fetch pictures from https addresses"
    )
    risky.add_argument("--api-server-stop", action="store_true", help="the API may end the server")


def _add_door(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("who gets in").add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=7860)
    add("--user", metavar="U")
    add(
        "--password",
        metavar="P",
        help="seen by all users of this machine while it starts; better: FASTSD_PASSWORD or --password-file",
    )
    add("--password-file", type=Path, metavar="FILE", help="lines user:password, or with --user the password")
    add("--no-auth", action="store_true", help="ask nobody for a password")
    add("--anyone-may-use-this-machine", action="store_true", help="with --no-auth: although others reach it")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name it may be called by")


def _add_tunnel(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("for people elsewhere (docs/tunnels.md)").add_argument
    add(
        "--tunnel",
        action="append",
        default=[],
        metavar="NAME",
        help="ngrok, gradio, localtunnel, cloudflared, ssh, colab; several are tried in this order; auto: what suits",
    )
    add("--subdomain", default="", metavar="NAME", help="localtunnel: the name to ask for")
    add("--localtunnel-server", default="https://localtunnel.me", metavar="URL", help="one of your own")
    add("--ngrok-token-file", type=Path, metavar="FILE", help="usual: NGROK_AUTHTOKEN in the environment")
    add("--ngrok-domain", default="", metavar="NAME", help="of your account")
    add("--ssh-host", default="", metavar="USER@HOST:PORT")
    add("--ssh-key", type=Path, metavar="FILE")
    add("--ssh-known-hosts", type=Path, metavar="FILE", help="usual: ~/.ssh/known_hosts")
    add("--ssh-remote-port", type=int, metavar="N", help="at the host; usual: any free one")
    add(
        "--ssh-remote-bind",
        default="*",
        metavar="ADDRESS",
        help="127.0.0.1 where the host's own server leads on",
    )
    add("--ssh-public-url", default="", metavar="URL", help="where it leads from")
    add("--ssh-accept-new", action="store_true", help="trust a host that was never seen before")
    add(
        "--i-have-paid-compute-units",
        action="store_true",
        help="on Colab: free runtimes disallow web UIs",
    )


def _add_backend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("another web UI behind the same door").add_argument
    add("--backend", default="builtin", metavar="NAME", help="builtin, a1111, forge, comfyui")
    add("--ref", default="", help="its tag, branch or commit (usual: the pinned one)")
    add("--update", action="store_true", help="fetch the ref anew")
    add("--backend-folder", type=Path, metavar="DIR", help="code and environment, on the local disk")
    add(
        "--controlnet",
        default="none",
        metavar="LIST",
        help="ControlNets to fetch: none, canny, depth, openpose ..., all",
    )


def _webui(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.webui.door import open_door
    from fastsd_lib.workflows import webui

    if options.password:
        webui.hide_password(options.password)
    from_surroundings = os.environ.pop("FASTSD_PASSWORD", None)  # what we start need not know it
    ending = on_termination()
    config = webui.WebuiConfig(
        options.model,
        ui=not options.no_ui,
        library=options.library,
        folder=options.folder,
        root=options.root,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        budget_mib=options.model_memory_mib,
        most_waiting=options.most_waiting,
        fetch_urls=options.fetch_urls,
        server_stop=options.api_server_stop,
    )
    door = open_door(  # before the model takes its seconds
        options.host,
        options.user,
        options.password or (None if options.password_file else from_surroundings),
        options.password_file,
        tunnel=bool(options.tunnel),
        no_auth=options.no_auth,
        open_to_all=options.anyone_may_use_this_machine,
        names=options.allow_host,
    )
    if options.tunnel or options.backend != "builtin":
        return _launch(options, config, door, ending)
    webui.serve(config, door, options.port, ending)
    return 0


def on_termination() -> threading.Event:
    """Let SIGTERM end the program as Ctrl-C does, so that nothing stays behind."""
    ending = threading.Event()

    def end(*_: Any) -> None:
        ending.set()  # heard later where Python swallows what is raised, as in a finalizer
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    return ending


def _launch(options: argparse.Namespace, config: Any, door: Any, ending: threading.Event) -> int:
    """With a public address, or with another program behind the door."""
    from fastsd_lib.webui.tunnels.config import Tunnel
    from fastsd_lib.workflows.webui_launch import LaunchConfig, launch

    def show_code(tunnel: Tunnel) -> None:
        from fastsd_lib.webui.tunnels.qr import qr_text

        if sys.stdout.isatty():
            print(qr_text(tunnel.url), flush=True)

    asked = LaunchConfig(
        str(options.model),
        library_folder=str(options.library or ""),
        backend=options.backend,
        ref=options.ref,
        controlnet=options.controlnet,
        tunnels=",".join(options.tunnel) or "none",
        port=options.port,
        i_have_paid_compute_units=options.i_have_paid_compute_units,
    )
    launched = launch(
        asked,
        serve=config,
        door=door,
        tunnel_config=_tunnels(options, asked),
        backend_config=_backend(options),
        root=options.root,
        on_url=show_code,
        stopping=ending,
    )
    try:
        print(f"On this machine: {launched.url}   (Ctrl-C ends it)", flush=True)
        launched.wait(ending)
    finally:
        launched.stop()
    return 0


def _tunnels(options: argparse.Namespace, asked: Any) -> Any:
    from fastsd_lib.environment import tokens
    from fastsd_lib.webui.tunnels.config import TunnelConfig
    from fastsd_lib.workflows.webui_launch import NGROK_SECRETS, tunnel_order

    order = tunnel_order(asked)
    if options.tunnel and not order:
        raise UserError("--tunnel auto finds no route for this machine.", fix="name one: --tunnel gradio")
    if not order:
        return None
    return TunnelConfig(
        order,
        subdomain=options.subdomain,
        localtunnel_server=options.localtunnel_server,
        ngrok_token=None if options.ngrok_token_file else lambda: tokens.secret(*NGROK_SECRETS) or "",
        ngrok_token_file=options.ngrok_token_file,
        ngrok_domain=options.ngrok_domain,
        ssh_host=options.ssh_host,
        ssh_key=options.ssh_key,
        ssh_known_hosts=options.ssh_known_hosts,
        ssh_remote_port=options.ssh_remote_port,
        ssh_remote_bind=options.ssh_remote_bind,
        ssh_public_url=options.ssh_public_url,
        ssh_accept_new=options.ssh_accept_new,
    )


def _backend(options: argparse.Namespace) -> Any:
    if options.backend == "builtin":
        return None
    from dataclasses import replace

    from fastsd_lib.environment.hosts import default_root
    from fastsd_lib.workflows import webui_backend

    root = expanded(options.root or default_root())
    usual = webui_backend.usual(options.backend, expanded(options.library or root), root)
    return replace(usual, folder=options.backend_folder or usual.folder, update=options.update)
