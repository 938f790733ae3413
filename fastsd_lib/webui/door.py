"""How the server is opened: to whom, under which names, and with which password."""

from __future__ import annotations

import ctypes
import ipaddress
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastsd_lib.core.errors import UserError

USUAL_USER = "fastsd"
OPEN_TO_ALL_FLAG = "--anyone-may-use-this-machine"


@dataclass(frozen=True)
class Door:
    """Where to listen and who gets in. No users: nobody is asked."""

    host: str = "127.0.0.1"
    users: Mapping[str, str] = field(default_factory=dict, repr=False)  # name: password
    names: tuple[str, ...] = ()  # further host names by which the server may be called
    generated: bool = False  # the password was made here: show it once
    open_to_all: bool = False  # somebody said so twice

    def announcement(self) -> list[str]:
        """What the terminal shows once, and nothing else ever does."""
        if self.generated:
            ((user, password),) = self.users.items()
            return [f"User: {user}   Password: {password}   (made for this start; shown only here)"]
        if self.open_to_all:
            return ["WARNING: anybody who reaches this address uses this machine: it asks for no password."]
        return []


LOOPBACK = Door()


def open_door(
    host: str = "127.0.0.1",
    user: str | None = None,
    password: str | None = None,
    password_file: Path | None = None,
    tunnel: bool = False,
    no_auth: bool = False,
    open_to_all: bool = False,
    names: Sequence[str] = (),
) -> Door:
    """Decide who is asked for a password. UserError when what was said contradicts itself or leaves it open.

    Other machines reach the server as soon as `tunnel` is true or `host` is no loopback address: then there is
    always a password (made here if none was given) unless both `no_auth` and `open_to_all` are true.
    """
    users = _users(user, password, password_file)
    if no_auth and users:
        raise UserError("A password and --no-auth contradict each other.", fix="give one of the two.")
    reachable = tunnel or not is_loopback(host)
    if no_auth and reachable and not open_to_all:
        raise UserError(
            f"{'A tunnel' if tunnel else host} can be reached from other machines, and --no-auth would let in anybody.",
            fix=f"leave --no-auth out, or add {OPEN_TO_ALL_FLAG} if you mean it.",
        )
    generated = reachable and not users and not no_auth
    if generated:
        users = {user or USUAL_USER: new_password()}
    names = (*names, *(_names_of_this_machine() if not is_loopback(host) else ()))
    return Door(host, users, names, generated, open_to_all=reachable and not users)


def new_password() -> str:
    return secrets.token_urlsafe(16)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def hide_from_listings(secret: str) -> bool:
    """Overwrite `secret` where this system lists the arguments of running programs; False where it cannot be done.

    It was readable there until now, and may stand in the shell's history: FASTSD_PASSWORD and --password-file
    are better ways.
    """
    sys.argv[:] = [word.replace(secret, "*" * 8) for word in sys.argv]
    sys.orig_argv[:] = [word.replace(secret, "*" * 8) for word in sys.orig_argv]
    wanted = secret.encode()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end of proc(5), counted after the name
        if not 0 < start < end:
            return False
        listed = ctypes.string_at(start, end - start)
    except (OSError, ValueError, IndexError):
        return False
    at = listed.find(wanted)
    hidden = at >= 0
    while at >= 0:
        ctypes.memset(start + at, ord("*"), len(wanted))
        at = listed.find(wanted, at + len(wanted))
    return hidden


def _users(user: str | None, password: str | None, file: Path | None) -> dict[str, str]:
    if password and file:
        raise UserError("There is a password and a password file.", fix="give one of the two.")
    if file:
        return _users_of_file(user, file)
    if password:
        return {_checked_name(user or USUAL_USER): password}
    return {}


def _users_of_file(user: str | None, file: Path) -> dict[str, str]:
    """With a user the first line is the password as it stands; without, every line is `user:password`."""
    try:
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"The password file {file} cannot be read: {reason}.", fix="check --password-file."
        ) from None
    if not lines:
        raise UserError(f"The password file {file} is empty.", fix="write a line user:password into it.")
    if user:
        return {_checked_name(user): lines[0]}
    users = {}
    for number, line in enumerate(lines, 1):
        name, colon, password = line.partition(":")
        if not (name and colon and password):
            raise UserError(
                f"Line {number} of the password file {file} is not user:password.",
                fix="write it so, or name the one user with --user and put the password alone on a line.",
            )
        users[_checked_name(name)] = password
    return users


def _checked_name(user: str) -> str:
    if ":" in user or not user.isprintable():
        raise UserError(f"A user cannot be called {user!r}.", fix='take letters and digits, without ":".')
    return user


def _names_of_this_machine() -> tuple[str, ...]:
    name = socket.gethostname().lower()
    return (name, name.partition(".")[0], f"{name.partition('.')[0]}.local")
