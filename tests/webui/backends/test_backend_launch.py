"""Start, readiness, every way to fail, restart, and the end of everything that was started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import httpx
import pytest
from fake_backends import add_version, none_left, processes_with

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.backends.checkout import prepare
from fastsd_lib.webui.backends.config import BACKENDS
from fastsd_lib.webui.backends.running import launch, start
from fastsd_lib.webui.door import Door
from fastsd_lib.webui.reverse_proxy import serve_proxy


@pytest.fixture
def begin(config_for, tmp_path):
    """Prepare and launch a back end that behaves in these ways; everything is stopped at the end."""
    begun, lines = [], []

    def make(name: str = "a1111", modes: str = "well", restarts: int = 0, **more):
        note = tmp_path / "note.json"
        config = config_for(name, environment={"FAKE": modes, "FAKE_NOTE": str(note)}, **more)
        running = launch(prepare(BACKENDS[name], config, lines.append), None, restarts, lines.append)
        running.note, running.lines = note, lines
        begun.append(running)
        return running

    yield make
    for running in begun:
        running.stop()


def ask(running, path: str = "/version") -> str:
    return urllib.request.urlopen(f"{running.url}{path}", timeout=5).read().decode()


@pytest.mark.parametrize("name", BACKENDS)
def test_each_becomes_ready_and_is_stopped_whole(begin, name, tmp_path):
    running = begin(name, "slow children")
    running.wait_until_ready()
    assert ask(running) == "1" and running.is_running
    told = json.loads(running.note.read_text())
    assert told["executable"].endswith("/venv/bin/python") and told["cwd"] == str(
        running.checkout.places.code
    )
    assert len(processes_with(str(tmp_path))) >= 3  # itself and its children
    running.stop()
    assert not running.is_running and none_left(str(tmp_path), 1.0)
    with pytest.raises(OSError):
        ask(running)
    running.stop()  # twice is once


def test_an_open_port_is_not_readiness(begin):
    running = begin("forge", "early-port")
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", running.port)).close()
            break
        except OSError:
            time.sleep(0.02)
    assert running._answers("/sdapi/v1/progress") is False
    running.wait_until_ready()
    assert ask(running, "/sdapi/v1/progress") == "1"


def test_behind_the_door_it_says_that_it_starts_and_then_is_there(begin):
    running = begin("comfyui", "slow")
    server = serve_proxy(running.url, Door(users={"me": "secret"}), None, trouble=running.trouble)
    try:
        with httpx.Client(base_url=server.url, auth=("me", "secret"), trust_env=False) as browser:
            waiting = browser.get("/system_stats", headers={"Accept": "text/html"})
            assert waiting.status_code == 502 and "ComfyUI is still starting" in waiting.text
            running.wait_until_ready()
            assert browser.get("/system_stats").text == "1"
            running.stop()
            assert browser.get("/system_stats").json()["detail"] == "ComfyUI was stopped."
    finally:
        server.close()


# ------------------------------------------------------------------ failures


def failure(running, **more) -> UserError:
    with pytest.raises(UserError) as error:
        running.wait_until_ready(**more)
    assert not running.is_running
    return error.value


def test_a_crash_is_told_with_the_last_forty_lines_of_its_log(begin, tmp_path):
    running = begin(modes="crash children")
    error = failure(running)
    assert error.message == "AUTOMATIC1111 ended: the Python package module_that_is_not_there is missing."
    assert str(running.log) in error.fix
    shown = running.lines[-40:]
    assert "ModuleNotFoundError" in shown[-1] and "line 59" in shown and "line 10" not in shown
    assert "line 10" in running.log.read_text()
    assert none_left(str(tmp_path), 1.0)


@pytest.mark.parametrize(
    "name, modes, sentence",
    [
        ("comfyui", "oom", "ComfyUI was killed: out of memory."),
        ("a1111", "cuda", "AUTOMATIC1111 ended: out of GPU memory."),
        ("forge", "fails", "Forge ended with 3."),
    ],
)
def test_the_way_it_ended_is_recognised(begin, name, modes, sentence):
    error = failure(begin(name, modes))
    assert error.message == sentence and error.fix


def test_one_that_hangs_is_given_up_and_ended(begin, tmp_path):
    running = begin("comfyui", "hang children")
    begun = time.monotonic()
    error = failure(running, limit_s=1.5)
    assert "not ready within 1.5 s" in error.message and time.monotonic() - begun < 8
    assert none_left(str(tmp_path), 1.0)


def test_a_taken_port_is_named(begin, config_for):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} is taken"):
            launch(prepare(BACKENDS["a1111"], config_for(), lambda _: None), port)


# ------------------------------------------------------------------ secrets


def test_its_password_stands_in_no_argument_and_in_nothing_that_is_shown(begin):
    running = begin(modes="well", credentials=("child", "s3cret-word"))
    running.wait_until_ready()
    assert not processes_with("s3cret-word")
    told = json.loads(running.note.read_text())
    assert "--api-auth" in told["argv"]  # though it reached the program
    file = Path(told["argv"][told["argv"].index("--gradio-auth-path") + 1])
    assert file.read_text() == "child:s3cret-word\n" and file.stat().st_mode & 0o077 == 0
    assert "s3cret-word" in running.log.read_text()  # it prints its arguments: nobody else may read this
    assert running.log.stat().st_mode & 0o077 == 0
    assert "s3cret-word" not in "\n".join(
        [*running.last_lines(), *running.trouble().log_lines, *running.lines]
    )


def test_our_own_secrets_do_not_reach_it(begin, monkeypatch):
    monkeypatch.setenv("FASTSD_PASSWORD", "ours")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    running = begin()
    running.wait_until_ready()
    told = json.loads(running.note.read_text())["env"]
    assert "FASTSD_PASSWORD" not in told and "PYTHONPATH" not in told


# ------------------------------------------------------------------ rollback, restart, the end


def test_a_version_that_fails_is_replaced_by_the_last_that_worked(config_for, repository):
    lines: list[str] = []
    running = start(BACKENDS["forge"], config_for("forge", ref="v1"), say=lines.append)
    running.stop()
    add_version(repository, "2", "crash")
    running = start(BACKENDS["forge"], config_for("forge", ref="v2"), say=lines.append)
    try:
        assert ask(running) == "1" and running.checkout.ref == running.checkout.commit
        assert any("goes back to v1" in line for line in lines)
    finally:
        running.stop()


def test_a_version_that_worked_before_is_not_blamed(config_for, repository):
    config = config_for()
    add_version(repository, "2", "well")
    for ref in ("v1", "v2"):
        start(BACKENDS["a1111"], config_for(ref=ref), say=lambda _: None).stop()
    with pytest.raises(UserError, match="out of memory"):
        start(BACKENDS["a1111"], config_for(ref="v2", environment={"FAKE": "oom"}), say=lambda _: None)
    assert (config.folder / "a1111" / "code" / "version.txt").read_text() == "2"


def test_one_that_is_killed_is_started_again_and_then_reported(begin, tmp_path):
    running = begin("comfyui", "children", restarts=1)
    running.wait_until_ready()
    first = json.loads(running.note.read_text())["pid"]
    os.kill(first, signal.SIGKILL)
    end = time.monotonic() + 10
    while time.monotonic() < end and json.loads(running.note.read_text() or "{}").get("pid") == first:
        time.sleep(0.1)
    running.wait_until_ready()
    assert "started again in 1 s" in running.lines[-1]
    assert "still starting" not in running.trouble().headline
    second = json.loads(running.note.read_text())["pid"]
    assert second != first
    os.kill(second, signal.SIGKILL)
    while time.monotonic() < end and not running.lines[-1].startswith("  ->"):
        time.sleep(0.1)
    assert running.lines[-2] == "ComfyUI was killed: out of memory."
    assert running.trouble().headline == "ComfyUI was killed: out of memory."
    assert none_left(str(tmp_path), 2.0)


@pytest.mark.parametrize("way", ["exit", "kill"])
def test_it_ends_with_the_program_that_started_it(config_for, tmp_path, way):
    config = config_for("comfyui", environment={"FAKE": "children"})
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from fastsd_lib.webui.backends.config import BACKENDS, BackendConfig\n"
        "from fastsd_lib.webui.backends.running import start\n"
        f"config = BackendConfig(Path({str(config.folder)!r}), repository={config.repository!r}, ref='v1', cpu=True,\n"
        "                       environment={'FAKE': 'children'})\n"
        "running = start(BACKENDS['comfyui'], config)\n"
        f"sys.exit() if {way == 'exit'} else os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=False, cwd=Path(__file__).parents[3])
    assert none_left(str(tmp_path))


def test_the_controlnet_extension_that_does_not_load_is_reported(begin, tmp_path):
    from fake_backends import make_extension

    commit = make_extension(tmp_path / "extension")
    more = {
        "controlnet": True,
        "controlnet_repository": str(tmp_path / "extension"),
        "controlnet_ref": commit,
    }
    running = begin(modes="well", **more)
    running.wait_until_ready()
    assert running.lines[-1] == "The ControlNet extension was not loaded. AUTOMATIC1111 runs without it."
    running.stop()
    del running.lines[:]
    running = begin(modes="controlnet", **more)
    running.wait_until_ready()
    assert running.lines == []
