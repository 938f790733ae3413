"""A real browser on a real JupyterLab, driven over the DevTools protocol; with JupyterLab's own packages."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSERS = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge",
    "microsoft-edge",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)  # fmt: skip
PATIENCE_S = 120.0  # a loaded machine starts a kernel in half a minute


def find_browser() -> str | None:
    """Any browser that speaks the protocol; None when this machine has none."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def wait_for(what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The first true value of `condition`, asked five times a second."""
    end = time.monotonic() + patience_s
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {patience_s:.0f} s for {what}")
        time.sleep(0.2)


@contextmanager
def jupyterlab(folder: Path, home: Path, theme: str = "JupyterLab Light") -> Iterator[Lab]:
    """JupyterLab on `folder`; everything it writes of its own goes below `home`."""
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = "widgets"  # this server listens on the loopback alone, and for the length of one test
    variables = {
        **os.environ, "HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "run"), "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_DATA_DIR": str(home / "data"),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    with (home / "lab.log").open("wb") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            lab = Lab(f"http://127.0.0.1:{port}", token)
            wait_for("JupyterLab to answer", lambda: server.poll() is None and lab.answers())
            yield lab
        finally:
            server.terminate()
            server.wait(20)


class Lab:
    """The REST side of a running JupyterLab."""

    def __init__(self, address: str, token: str) -> None:
        self.address, self.token = address, token

    def answers(self) -> bool:
        try:
            return bool(self.get("/api/status"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def get(self, path: str) -> Any:
        request = urllib.request.Request(
            self.address + path, headers={"Authorization": f"token {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)

    def kernel_is_ready(self) -> bool:
        """Idle and connected: "Run all" before that is lost without an error."""
        try:
            kernels = self.get("/api/kernels")
        except urllib.error.HTTPError:  # 500 while a kernel is being born
            return False
        return any(k["execution_state"] == "idle" and k["connections"] > 0 for k in kernels)

    def notebook(self, name: str) -> str:
        return f"{self.address}/lab/tree/{name}?token={self.token}"


@contextmanager
def browser(binary: str, profile: Path, width: int = 1280, height: int = 1600) -> Iterator[Page]:
    """A headless browser that reaches nothing but this machine."""
    command = [
        binary, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", f"--window-size={width},{height}", "--no-first-run",
        "--hide-scrollbars", "--disable-dev-shm-usage",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    page = None
    try:
        port_file = profile / "DevToolsActivePort"
        wait_for("the browser's port", lambda: port_file.is_file() and port_file.read_text().strip())
        page = Page(int(port_file.read_text().split()[0]))
        yield page
    finally:
        if page:
            page.close()
        process.terminate()
        process.wait(20)


class Page:
    """One tab: evaluate JavaScript, press, type, take a picture."""

    def __init__(self, port: int) -> None:
        from tornado.websocket import websocket_connect

        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=20) as reply:
            target = next(one for one in json.load(reply) if one["type"] == "page")
        self._loop = asyncio.new_event_loop()
        self._number = 0

        async def connect() -> Any:
            return await websocket_connect(target["webSocketDebuggerUrl"], max_message_size=200 << 20)

        self._socket = self._loop.run_until_complete(connect())

    def close(self) -> None:
        async def goodbye() -> None:  # tornado wants a running loop, whatever ran in this thread before
            self._socket.close()
            await asyncio.sleep(0.1)

        self._loop.run_until_complete(goodbye())
        self._loop.close()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number

        async def exchange() -> dict[str, Any]:
            await self._socket.write_message(
                json.dumps({"id": number, "method": method, "params": parameters})
            )
            while True:
                message = await self._socket.read_message()
                if message is None:
                    raise ConnectionError("the browser closed the page")
                reply = json.loads(message)
                if reply.get("id") == number:
                    return reply

        reply = self._loop.run_until_complete(asyncio.wait_for(exchange(), 60))
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def js(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise RuntimeError(
                reply["exceptionDetails"].get("exception", {}).get("description", "JavaScript failed")
            )
        return reply["result"].get("value")

    def wait(self, expression: str, patience_s: float = PATIENCE_S) -> Any:
        return wait_for(expression, lambda: self.js(expression), patience_s)

    def press(self, element: str) -> None:
        """A real mouse press in the middle of the element that a JavaScript expression yields."""
        self.wait(f"!!({element})")
        self.js(f"({element}).scrollIntoView({{block: 'center'}})")
        x, y = self.js(
            f"(() => {{ const r = ({element}).getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press_button(self, label: str, until: str = "") -> None:
        """Press the first widget button whose label begins so and that can be pressed.

        With `until`, a JavaScript condition: press again until it holds, as a person does whose page moved
        under the mouse.
        """
        button = (
            "[...document.querySelectorAll('.jupyter-button')].find(b => b.offsetParent && !b.disabled"
            f" && b.innerText.trim().startsWith({json.dumps(label)}))"
        )
        self.press(button)
        end = time.monotonic() + PATIENCE_S
        while until and not self.js(until):
            if time.monotonic() > end:
                raise TimeoutError(f"pressed {label!r} for {PATIENCE_S:.0f} s and still not: {until}")
            time.sleep(2)
            if self.js(f"!!({button})"):
                self.press(button)

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


def run_all(lab: Lab, page: Page, name: str) -> None:
    """Open a notebook and run all of its cells, once its kernel listens."""
    page.open(lab.notebook(name))
    wait_for("the kernel to be idle", lab.kernel_is_ready)
    page.wait("!!window.jupyterapp && !!document.querySelector('.jp-NotebookPanel .jp-CodeCell')")
    page.js("window.jupyterapp.commands.execute('notebook:run-all-cells'); true")
