"""The web UI's panel: what it shows, what it hides, and that a press ends everything; in a real kernel, too."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from test_in_kernel import Kernel

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tunnels import routes
from fastsd_lib.webui.tunnels.opening import Claim
from fastsd_lib.widgets.webui_panel import WebuiPanel
from fastsd_lib.workflows.webui import WebuiConfig
from fastsd_lib.workflows.webui_launch import LaunchConfig

REPOSITORY = Path(__file__).resolve().parents[2]
API = WebuiConfig(ui=False)  # the page is tested elsewhere, and takes its seconds


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE", "FASTSD_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def other_name(monkeypatch):
    """The route "ssh" leads to our own port under another name: all but the way through the world is real."""
    monkeypatch.setitem(routes.TUNNELS, "ssh", lambda opening: Claim(f"http://localhost:{opening.port}"))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_it_shows_address_code_and_password_and_forgets_the_password_when_stopped(other_name, tmp_path):
    port = free_port()
    panel = WebuiPanel(LaunchConfig(tunnels="ssh", port=port), tmp_path, serve=API)
    asyncio.run(panel.run(keep_cell_running=False))
    try:
        assert f"http://localhost:{port}" in panel._address.value and "<svg" in panel._address.value
        assert "Public through" in panel._status.value and "fsd-secret" in panel._secret.value
        assert panel.hide_button.layout.display == ""
        password = panel._secret.value.split('fsd-secret">')[2].split("<")[0]
        assert (
            httpx.get(panel.launched.url + "sdapi/v1/options", auth=("fastsd", password)).status_code == 200
        )
        assert password not in panel._log.value
    finally:
        panel.stop_button.click()
    assert panel._secret.value == "" and "nothing is left running" in panel._status.value
    assert panel.stop_button.disabled
    time.sleep(1.5)  # whoever watched it looks once a second
    assert "nothing is left running" in panel._status.value
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/")
    panel.stop()


def test_a_password_that_was_given_is_not_shown(tmp_path):
    config = LaunchConfig(tunnels="none", port=free_port(), user="me", password="of my own")
    panel = WebuiPanel(config, tmp_path, serve=API)
    asyncio.run(panel.run(keep_cell_running=False))
    panel.stop()
    shown = str([part.value for part in (panel._secret, panel._log, panel._address)])
    assert "of my own" not in shown and "of my own" not in repr(config)


def test_what_cannot_start_is_raised_in_the_cell_and_shown(tmp_path):
    panel = WebuiPanel(LaunchConfig(model="nothing", tunnels="none"), tmp_path)
    with pytest.raises(UserError, match="No model 'nothing'"):
        asyncio.run(panel.run())
    assert "No model" in panel._message.value and "Not running" in panel._status.value
    panel.stop()


def test_a_server_that_ends_by_itself_is_reported(tmp_path):
    panel = WebuiPanel(LaunchConfig(tunnels="none", port=free_port()), tmp_path, serve=API)
    asyncio.run(panel.run(keep_cell_running=False))
    panel.launched.server._stopping.set()  # as somebody does who may end the server over the API
    end = time.monotonic() + 20
    while "has ended" not in panel._status.value:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert not panel.launched.running


def test_a_press_and_an_interrupt_end_the_running_cell_and_all_that_it_started(tmp_path):
    port = free_port()
    code = f"""
import sys; sys.path.insert(0, {str(REPOSITORY)!r})
from pathlib import Path
from fastsd_lib.widgets.webui_panel import WebuiPanel
from fastsd_lib.workflows.webui import WebuiConfig
from fastsd_lib.workflows.webui_launch import LaunchConfig

def made():
    config = LaunchConfig(tunnels="none", port={port})
    return WebuiPanel(config, Path({str(tmp_path)!r}), serve=WebuiConfig(ui=False))

panel = made()
print(panel.stop_button.model_id)
"""
    kernel = Kernel()
    try:
        button = kernel.finish(kernel.start(code)).split()[-1]
        for end in (lambda: kernel.press(button), kernel.manager.interrupt_kernel):
            threading.Thread(target=once_it_answers, args=(port, end), daemon=True).start()
            said = kernel.finish(kernel.start("await panel.run(); print('the cell went on')"))
            assert "the cell went on" in said, said
            with pytest.raises(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/")
            kernel.finish(kernel.start("panel = made()"))
    finally:
        kernel.close()


def once_it_answers(port: int, act) -> None:
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            time.sleep(1.0)  # the launch returns a moment after its server answers
            return act()
