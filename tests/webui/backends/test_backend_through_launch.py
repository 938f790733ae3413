"""Another web UI behind our door, as notebooks and the command launch it: one call up, one call down."""

from __future__ import annotations

import socket
import threading

import httpx
import pytest
from fake_backends import none_left

from fastsd_lib.core.errors import UserError
from fastsd_lib.workflows.webui_launch import LaunchConfig, launch


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_back_end_answers_behind_the_password_and_is_gone_after_stop(config_for, tmp_path):
    config = LaunchConfig(backend="a1111", ref="v1", tunnels="none", password="secret", port=free_port())
    launched = launch(config, root=tmp_path, backend_config=config_for(), say=lambda line: None)
    try:
        assert httpx.get(f"{launched.url}sdapi/v1/progress").status_code == 401
        answer = httpx.get(f"{launched.url}sdapi/v1/progress", auth=("fastsd", "secret"))
        assert answer.status_code == 200 and launched.status() == "Running on this machine."
    finally:
        launched.stop()
    with pytest.raises(httpx.TransportError):
        httpx.get(launched.url)
    assert none_left(str(tmp_path / "local"))


def test_one_that_crashes_is_said_with_its_last_lines_and_nothing_is_left(config_for, tmp_path):
    lines = []
    config = LaunchConfig(backend="forge", tunnels="none", port=free_port())
    broken = config_for("forge", environment={"FAKE": "crash"})
    with pytest.raises(UserError) as caught:
        launch(config, root=tmp_path, backend_config=broken, say=lines.append)
    assert "Forge" in caught.value.message and "log" in caught.value.fix and lines
    assert none_left(str(tmp_path / "local"))


def test_stop_is_heard_while_it_is_still_starting(config_for, tmp_path):
    stopping = threading.Event()
    slow = config_for(environment={"FAKE": "hang"}, ready_s=60.0)
    threading.Timer(1.0, stopping.set).start()
    with pytest.raises(UserError):
        launch(
            LaunchConfig(backend="a1111", tunnels="none", port=free_port()), root=tmp_path, backend_config=slow,
            stopping=stopping, say=lambda line: None,
        )  # fmt: skip
    assert none_left(str(tmp_path / "local"))


def test_a_model_in_parts_is_refused_with_the_command_that_makes_it_one_file(
    config_for, tiny_pipeline, tmp_path
):
    config = LaunchConfig(model=str(tiny_pipeline.path), backend="comfyui", tunnels="none", port=free_port())
    with pytest.raises(UserError, match="ComfyUI opens single files") as caught:
        launch(config, root=tmp_path, backend_config=config_for("comfyui"))
    assert "convert" in caught.value.fix
