"""What somebody chooses about the public address, and what they get."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fastsd_lib.core.errors import UserError

#: How the routes are called in messages; the names are those of `--tunnel`.
TITLES = {
    "colab": "Colab's port proxy",
    "ngrok": "ngrok",
    "gradio": "Gradio share",
    "cloudflared": "Cloudflare quick tunnel",
    "localtunnel": "localtunnel",
    "ssh": "ssh -R",
}
_SUBDOMAIN = re.compile(r"[a-z0-9][a-z0-9-]{2,61}[a-z0-9]")
_SSH_HOST = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.+-]*)@)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][\w.-]*)(?::(?P<port>\d+))?"
)


class Origin(Protocol):
    """The server that a tunnel leads to: webui.server.Server."""

    port: int
    guard: Any  # answer_nonce(nonce), was_asked_for(nonce), forget_nonce(nonce)

    def ask_for_password(self) -> list[str]: ...
    def add_tunnel(self, url: str) -> list[str]: ...
    def remove_tunnel(self, url: str) -> None: ...


@dataclass(frozen=True)
class TunnelConfig:
    """Every choice about public addresses. Secrets are given as files or as functions that return them."""

    order: tuple[str, ...] = ("gradio",)  # tried from left to right
    subdomain: str = ""  # localtunnel: the name to ask for; it may be refused
    localtunnel_server: str = "https://localtunnel.me"
    ngrok_token: Callable[[], str] | None = field(default=None, repr=False)
    ngrok_token_file: Path | None = None
    ngrok_domain: str = ""  # of your account, such as name.ngrok-free.app; empty = a new name each time
    region: str = ""  # ngrok: us, eu, ap, au, sa, jp, in; empty = the nearest
    gradio_server: str = ""  # host:port of a share server of your own; empty = Gradio's
    frpc_sha256: str = ""  # of the program in programs["frpc"]; empty = the sums that Gradio ships
    ssh_host: str = ""  # user@host:port; user and port may be left out
    ssh_key: Path | None = None  # private key file; empty = the agent's and the usual ones
    ssh_known_hosts: Path | None = None  # empty = ~/.ssh/known_hosts
    ssh_accept_new: bool = False  # trust a host that was never seen before; its fingerprint is shown
    ssh_remote_port: int | None = (
        None  # at the host; None = 80 at hosts that hand out names, else any free one
    )
    ssh_remote_bind: str = (
        "*"  # which addresses of the host; it needs GatewayPorts there. "127.0.0.1": behind its own proxy
    )
    ssh_public_url: str = ""  # where the host's own web server leads to the port
    ssh_prints_url: bool = (
        False  # the host prints the address that it gives; known of serveo.net, localhost.run, pinggy.io
    )
    programs: Mapping[str, Path] = field(
        default_factory=dict
    )  # clients that are not on PATH: {"lt": Path(...)}

    def __post_init__(self) -> None:
        unknown = [name for name in self.order if name not in TITLES]
        if unknown or not self.order:
            raise UserError(
                f"There is no tunnel {unknown[0]!r}." if unknown else "No tunnel is named.",
                fix=f"take one or more of {', '.join(TITLES)}, the first choice first.",
            )
        if self.subdomain and not _SUBDOMAIN.fullmatch(self.subdomain):
            raise UserError(
                f"{self.subdomain!r} cannot be a subdomain.",
                fix="take 4 to 63 small letters, digits or hyphens, beginning and ending with a letter or digit.",
            )
        if self.ssh_host and not _SSH_HOST.fullmatch(self.ssh_host):
            raise UserError(f"{self.ssh_host!r} is no ssh host.", fix="write user@host or user@host:port.")
        if self.ssh_remote_port is not None and not 0 <= self.ssh_remote_port <= 65535:
            raise UserError(f"{self.ssh_remote_port} is no port.", fix="take 0 (any free one) to 65535.")
        for name in ("localtunnel_server", "ssh_public_url"):
            if getattr(self, name) and not re.match(r"https?://[\w\[]", getattr(self, name)):
                raise UserError(
                    f"{name} is {getattr(self, name)!r}.", fix="write it with http:// or https://."
                )

    def ssh_parts(self) -> tuple[str, str, int]:
        """(user or "", host without brackets, port)."""
        found = _SSH_HOST.fullmatch(self.ssh_host)
        return found["user"] or "", found["host"].strip("[]"), int(found["port"] or 22)


@dataclass(frozen=True)
class Tunnel:
    """A public address whose nonce came back."""

    url: str  # without a slash at its end
    route: str  # a key of TITLES
    notes: tuple[str, ...] = ()  # what a visitor or the user should know about it
    pid: int | None = None  # of the client's process group; None = no process of ours
