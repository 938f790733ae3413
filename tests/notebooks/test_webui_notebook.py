"""notebooks/webui.ipynb: what it promises on the page, and that it opens and ends the web UI."""

from __future__ import annotations

import dataclasses
import re
import socket

import httpx
import nbformat
import notebook_rules as rules
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.workflows import notebook as runner
from fastsd_lib.workflows.webui_launch import BACKENDS, LaunchConfig

NAME = "webui.ipynb"


def test_it_keeps_the_rules_of_the_notebooks():
    rules.check(NAME)


def test_its_fields_are_those_of_the_launch_with_the_same_defaults():
    asked = rules.parameters(rules.code_of(rules.read(NAME)))
    known = {entry.name: entry.default for entry in dataclasses.fields(LaunchConfig)}
    assert {
        name: value for name, value in asked.items() if name not in rules.SHARED | {"keep_cell_running"}
    } == known
    line = next(
        line
        for line in "\n".join(rules.code_of(rules.read(NAME))).splitlines()
        if line.startswith("backend =")
    )
    assert tuple(re.findall(r'"(\w+)"', line.split("#@param ")[1])) == BACKENDS


def test_it_says_what_colab_allows_before_anything_else_and_names_the_studio():
    first = rules.read(NAME).cells[0].source
    assert "terms of service" in first and "paid compute units" in first and "studio.ipynb" in first
    asked = rules.parameters(rules.code_of(rules.read(NAME)))
    assert asked["i_have_paid_compute_units"] is False and asked["password"] == ""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_it_opens_the_web_ui_and_the_last_cell_ends_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTSD_PASSWORD", "not-in-the-notebook")
    port, answers = free_port(), []

    def on_cell(cell: runner.CellDone) -> None:
        if cell.title == "5 · Launch":
            url = f"http://127.0.0.1:{port}/sdapi/v1/options"
            answers.append(httpx.get(url).status_code)
            answers.append(httpx.get(url, auth=("fastsd", "not-in-the-notebook"), timeout=30).status_code)

    values = {"storage_folder": str(tmp_path), "tunnels": "none", "port": port, "keep_cell_running": False}
    out = runner.execute(rules.FOLDER / NAME, values, tmp_path / "run.ipynb", on_cell=on_cell)
    assert answers == [401, 200]
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/")
    text = out.read_text("utf-8")
    assert "nothing is left running" in str(nbformat.read(out, as_version=4).metadata.widgets)
    assert "not-in-the-notebook" not in text and "Traceback" not in text


def test_on_colab_it_stops_with_the_notice_until_the_tick_is_set(tmp_path, monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    port = free_port()
    values = {"storage_folder": str(tmp_path), "tunnels": "none", "port": port, "keep_cell_running": False}
    with pytest.raises(UserError, match="terms of service") as caught:
        runner.execute(rules.FOLDER / NAME, values, tmp_path / "refused.ipynb")
    assert "i_have_paid_compute_units" in str(caught.value) and "studio.ipynb" in str(caught.value)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/")
