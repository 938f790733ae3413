"""`ssh -R`: a port of any host that you can log in to, or a name of one that hands out names (serveo, localhost.run)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.webui.door import is_loopback
from fastsd_lib.webui.tunnels.child import Child
from fastsd_lib.webui.tunnels.opening import Claim, Opening

#: Hosts that print the public address they give, and the port to ask them for.
HANDS_OUT_NAMES = {"serveo.net": 80, "localhost.run": 80, "a.pinggy.io": 0, "free.pinggy.io": 0}
#: serveo's, localhost.run's, sish's and pinggy's ways to say it; their greetings hold other addresses.
_PRINTED = re.compile(
    r"(?:forwarding\b.*?|tunneled with tls termination, |^\s*(?:https?: )?)(https?://[\w.:-]+)", re.IGNORECASE
)
_ALLOCATED = re.compile(r"Allocated port (\d+) for remote forward")
_HOST_KEY = re.compile(r"Server host key: (\S+ SHA256:\S+)")
_TAKEN = "remote port forwarding failed"


def open_ssh(opening: Opening) -> Claim:
    """Log in and have a port of the host lead here. After a restart the port it had is asked for again."""
    if not opening.config.ssh_host:
        raise opening.failed(
            "no host is given.",
            "name one that you can log in to, user@host, or a free one: serveo.net, nokey@localhost.run.",
        )
    if opening.before and opening.config.ssh_remote_port is None and not _hands_out_names(opening):
        try:
            return _forward(opening, urlsplit(opening.before).port or 0)
        except UserError as error:
            if _TAKEN not in error.message:
                raise
    return _forward(opening, opening.config.ssh_remote_port)


def _forward(opening: Opening, asked_port: int | None) -> Claim:
    config = opening.config
    user, host, port = config.ssh_parts()
    printing = _hands_out_names(opening)
    remote = HANDS_OUT_NAMES.get(host, 0) if asked_port is None else asked_port
    child = opening.start(_command(opening, user, host, port, remote, printing))

    def look(line: str) -> str | None:
        if printing:
            found = None if line.startswith("debug1:") else _PRINTED.search(line)
            if not found:
                return None
            url = found[1].rstrip(".,:")
            return (
                url.replace("http://", "https://", 1) if host in HANDS_OUT_NAMES else url
            )  # they all have both
        found = _ALLOCATED.search(line)
        if found or (remote and "remote forward success" in line):
            shown = f"[{host}]" if ":" in host else host
            return config.ssh_public_url or f"http://{shown}:{found[1] if found else remote}"
        return None

    try:
        url = opening.wait_for(
            child, look, _troubles(config.ssh_host, remote), "try the command by hand: ssh -v " + host
        )
    except UserError as error:
        raise _with_fingerprint(error, child) from None
    return Claim(
        url.rstrip("/"),
        _notes(url, child, config.ssh_host),
        child,
        unreached=f"if {host} opens the port to itself only: set GatewayPorts clientspecified in its sshd_config, or"
        " have its web server lead to the port and give that address as the public one.",
    )


def _command(opening: Opening, user: str, host: str, port: int, remote: int, printing: bool) -> list[str]:
    config = opening.config
    ssh = opening.program("ssh", "install it: apt-get install openssh-client")
    bind = (
        f"{config.subdomain}:"
        if printing and config.subdomain
        else ""
        if printing
        else f"{config.ssh_remote_bind}:"
    )
    options = {
        "BatchMode": "yes",  # never a question that nobody sees
        "StrictHostKeyChecking": "accept-new" if config.ssh_accept_new else "yes",
        "ExitOnForwardFailure": "yes",
        "ConnectTimeout": "15",
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "2",
        "UpdateHostKeys": "no",
    }
    if config.ssh_known_hosts:
        options["UserKnownHostsFile"] = f'"{config.ssh_known_hosts}"'
    if config.ssh_key:
        options["IdentitiesOnly"] = "yes"
    command = [
        ssh,
        "-F",
        "none",
        "-v",
        "-T",
        "-p",
        str(port),
    ]  # -v: says when the port is open, and the host's key
    command += [] if printing else ["-N"]
    command += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    command += ["-i", str(_private_key(opening, config.ssh_key))] if config.ssh_key else []
    command += ["-l", user] if user else []
    return [*command, "-R", f"{bind}{remote}:127.0.0.1:{opening.port}", host]


def _private_key(opening: Opening, key: Path) -> Path:
    """The key file; a copy that only its owner reads where ssh would refuse it (Drive shows files to everybody)."""
    key = expanded(key)
    try:
        if key.stat().st_mode & 0o077 == 0:
            return key
        copy = opening.folder() / "key"
        copy.touch(0o600)
        shutil.copyfile(key, copy)
        return copy
    except OSError as error:
        raise opening.failed(
            f"the key {key} cannot be read: {error.strerror}.", "check the path of the key."
        ) from None


def _hands_out_names(opening: Opening) -> bool:
    return opening.config.ssh_prints_url or opening.config.ssh_parts()[1] in HANDS_OUT_NAMES


def _notes(url: str, child: Child, host: str) -> tuple[str, ...]:
    notes = []
    added = any("Permanently added" in line for line in child.tail(400))
    if added and (key := _host_key(child)):
        notes.append(
            f"First contact with {host}; its key is {key}: compare it with what the host's owner says."
        )
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        notes.append("This address is not encrypted: the password can be read on its way.")
    return tuple(notes)


def _with_fingerprint(error: UserError, child: Child) -> UserError:
    """The last words without ssh's diary, and the key where it is about the key."""
    lines = [
        line
        for line in error.message.splitlines()
        if not line.lstrip(" |").startswith(("debug1:", "OpenSSH_"))
    ]
    if (key := _host_key(child)) and "key" in lines[0]:
        lines[0] += f" It shows {key}."
    return UserError("\n".join(lines), error.fix)


