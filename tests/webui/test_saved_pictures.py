"""Pictures that the API saves are found again in the history."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from api_server import served_api

from fastsd_lib.generation.history import History


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    with served_api(folder, history=History(folder / "history.sqlite")) as served:
        yield served


def _files(api, prompt: str) -> list[list[str]]:
    """Of each job with this prompt, the newest first; the clerk writes a moment after the answer."""
    end = time.monotonic() + 5
    while True:
        found = [one["files"] for one in api.service.history.search(prompt)]
        if any(found) or time.monotonic() > end:
            return found
        time.sleep(0.02)


def test_the_history_knows_where_each_picture_lies_and_the_grid_after_them(api):
    api.draw(prompt="a saved star", batch_size=2, seed=5, save_images=True)
    (files,) = _files(api, "a saved star")
    assert [Path(one).name.partition("-")[2] for one in files] == ["5.png", "6.png", "grid.png"]
    assert all(Path(one).is_file() and Path(one).is_relative_to(api.folder / "outputs") for one in files)


def test_each_job_of_a_script_has_its_own_pictures(api):
    script = {
        "script_name": "prompts from file or textbox",
        "script_args": [False, False, "start", "a kept cat\na kept dog"],
    }
    api.draw(prompt="", seed=7, save_images=True, **script)
    (dog,), (cat, *grid) = _files(api, "a kept dog")[0], _files(api, "a kept cat")[0]
    assert cat != dog and len(grid) <= 1


def test_nothing_is_noted_of_pictures_that_were_not_saved(api):
    api.draw(
        prompt="a lost star", batch_size=2, save_images=True, do_not_save_samples=True, do_not_save_grid=True
    )
    api.draw(prompt="a sent star")
    time.sleep(0.3)
    assert _now(api, "a lost star") == [] and _now(api, "a sent star") == []


def _now(api, prompt: str) -> list[str]:
    (entry,) = api.service.history.search(prompt)
    return entry["files"]
