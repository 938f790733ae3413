"""What a route's function is given, and what it hands back."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tunnels.child import Child, Ended, Silent
from fastsd_lib.webui.tunnels.config import TITLES, TunnelConfig
from fastsd_lib.webui.tunnels.probe import within

LIMIT_S = 45.0  # for a route, until its nonce came back
TAIL_LINES = 6  # of a client's output in an error

Found = TypeVar("Found")


#: (sign, what failed, what to do): the first whose sign stands in what a client or its host said is believed.
Troubles = Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Claim:
    """What a client says: an address not yet believed."""

    url: str
    notes: tuple[str, ...] = ()
    child: Child | None = None  # None: there is no process of ours
    unreached: str = "the client's host may be slow: try again, or take the next route."  # what to do then
    troubles: Troubles = ()  # what may be said at that address instead
    ask: Callable[[str], str] | None = (
        None  # asks for a nonce where this machine cannot; answers as probe.ask_once
    )


@dataclass
class Opening:
    """One try to open one route. Whatever it makes goes when `cleanup` is closed."""

    route: str
    port: int
    config: TunnelConfig
    on_end: Callable[[], None] = lambda: None
    before: str = ""  # the address that this route had until now
    limit_s: float = LIMIT_S
    stop: threading.Event = field(default_factory=threading.Event)
    cleanup: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.until = time.monotonic() + self.limit_s

    @property
    def left_s(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def failed(self, what: str, fix: str, child: Child | None = None) -> UserError:
        """The error of this route, with the last words of its client."""
        said = "".join(f"\n    | {line[:300]}" for line in child.tail(TAIL_LINES)) if child else ""
        return UserError(f"{TITLES[self.route]}: {what}{said}", fix=fix)

    def program(self, name: str, fix: str) -> str:
        """The client of that name: from the config, else from PATH."""
        given = self.config.programs.get(name)
        found = shutil.which(str(given or name))
        if not found:
            raise self.failed(f"its program {str(given or name)!r} is not here.", fix)
        return found

    def folder(self) -> Path:
        """A new folder that only this user can read; it goes with the tunnel."""
        made = Path(tempfile.mkdtemp(prefix="fastsd-tunnel-"))
        self.cleanup.callback(shutil.rmtree, made, ignore_errors=True)
        return made

    def start(self, command: Sequence[str], secrets: Sequence[str] = ()) -> Child:
        try:
            child = Child(command, secrets, self.on_end)
        except OSError as error:
            raise self.failed(
                f"{command[0]} does not start: {error.strerror}.", "install it again."
            ) from None
        self.cleanup.callback(child.stop)
        return child

    def wait_for(
        self,
        child: Child,
        look: Callable[[str], Found | None],
        troubles: Troubles,
        fix: str,
        limit_s: float = LIMIT_S,
    ) -> Found:
        """The first thing that `look` finds in the client's output; else the error of this route."""
        limit_s = min(limit_s, self.left_s)

        def look_for_either(line: str) -> Found | None:
            self.raise_if(troubles, [line], child)
            return look(line)

        try:
            return child.wait_for(look_for_either, time.monotonic() + limit_s, self.stop)
        except Ended:
            what = f"its program ended at once ({ending(child.exit_status)})."
        except Silent:
            what = "stopped." if self.stop.is_set() else f"its program gave no address in {limit_s:.0f} s."
        raise self.failed(what, fix, child)

    def raise_if(self, troubles: Troubles, lines: Sequence[str], child: Child | None = None) -> None:
        """The error that one of `lines` tells of, if one does."""
        for line in lines:
            for sign, what, fix in troubles:
                if sign.lower() in line.lower():
                    raise self.failed(what, fix, child)

    def within(self, limit_s: float, work: Callable[[], Found], what: str, fix: str) -> Found:
        """What `work` returns; the error of this route if that takes longer."""
        limit_s = min(limit_s, self.left_s)
        try:
            return within(limit_s, work)
        except TimeoutError:
            raise self.failed(f"{what} took more than {limit_s:.0f} s.", fix) from None


def ending(status: int | None) -> str:
    if status is None:
        return "no exit status"
    number = -status if status < 0 else status - 128 if status > 128 else 0
    return f"killed by signal {number}" if 0 < number < 65 else f"exit {status}"


def write_private(path: Path, text: str) -> Path:
    """A file that was never readable for others."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return path
