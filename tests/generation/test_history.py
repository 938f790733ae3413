"""The history on a real file: what is written, found again, survives a crash, and is never lost silently."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.history import History
from fastsd_lib.generation.jobs import Job, Order
from fastsd_lib.generation.request import GenerationRequest, Hires, Inpaint

REPOSITORY = Path(__file__).parents[2]
REQUEST = GenerationRequest("a photo of a red star", "cat", seed=3, count=2, s_tmax=0.5)


def noise(side: int = 8, mode: str = "RGB") -> Image.Image:
    shape = (side, side, len(mode)) if len(mode) > 1 else (side, side)
    return Image.fromarray(np.random.default_rng(side).integers(0, 255, shape, dtype=np.uint8), mode)


@pytest.fixture()
def history(tmp_path):
    opened = History(tmp_path / "history.sqlite", most_jobs=5)
    yield opened
    opened.close()


def test_a_job_is_found_by_its_prompt_and_by_how_it_was_made(history):
    from fastsd_lib.generation.engine import GeneratedImage

    record = {
        "prompt": "a photo of a red star", "negative_prompt": "cat", "sampler": "euler_a", "schedule": "uniform",
        "inference_steps": 4, "guidance_scale": 7.5, "seed": 3, "width_px": 64, "height_px": 48,
    }  # fmt: skip
    job = Job(Order(REQUEST, owner="me", kind="img2img"), model_key=("tiny", ""))
    history.record(job)
    assert history.search("red star")[0]["state"] == "waiting"
    job.pictures.append(GeneratedImage(noise(), 3, record))
    job.started_s = job.created_s + 1
    job.finish("done")
    history.record(job)
    history.set_files(job.id, [Path("outputs/1.png")])
    (entry,) = history.search("Sampler: Euler a")
    assert entry["state"] == "done" and entry["seeds"] == [3] and entry["files"] == ["outputs/1.png"]
    assert entry["infotexts"][0].startswith(
        "a photo of a red star\nNegative prompt: cat\nSteps: 4, Sampler: Euler a"
    )
    assert entry["model"] == "tiny" and entry["kind"] == "img2img" and entry["owner"] == "me"
    assert entry["finished_s"] >= entry["created_s"] and entry["request"]["seed"] == 3
    assert (
        history.search("red%star") == [] and history.search("red_star") == []
    )  # the signs of SQL are letters
    assert history.search("star", owner="you") == [] and history.count("star", owner="me", state="done") == 1


def test_a_request_comes_back_as_it_was_with_its_pictures(history):
    mask = Image.new("L", (8, 8), 0)
    units = (ControlUnit(noise(16), "canny", weight=0.5), ControlUnit(None, preprocessor="none"))
    painted = replace(REQUEST, init=noise(8, "RGBA"), inpaint=Inpaint(mask, blur_px=2), control=units)
    enlarged = replace(REQUEST, hires=Hires(1.5, sampler="euler"), eta=None)
    for request in (painted, enlarged):
        job = Job(Order(request, "tiny", "soft", "me", 2))
        history.record(job)
        again = history.request_of(job.id)
        assert (again.model, again.vae, again.owner, again.at_once) == ("tiny", "soft", "me", 2)
        for own, other in (
            (request, again.request),
            (request.inpaint, again.request.inpaint),
            *zip(request.control, again.request.control, strict=True),
        ):
            for name, value in vars(own).items() if own else ():
                if isinstance(value, Image.Image):
                    assert getattr(other, name).tobytes() == value.tobytes()
                    assert getattr(other, name).mode == value.mode
                elif name not in ("inpaint", "control"):
                    assert getattr(other, name) == value
    with pytest.raises(UserError, match="No job 'x'") as error:
        history.request_of("x")
    assert "one that is listed" in error.value.fix


def test_pages_follow_each_other_and_the_oldest_are_forgotten_with_their_pictures(history):
    for number in range(7):
        history.record(Job(Order(replace(REQUEST, prompt=f"number {number}", init=noise(8 + number)))))
    pages = [[entry["prompt"] for entry in history.search(most=2, skip=skip)] for skip in (0, 2, 4)]
    assert pages == [["number 6", "number 5"], ["number 4", "number 3"], ["number 2"]]
    base = sqlite3.connect(history.path)
    assert base.execute("select count(*) from inputs").fetchone()[0] == 5
    assert history.delete(history.search("number 4")[0]["id"]) and not history.delete("x")
    assert base.execute("select count(*) from inputs").fetchone()[0] == 4
    assert history.count() == 4


def test_pictures_beyond_the_bound_are_let_go_and_missed_with_a_sentence(tmp_path):
    history = History(tmp_path / "h.sqlite", most_input_mib=1)
    first = Job(Order(replace(REQUEST, init=noise(500))))  # noise of 750 kB
    last = Job(Order(replace(REQUEST, init=noise(501))))
    for job in (first, last):
        history.record(job)
    assert history.request_of(last.id).request.init.size == (501, 501)
    with pytest.raises(UserError, match="not kept any more") as error:
        history.request_of(first.id)
    assert "order it with a new one" in error.value.fix
    history.close()


def test_the_same_id_again_takes_the_place_of_the_job_that_is_over(history):
    first, second = Job(Order(REQUEST), id="mine"), Job(Order(replace(REQUEST, prompt="other")), id="mine")
    second.created_s = first.created_s + 1
    history.record(first)
    history.record(second)
    assert [entry["prompt"] for entry in history.search()] == ["other"]


KILLED = """
import sys, time
from pathlib import Path
from fastsd_lib.generation.history import History
from fastsd_lib.generation.jobs import Job, Order
from fastsd_lib.generation.request import GenerationRequest
history = History(Path(sys.argv[1]))
for state in ("waiting", "drawing", "done"):
    job = Job(Order(GenerationRequest(state, seed=8)), id=state)
    job.state = state
    history.record(job)
print("written", flush=True)
time.sleep(60)
"""


def test_after_a_crash_what_was_under_way_is_lost_and_can_be_ordered_again(tmp_path):
    path = tmp_path / "history.sqlite"
    running = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout.readline() == "written\n"
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    running.stdout.close()
    history = History(path)
    assert {entry["id"]: entry["state"] for entry in history.search()} == {
        "waiting": "lost", "drawing": "lost", "done": "done",
    }  # fmt: skip
    assert history.request_of("waiting").request == GenerationRequest("waiting", seed=8)
    history.close()


@pytest.mark.parametrize("what", ["no database", "torn"])
def test_a_damaged_file_is_moved_aside_with_a_line(tmp_path, caplog, what):
    path = tmp_path / "history.sqlite"
    history = History(path)
    for number in range(50):
        history.record(Job(Order(replace(REQUEST, prompt="word " * 400)), id=str(number)))
    history.close()
    whole = path.read_bytes()
    damaged = b"hello" * 1000 if what == "no database" else whole[:8192] + os.urandom(len(whole) - 8192)
    path.write_bytes(damaged)
    history = History(path)
    assert history.search() == []
    history.record(Job(Order(REQUEST)))
    assert history.count() == 1
    history.close()
    assert (tmp_path / "history.sqlite.damaged-1").read_bytes()[:4096] == damaged[:4096]
    assert "is damaged" in caplog.text and "history.sqlite.damaged-1" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_moved(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened") as error:
        History(tmp_path / "file" / "history.sqlite")
    assert "a folder you may write to" in error.value.fix
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
