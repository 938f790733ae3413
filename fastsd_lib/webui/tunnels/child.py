"""One client program: its output read without ever waiting for it, its end noticed, its whole group ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

MINDER = Path(__file__).with_name("minder.py")
PATIENCE_S = 2.0
KEPT_LINES = 400
LONGEST_LINE_BYTES = 16 * 1024
#: What a client program sees of our environment; everything else may hold secrets.
PASSED_ON = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "SHELL", "SSH_AUTH_SOCK"),
    *(
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    ),
    *(
        "NPM_CONFIG_REGISTRY",
        "npm_config_registry",
        "NPM_CONFIG_CACHE",
        "npm_config_cache",
        "NODE_EXTRA_CA_CERTS",
    ),
    *("SYSTEMROOT", "APPDATA", "LOCALAPPDATA", "USERPROFILE", "PATHEXT", "COMSPEC", "TEMP", "TMP"),
)

Found = TypeVar("Found")


class Ended(Exception):
    """The client ended while something was expected from it."""


class Silent(Exception):
    """The client said nothing of use in time."""


class Child:
    """A running client program in a process group of its own; `stop()` ends the group.

    On POSIX systems it runs under `minder.py`, which ends the group as well when this program is killed.
    `secrets` are masked in every kept line.
    """

    def __init__(
        self, command: Sequence[str], secrets: Sequence[str] = (), on_end: Callable[[], None] = lambda: None
    ):
        self._secrets, self._on_end = [secret for secret in secrets if secret], on_end
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._count, self._news = 0, threading.Condition()
        self.ended = threading.Event()
        posix = os.name == "posix"
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(MINDER), *command] if posix else list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
            start_new_session=posix,
        )
        self._reader = threading.Thread(target=self._read, name=f"reads client {self.pid}", daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, name=f"awaits client {self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        return self._process.returncode if self.ended.is_set() else None

    def tail(self, count: int = 40) -> list[str]:
        with self._news:
            return list(self._lines)[-count:]

    def wait_for(self, look: Callable[[str], Found | None], until: float, stop: threading.Event) -> Found:
        """What `look` makes of the first line, old or new, that it does not answer with None. Ended, Silent.

        `until`: a time of time.monotonic(); Silent comes also when `stop` is set. `look` may raise.
        """
        seen = 0
        while True:
            with self._news:
                lines = list(self._lines)[-(self._count - seen) :] if self._count > seen else []
                seen = self._count
                over = self.ended.is_set()
                if not lines and not over:
                    self._news.wait(max(0.0, min(0.2, until - time.monotonic())))
            for line in lines:
                found = look(line)
                if found is not None:
                    return found
            if not lines and over:
                raise Ended
            if time.monotonic() >= until or stop.is_set():
                raise Silent

    def stop(self) -> None:
        """End the whole group: politely first, for at most 2 s, then by force. Nothing of it runs afterwards."""
        if not self.ended.is_set():
            self._signal(signal.SIGTERM)
            if not self.ended.wait(PATIENCE_S + 1.0):
                self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
                self.ended.wait(PATIENCE_S)
        with suppress(OSError):
            self._process.stdin.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self.pid, number)
            else:
                self._end_tree()

    def _end_tree(self) -> None:
        import psutil

        with suppress(psutil.Error):
            for one in [*psutil.Process(self.pid).children(recursive=True), psutil.Process(self.pid)]:
                with suppress(psutil.Error):
                    one.kill()

    def _wait(self) -> None:
        if hasattr(os, "waitid"):  # the number stays ours until it is waited for: no stranger is hit
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join(1.0)  # its last words
        self.ended.set()
        with self._news:
            self._news.notify_all()
        self._on_end()

    def _read(self) -> None:
        stream = self._process.stdout
        while piece := stream.readline(LONGEST_LINE_BYTES):
            line = piece.decode("utf-8", "replace").rstrip()
            for secret in self._secrets:
                line = line.replace(secret, "***")
            with self._news:
                self._lines.append(line)
                self._count += 1
                self._news.notify_all()
        stream.close()
