"""The web UI from a notebook: its address, its password once, a QR code, and how it goes; Stop ends all of it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from collections.abc import Callable
from html import escape
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style
from fastsd_lib.workflows.webui_launch import Launched, launch

LOOK_S = 1.0
WAIT_S = 0.05
MOST_LINES = 40
WEBUI_STYLES = """<style>
.fsd-webui .fsd-address { display: flex; gap: 20px; align-items: center; flex-wrap: wrap; }
.fsd-webui .fsd-address a { font-size: 16px; font-weight: 600; color: var(--fsd-accent); overflow-wrap: anywhere; }
.fsd-webui .fsd-qr { background: #fff; border-radius: 8px; padding: 4px; line-height: 0; }
.fsd-webui .fsd-lines { white-space: pre-wrap; font-size: 12px; max-height: 260px; overflow-y: auto; }
.fsd-webui .fsd-secret { user-select: all; font-weight: 600; }
</style>"""


class WebuiPanel(style.Shown):
    """Starts in a thread, so that Stop and interrupting the cell are heard while models load."""

    title, called = "Web UI", "The web UI is"
    begin: Callable[..., Launched] = staticmethod(launch)

    def __init__(self, config: Any, root: Any = None, **more: Any) -> None:
        """`config`: what `begin` takes, a LaunchConfig; `more`: its further choices, `serve` or `tunnel_config`."""
        self.config, self.root, self._more = config, root, more
        self.launched: Launched | None = None
        self.error: Exception | None = None
        self._lines: deque[str] = deque(maxlen=MOST_LINES)
        self._stopping = threading.Event()
        self._starter = threading.Thread(target=self._launch, name="launch", daemon=True)
        self._ending = threading.Lock()
        self.stop_button = style.button("Stop", self.stop, disabled=True)
        self.hide_button = style.button("Hide the password", self.hide_password)
        self._status, self._address, self._secret = style.html(), style.html(), style.html()
        self._log, self._message = style.html(), style.html()
        self.hide_button.layout.display = "none"
        self.box = style.card(
            self.title, style.html(WEBUI_STYLES), style.row(self.stop_button, self._status), self._address,
            style.row(self._secret, self.hide_button), self._message, self._log,
        )  # fmt: skip
        self.box.add_class("fsd-webui")

    async def run(self, keep_cell_running: bool = True) -> Launched:
        """Show the panel and start; return once it runs, or with `keep_cell_running` when it has been stopped.

        Interrupting the cell stops everything. Raises UserError for what could not be started.
        """
        from fastsd_lib.widgets.kernel import answer_widgets

        self.show()
        self._say_status("Starting …")
        self.stop_button.disabled = False
        self._starter.start()
        while self._starter.is_alive() or (keep_cell_running and self.launched and self.launched.running):
            try:
                await answer_widgets()
                await asyncio.sleep(WAIT_S)
            except (KeyboardInterrupt, asyncio.CancelledError):
                self.stop()
        if self.error is not None:
            raise self.error
        assert self.launched is not None
        return self.launched

    def stop(self) -> None:
        """End tunnel, server and program; a second call does nothing."""
        self._stopping.set()
        self.hide_password()
        if self.launched is None:
            self._say_status("Stopping …" if self._starter.is_alive() else "Nothing runs.")
            return
        with self._ending:  # until it is said, nobody else says how it goes
            self.launched.stop()
            self.stop_button.disabled = True
            self._address.value = ""
            self._say_status("Stopped; nothing is left running.")

    def hide_password(self) -> None:
        """Take it off the page, and so out of what a saved notebook holds."""
        self._secret.value = ""
        self.hide_button.layout.display = "none"

    # --- in the threads

    def _launch(self) -> None:
        try:
            launched = self.begin(
                self.config, root=self.root, say=self._say, show_once=self._show_secret,
                on_url=lambda tunnel: self._show_address(tunnel.url), stopping=self._stopping, **self._more,
            )  # fmt: skip
        except Exception as error:  # raised again in the cell that waits
            stopped = self._stopping.is_set()
            self.error = UserError("Stopped before it ran.", fix="run the cell again.") if stopped else error
            self._message.value = style.failure(self.error)
            self._say_status("Not running.")
            self.stop_button.disabled = True
            self.hide_password()
            return
        self.launched = launched
        if self._stopping.is_set():
            self.stop()
            return
        if not launched.public_url:
            self._show_address(launched.url)
        if not self._secret.value and launched.server.guard.access.asks:
            text = f"Log in as {self.config.user} with the password that you gave."
            self._secret.value = f'<span class="fsd-help">{escape(text)}</span>'
        self._say_how_it_goes(launched)
        threading.Thread(target=self._watch, args=(launched,), name="webui panel", daemon=True).start()

    def _watch(self, launched: Launched) -> None:
        """The status line, until the server ends or is stopped."""
        ended = threading.Event()

        def wait() -> None:
            launched.wait()
            ended.set()

        threading.Thread(target=wait, name="webui wait", daemon=True).start()
        while launched.running and not ended.wait(LOOK_S):
            self._say_how_it_goes(launched)
        if launched.running:
            self.stop()
            self._say_status("The server has ended; run the cell again.")
            self._log.value = _lines([*self._lines, *launched.log_tail()])

    def _say(self, text: str) -> None:
        self._lines.extend(text.splitlines())
        self._log.value = _lines(self._lines)

    def _say_how_it_goes(self, launched: Launched) -> None:
        with self._ending:
            if launched.running:
                self._say_status(launched.status())

    def _say_status(self, text: str) -> None:
        shown = f'<span class="fsd-help">{escape(text)}</span>'
        if self._status.value != shown:
            self._status.value = shown

    def _show_secret(self, line: str) -> None:
        user, password = _user_and_password(line)
        self._secret.value = (
            f'<div class="fsd-box">User <span class="fsd-code fsd-secret">{escape(user)}</span> &nbsp; Password '
            f'<span class="fsd-code fsd-secret">{escape(password)}</span><br><span class="fsd-help">Made for this '
            "start and shown only here; it goes from the page when you hide it or stop.</span></div>"
        )
        self.hide_button.layout.display = ""

    def _show_address(self, url: str) -> None:
        from fastsd_lib.webui.tunnels.qr import qr_svg

        shown = escape(url, quote=True)
        code = f'<span class="fsd-qr">{qr_svg(url, 3)}</span>' if not url.startswith("http://127.") else ""
        self._address.value = (
            f'<div class="fsd-address">{code}<span><span class="fsd-help">{self.called} at</span><br>'
            f'<a href="{shown}" target="_blank" rel="noopener noreferrer">{shown}</a></span></div>'
        )


def _user_and_password(line: str) -> tuple[str, str]:
    found = re.match(r"User: (\S+)\s+Password: (\S+)", line)
    return (found[1], found[2]) if found else ("", line)


def _lines(lines: Any) -> str:
    text = escape("\n".join(lines))
    return f'<div class="fsd-box fsd-code fsd-lines">{text}</div>' if text else ""