def _host_key(child: Child) -> str:
    return next((found[1] for line in child.tail(400) if (found := _HOST_KEY.search(line))), "")


def _troubles(host: str, remote: int) -> tuple[tuple[str, str, str], ...]:
    return (
        (
            "IDENTIFICATION HAS CHANGED",
            f"{host} shows another key than the one that is known.",
            "somebody may sit between: ask its owner; then ssh-keygen -R the old one.",
        ),
        (
            "Host key verification failed",
            f"the key of {host} is not known here.",
            "compare it with what the host's owner says, then log in once by hand, or allow new hosts:"
            " --ssh-accept-new (ssh_accept_new=True).",
        ),
        (
            "Permission denied",
            f"{host} refuses the log-in.",
            "check the user and the key file; a key with a passphrase must be in the ssh agent.",
        ),
        ("Too many authentication failures", f"{host} refuses the log-in.", "give the one right key file."),
        (
            _TAKEN,
            f"port {remote} of {host} is taken or not allowed ({_TAKEN}).",
            "take another port, or 0 for any free one; the host needs AllowTcpForwarding.",
        ),
        ("Could not resolve hostname", f"there is no host {host}, or no network.", "check its name."),
        (
            "Connection refused",
            f"{host} refuses the connection.",
            "check its port, and that sshd runs there.",
        ),
        ("banner exchange", f"{host} does not answer as an ssh server.", "check its port; it may hang."),
        ("Connection timed out", f"{host} does not answer.", "check its name and port, and the firewall."),
        ("Network is unreachable", f"no way leads to {host}.", "check the network."),
        ("not responding", f"{host} has stopped to answer.", "try again, or take another host."),
        (
            "Connection closed by",
            f"{host} closed the connection.",
            "it may limit its users: try again later.",
        ),
        ("Bad configuration option", "this ssh client is too old.", "it must be OpenSSH 7.6 or later."),
    )
