"""The web UI for people elsewhere: a model, a program that draws, a door with a password, and a public address.

launched = launch(LaunchConfig(model="embedded", tunnels="gradio"))
print(launched.public_url)
launched.stop()
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.environment import hosts, tokens
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.models import registry
from fastsd_lib.workflows import control_choice, file_links, webui_backend
from fastsd_lib.workflows.webui import WebuiConfig, start

if TYPE_CHECKING:
    from fastsd_lib.core.model_files import ModelFiles
    from fastsd_lib.webui.backends.config import BackendConfig
    from fastsd_lib.webui.door import Door
    from fastsd_lib.webui.server import Server
    from fastsd_lib.webui.tunnels.config import Tunnel, TunnelConfig

Say = Callable[[str], None]

BACKENDS = ("builtin", "a1111", "forge", "comfyui")
CHECKPOINTS = "models/Stable-diffusion"
NGROK_SECRETS = ("NGROK_AUTHTOKEN", "NGROK_TOKEN")
PASSWORD_SECRET = "FASTSD_PASSWORD"
COLAB_NOTICE = (
    "Colab's terms of service: free runtimes disallow web UIs and remote control, and a runtime that serves one may "
    "be ended without warning. With a positive balance of paid compute units they are allowed."
)


@dataclass(frozen=True)
class LaunchConfig:
    """What the web UI is opened with, for a notebook or `fastsd webui --tunnel/--backend`."""

    model: str = registry.EMBEDDED  # a name, a trained session, a path, a Hugging Face id or a link
    library_folder: str = ""  # models/Stable-diffusion, models/Lora ... below it; "" = where sessions live
    lora_links: str = ""  # LoRA files by link or path, to be put into models/Lora
    controlnet: str = "none"  # those to have for this model: none, canny, depth, openpose ..., all, t2i
    backend: str = "builtin"  # builtin, a1111, forge or comfyui
    ref: str = ""  # of a back end: a tag, branch or commit; "" = the one that is tested
    tunnels: str = (
        "auto"  # auto, none, or routes in order: "ngrok, gradio, localtunnel, cloudflared, ssh, colab"
    )
    subdomain: str = ""  # for localtunnel
    ssh_host: str = ""  # for ssh: user@host:port
    user: str = "fastsd"
    password: str = field(
        default="", repr=False
    )  # "" = the secret FASTSD_PASSWORD, else one is made and shown once
    port: int = 7860
    i_have_paid_compute_units: bool = False  # on Colab: said by whoever runs the notebook


class Launched:
    """What runs: `url` on this machine, `public_url` for others; `stop()` ends all of it, at the latest with Python."""

    def __init__(self, server: Server, ending: ExitStack) -> None:
        self.server, self.url = server, server.url
        self.public_url = ""
        self.trouble: Callable[[], str] = str  # why the program does not answer; "" while it does
        self.tunnel_status: Callable[[], str] = lambda: "Running on this machine."
        self.log_tail: Callable[[], list[str]] = list  # a back end's last lines
        self._ending, self._stopped = ending, threading.Event()
        atexit.register(self.stop)

    @property
    def running(self) -> bool:
        return not self._stopped.is_set()

    def end_with(self, ending: ExitStack) -> None:
        """What `stop` has to end besides."""
        self._ending.push(ending)

    def status(self) -> str:
        """How it goes, in a line."""
        return " ".join(part for part in (self.trouble(), self.tunnel_status()) if part)

    def wait(self, ending: threading.Event | None = None) -> None:
        """Stay until somebody ends it or `ending` is set; Ctrl-C raises as usual, and the caller stops it."""
        self.server.wait(ending)

    def stop(self) -> None:
        """End tunnel, door and program, in this order; a second call does nothing."""
        if not self._stopped.is_set():
            self._stopped.set()
            atexit.unregister(self.stop)
            self._ending.close()


def launch(
    config: LaunchConfig = LaunchConfig(),
    *,
    serve: WebuiConfig | None = None,
    door: Door | None = None,
    tunnel_config: TunnelConfig | None = None,
    backend_config: BackendConfig | None = None,
    root: Path | None = None,
    say: Say = print,
    show_once: Say | None = None,
    on_url: Callable[[Tunnel], None] = lambda tunnel: None,
    stopping: threading.Event | None = None,
) -> Launched:
    """Start what `config` asks for and return once its public address answers.

    `serve`, `door`, `tunnel_config` and `backend_config` are for callers with more choices than a form has: model,
    library and order of routes are those of `config` unless they name others. `say` hears each line that a user
    should read, `show_once` (usually `say`) the password that was made, `on_url` each new public address.
    `stopping`: give up when it is set. UserError for what does not work, and then nothing is left running.
    """
    stopping = stopping or threading.Event()
    check_terms(config)
    order = tunnel_order(config, tunnel_config)
    if config.backend not in BACKENDS:
        raise UserError(
            f"There is no back end {config.backend!r}.", fix=f"take one of {', '.join(BACKENDS)}."
        )
    root = expanded(root or default_root())
    library = expanded(config.library_folder) if config.library_folder.strip() else root
    door = door or _door(config, bool(order))
    tunnel_config = chosen_tunnels(config, order, tunnel_config)
    for file in file_links.add_to_library(
        file_links.split_links(config.lora_links), library / "models" / "Lora"
    ):
        say(f"LoRA: {file.stem}")
    control_choice.check(config.controlnet)
    model = None  # of another program: as it likes
    if config.backend == "builtin" or config.model.strip() not in ("", registry.EMBEDDED):
        model = file_links.find_model(config.model, root, library / CHECKPOINTS)
    family = model.family if model else "sd1"
    controls = library / "models" / "ControlNet"
    for file in control_choice.fetch(config.controlnet, controls, family, say, root, variant=_variant(model)):
        say(f"ControlNet: {file.stem}")
    with ExitStack() as opened:
        if model and config.backend == "builtin":
            launched = _builtin(config, model, serve, door, library, root, opened)
        else:
            launched = _foreign(config, model, backend_config, door, library, root, opened, say, stopping)
        for line in door.announcement():
            (show_once or say)(line)
        if tunnel_config is not None:
            open_tunnels(launched, tunnel_config, opened, say, on_url, stopping)
        launched.end_with(opened.pop_all())
    return launched


def _variant(model: ModelFiles | None) -> str:
    """Of SD 3, which has ControlNets for each; "" where it does not matter or cannot be told."""
    if model is None or model.family != "sd3":
        return ""
    from fastsd_lib.models.identify import describe

    return describe(model.path).kind.variant


def check_terms(config: LaunchConfig) -> None:
    """On Colab, UserError unless it was said that the runtime is paid for: what is disallowed there is not started."""
    if hosts.which() == "colab" and not config.i_have_paid_compute_units:
        raise UserError(
            COLAB_NOTICE,
            fix="if you have paid compute units, tick i_have_paid_compute_units; if not, draw with "
            "notebooks/studio.ipynb, which needs no web UI.",
        )


def tunnel_order(config: LaunchConfig, given: TunnelConfig | None = None) -> tuple[str, ...]:
    """The routes to try, from left to right; () for none. "auto": what suits the host and needs nothing more."""
    text = config.tunnels.strip().lower()
    if text in ("", "none"):
        return ()
    if text != "auto":
        return tuple(name.strip() for name in text.replace("+", ",").split(",") if name.strip())
    if given is not None:
        return given.order
    host = hosts.which()
    if host == "plain":
        return ()  # one's own machine: a public address is asked for by name
    ngrok = ("ngrok",) if tokens.secret(*NGROK_SECRETS) else ()
    ssh = ("ssh",) if config.ssh_host else ()
    proxy = ("colab",) if host == "colab" else ()
    return (*proxy, *ngrok, "gradio", "localtunnel", *ssh)


def _door(config: LaunchConfig, public: bool) -> Door:
    from fastsd_lib.webui.door import open_door

    password = config.password or tokens.secret(PASSWORD_SECRET)
    return open_door("127.0.0.1", config.user.strip() or None, password, tunnel=public)


def chosen_tunnels(
    config: LaunchConfig, order: tuple[str, ...], given: TunnelConfig | None = None
) -> TunnelConfig | None:
    """Checked before anything starts; None for no public address."""
    if not order:
        return None
    from fastsd_lib.webui.tunnels.config import TunnelConfig

    if given is not None:
        return replace(given, order=order)
    return TunnelConfig(
        order,
        subdomain=config.subdomain.strip(),
        ngrok_token=lambda: tokens.secret(*NGROK_SECRETS) or "",
        ssh_host=config.ssh_host.strip(),
    )


def _builtin(
    config: LaunchConfig,
    files: ModelFiles,
    serve: WebuiConfig | None,
    door: Door,
    library: Path,
    root: Path,
    opened: ExitStack,
) -> Launched:
    library.mkdir(parents=True, exist_ok=True)
    choices = serve or WebuiConfig(library=library, folder=root / "webui")
    model = registry.EMBEDDED if files.path == registry.EMBEDDED_FOLDER else files.path
    server = start(replace(choices, model=model), door, config.port)
    opened.callback(server.close)
    return Launched(server, ExitStack())


def _foreign(
    config: LaunchConfig,
    model: ModelFiles | None,
    given: BackendConfig | None,
    door: Door,
    library: Path,
    root: Path,
    opened: ExitStack,
    say: Say,
    stopping: threading.Event,
) -> Launched:
    """Another program on a port of its own, reached through our door alone."""
    from fastsd_lib.webui.backends.config import find_backend
    from fastsd_lib.webui.reverse_proxy import serve_proxy

    backend = find_backend(config.backend)
    choices = webui_backend.choices(
        backend,
        given,
        model,
        library,
        root,
        config.ref.strip(),
        control_choice.is_asked(config.controlnet),
    )
    running = webui_backend.start(backend, choices, say, stopping)
    opened.callback(running.stop)
    server = serve_proxy(running.url, door, config.port, trouble=running.trouble, name=backend.title)
    opened.callback(server.close)
    launched = Launched(server, ExitStack())
    launched.log_tail = running.last_lines
    launched.trouble = lambda: "" if running.is_running else running.trouble().headline
    return launched


def open_tunnels(
    launched: Launched,
    config: TunnelConfig,
    opened: ExitStack,
    say: Say,
    on_url: Callable[[Tunnel], None],
    stopping: threading.Event,
) -> None:
    """Lead public addresses to what was launched, for as long as it runs. UserError when no route works."""
    from fastsd_lib.webui.tunnels.config import TITLES
    from fastsd_lib.webui.tunnels.supervisor import Tunnels

    def shown(tunnel: Tunnel) -> None:
        launched.public_url = tunnel.url
        on_url(tunnel)

    def status() -> str:
        if (up := tunnels.tunnel) is not None:
            return f"Public through {TITLES[up.route]}."
        if (trouble := tunnels.trouble) is not None:
            return f"No public address: {trouble.message}"
        return "The public address is being restored."

    tunnels = Tunnels(launched.server, config, shown, say)
    opened.callback(tunnels.close)
    with webui_backend.heeding(stopping, tunnels.close):
        tunnels.start()
    launched.tunnel_status = status
