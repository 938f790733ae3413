"""One public address that stays: opened in the user's order, watched, restarted, handed to the next route."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tunnels.config import TITLES, Origin, Tunnel, TunnelConfig
from fastsd_lib.webui.tunnels.opening import LIMIT_S, ending
from fastsd_lib.webui.tunnels.probe import ONE_TRY_S, answers_here, ask_once, nonce_of
from fastsd_lib.webui.tunnels.routes import OpenTunnel, open_tunnel


@dataclass(frozen=True)
class Patience:
    """How often is looked and how long is waited, in seconds."""

    health_s: float = 30.0  # between two nonces
    backoff_s: tuple[float, ...] = (
        1.0,
        2.0,
        4.0,
        8.0,
        30.0,
    )  # before the restarts of one route; then the next route
    limit_s: float = LIMIT_S  # for one try
    answer_s: float = ONE_TRY_S  # for one nonce of an address that was up
    round_s: float = 60.0  # after all routes failed, once one had been up
    flaps: int = 40  # so many ends ...
    flapping_s: float = 300.0  # ... in so long a time: the route is no good


class Tunnels:
    """Keeps one address up from `start()` to `close()`; everything happens in one thread of its own.

    `on_url(tunnel)` is called with the first address and with each new one, `say(line)` with what the user should
    read; both in that thread. Errors in them end nothing.
    """

    def __init__(
        self,
        origin: Origin,
        config: TunnelConfig,
        on_url: Callable[[Tunnel], None] = lambda tunnel: None,
        say: Callable[[str], None] = print,
        patience: Patience = Patience(),
    ) -> None:
        self._origin, self._config, self._patience = origin, config, patience
        self._on_url, self._say = on_url, say
        self._stop, self._wake, self._decided = threading.Event(), threading.Event(), threading.Event()
        self._tunnel: Tunnel | None = None
        self._trouble: UserError | None = None
        self._was_up = False
        self._before: dict[str, str] = {}  # the last address of each route, to be asked for again
        self._ends: deque[float] = deque(maxlen=patience.flaps)
        self._thread = threading.Thread(target=self._run, name="tunnels", daemon=True)

    def start(self) -> Tunnel:
        """The first route that is up. UserError with the reason of each when none is."""
        self._thread.start()
        atexit.register(self.close)
        try:
            self._decided.wait((self._patience.limit_s + 15.0) * len(self._config.order) + 15.0)
        except BaseException:  # Ctrl-C
            self.close()
            raise
        if self._tunnel is None:
            self.close()
            raise self._trouble or UserError("No tunnel came up.", fix="try again.")
        return self._tunnel

    @property
    def tunnel(self) -> Tunnel | None:
        """What is up now; None while it is being restarted."""
        return self._tunnel

    @property
    def trouble(self) -> UserError | None:
        """Why nothing is up, once every route has failed."""
        return self._trouble

    @property
    def url(self) -> str:
        return self._tunnel.url if self._tunnel else ""

    def close(self) -> None:
        """End the client and everything it started; its name is refused from then on. Takes some seconds at most."""
        self._stop.set()
        self._wake.set()
        atexit.unregister(self.close)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=ONE_TRY_S + 10.0)

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                failures: list[UserError] = []
                if not self._go_round(failures) or self._stop.is_set():
                    self._trouble = _together(failures) if failures else None
                    return
                self._trouble = _together(failures)
                self._tell(f"{self._trouble}\nAll routes are tried again in {self._patience.round_s:.0f} s.")
                self._stop.wait(self._patience.round_s)
        except Exception as error:
            self._trouble = UserError(
                f"The tunnel ended: {type(error).__name__}: {error}", fix="start it again."
            )
            self._tell(str(self._trouble))
        finally:
            self._tunnel = None
            self._decided.set()

    def _go_round(self, failures: list[UserError]) -> bool:
        """Stay with one route after the other until all failed in a row; True if one had been up, now or before."""
        order, at, failed = self._config.order, 0, 0
        while failed < len(order) and not self._stop.is_set():
            rest = [TITLES[order[(at + step) % len(order)]] for step in range(1, len(order) - failed)]
            up = self._keep_up(order[at], failures, rest)
            self._was_up |= up
            failed = 1 if up else failed + 1
            at = (at + 1) % len(order)
        return self._was_up

    def _keep_up(self, route: str, failures: list[UserError], rest: list[str]) -> bool:
        """Stay with a route until it fails for good, which `failures` then tell; True if it had been up."""
        was_up, restarts = False, 0
        while not self._stop.is_set():
            try:
                opened = self._open(route)
            except UserError as error:
                if not was_up or restarts >= len(self._patience.backoff_s):
                    failures.append(error)
                    self._tell(f"{error}\n  next: {', then '.join(rest)}." if rest else str(error))
                    return was_up
                self._tell(f"{error.message.splitlines()[0]} Trying again.")
            else:
                failures.clear()
                was_up, restarts, self._before[route] = True, 0, opened.tunnel.url
                self._announce(opened.tunnel)
                try:
                    reason = self._watch(opened)
                finally:
                    self._tunnel = None
                    opened.close()
                if self._stop.is_set():
                    return True
                self._ends.append(time.monotonic())
                if self._is_flapping():
                    failures.append(UserError(f"{TITLES[route]}: it ends again and again: {reason}."))
                    return True
                self._tell(f"{TITLES[route]}: {reason}. Starting it again.")
            self._stop.wait(self._patience.backoff_s[restarts])
            restarts += 1
        return was_up

    def _open(self, route: str) -> OpenTunnel:
        return open_tunnel(
            route,
            self._origin,
            self._config,
            self._patience.limit_s,
            self._before.get(route, ""),
            self._stop,
            self._wake.set,
            self._tell,
        )

    def _watch(self, opened: OpenTunnel) -> str:
        """Why the tunnel is not up any more; empty when it is closed. It waits while the server itself is silent."""
        silent = False
        while True:
            self._wake.wait(self._patience.health_s)
            self._wake.clear()
            if self._stop.is_set():
                return ""
            if opened.child and opened.child.ended.is_set():
                return f"its program ended ({ending(opened.child.exit_status)})"
            if trouble := answers_here(self._origin):
                if not silent:
                    self._tell(f"The web server itself does not answer ({trouble}); its tunnel waits for it.")
                silent = True
                continue
            silent = False
            if opened.child is None:
                continue  # nothing to restart, and the notebook's page answers only while a cell runs
            if self._asked_twice(opened):
                return f"{opened.tunnel.url} leads here no longer"

    def _asked_twice(self, opened: OpenTunnel) -> str:
        """Empty if the nonce came back at the first or second try."""
        trouble = ""
        for _ in range(2):
            with nonce_of(self._origin) as nonce:
                trouble = ask_once(opened.tunnel.url, nonce, self._patience.answer_s)
            if not trouble or self._stop.is_set() or (opened.child and opened.child.ended.is_set()):
                return trouble
            self._stop.wait(1.0)
        return trouble

    def _is_flapping(self) -> bool:
        full = len(self._ends) == self._ends.maxlen
        return full and self._ends[-1] - self._ends[0] < self._patience.flapping_s

    def _announce(self, tunnel: Tunnel) -> None:
        self._tunnel, self._trouble = tunnel, None
        self._tell(f"Public address: {tunnel.url}   ({TITLES[tunnel.route]})")
        for note in tunnel.notes:
            self._tell(f"  {note}")
        try:
            self._on_url(tunnel)
        except Exception as error:
            self._tell(f"(showing the address failed: {type(error).__name__}: {error})")
        self._decided.set()

    def _tell(self, text: str) -> None:
        with suppress(Exception):  # a closed terminal or notebook is no reason to close the tunnel
            self._say(text)


def _together(failures: list[UserError]) -> UserError:
    if len(failures) == 1:
        return failures[0]
    return UserError(
        "No tunnel came up:\n" + "\n".join(str(error) for error in failures),
        fix="mend one of these, or use the page on this machine.",
    )
