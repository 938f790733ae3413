"""Trainings as the web page starts them: in a child of the server, on the embedded model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsd_lib.core.config import config_from_dict
from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import dreambooth
from fastsd_lib.workflows.training_process import why_it_ended
from fastsd_lib.workflows.training_trace import LossTrace
from fastsd_lib.workflows.trainings import SessionTrainings

NAME = "my monster"
SHORT = {
    "instance_prompt": "a photo of sks monster", "class_prompt": "", "unet_steps": 6, "text_encoder_steps": 3,
    "save_every_steps": 2, "sample_every_steps": 4, "sample_count": 1, "batch_size": 1,
}  # fmt: skip
LONG = SHORT | {"unet_steps": 100_000, "sample_every_steps": 0}


@pytest.fixture(scope="module")
def service():
    made = Service(Shelf(LibraryFolders()))
    yield made
    made.close()


@pytest.fixture
def trainings(service, tmp_path):
    made = SessionTrainings(service, tmp_path / "root")
    made.create(NAME)
    made.add_photos(NAME, dreambooth.sample_photos("monster", tmp_path / "photos"))
    yield made
    made.close()
    assert not made.running()


def recipe(trainings, changes):
    return {**trainings.suggested(NAME, "embedded", changes.get("method", "full")).values, **changes}


def until(what, condition, patience_s=90):
    end = time.monotonic() + patience_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {patience_s} s for {what}"
        time.sleep(0.05)
    return found


def until_over(trainings):
    until("the end of training", lambda: not trainings.running())
    return trainings.look(NAME)


def until_step(trainings, step):
    until(f"step {step}", lambda: trainings.look(NAME).step >= step or not trainings.running())
    shown = trainings.look(NAME)
    assert shown.busy, shown
    return shown


def losses(trainings):
    path = trainings._opened(NAME).logs / "metrics.jsonl"
    return {row["step"]: row["loss"] for row in map(json.loads, path.read_text().splitlines())}


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_from_photos_to_a_model_and_a_lora_on_the_shelf(trainings, service):
    assert trainings.look(NAME).state == "new"
    trainings.start(NAME, "embedded", recipe(trainings, SHORT | {"method": "lora"}))
    with pytest.raises(UserError, match="is in training: this server trains one session at a time"):
        trainings.resume(NAME)
    with pytest.raises(UserError, match="photos and captions stay as they are"):
        trainings.set_caption(NAME, "monster_1.png", "on a hill")
    shown = until_over(trainings)
    assert (shown.state, shown.step, shown.total_steps, shown.problem) == ("finished", 9, 9, "")
    assert "<svg" in shown.curve and sorted(losses(trainings)) == list(range(1, 10))
    assert shown.samples[0].name == "step_000009_1.png"
    again = trainings.suggested(NAME)  # what it was trained with
    assert (again.base_model, again.values["method"], again.values["unet_steps"]) == ("embedded", "lora", 6)
    assert trainings.suggested(NAME, "1.5", "lora").values["instance_prompt"] == "a photo of sks monster"
    assert trainings.use(NAME).prompt == "a photo of sks monster"
    assert service.shelf.find(trainings.use(NAME).model).path == shown.model
    use = trainings.use(NAME, "lora")
    assert (use.model, use.prompt) == ("embedded", "a photo of sks monster <lora:my monster-lora:1>")
    assert service.shelf.library.networks.find_lora("my monster-lora").path == shown.lora
    # A server that starts later finds all of it again.
    later = SessionTrainings(Service(Shelf(LibraryFolders())), trainings.root)
    later.service.close()
    assert later.look(NAME).state == "finished" and later.look(NAME).curve == shown.curve
    assert later.service.shelf.find(NAME).path == shown.model


def test_a_stopped_run_goes_on_exactly_also_after_the_server_was_started_anew(trainings, service, tmp_path):
    config = config_from_dict(DreamBoothConfig, recipe(trainings, SHORT | {"sample_every_steps": 0}))
    assert dreambooth.train(trainings._opened(NAME), dreambooth.base_model(), config).finished
    expected = losses(trainings)

    other = SessionTrainings(service, tmp_path / "other")
    other.create(NAME)
    other.add_photos(NAME, dreambooth.sample_photos("monster", tmp_path / "photos"))
    other.start(NAME, "embedded", recipe(other, SHORT | {"sample_every_steps": 0}))
    until_step(other, 2)
    other.stop(NAME)
    stopped = until_over(other)
    assert stopped.state == "stopped" and stopped.resumable and 2 <= stopped.step < 9
    assert f"saved at step {stopped.step} of 9" in stopped.line

    anew = SessionTrainings(service, tmp_path / "other")
    assert anew.look(NAME).step == stopped.step and anew.look(NAME).curve == stopped.curve
    anew.resume(NAME)
    assert until_over(anew).state == "finished"
    assert losses(anew) == expected


def test_a_killed_child_is_said_in_one_line_and_resumes_and_closing_saves_and_leaves_none(trainings, service):
    trainings.start(NAME, "embedded", recipe(trainings, LONG), pause_drawing=True)
    assert service.paused
    until_step(trainings, 6)
    os.kill(trainings._run.process.pid, signal.SIGKILL)
    failed = until_over(trainings)
    assert failed.state == "failed" and failed.resumable and failed.step >= 4
    assert "ran out of memory (exit -9)" in failed.problem and "\n" not in failed.problem
    assert "LoRA" in failed.fix and "Resume" in failed.fix
    assert not service.paused
    trainings.resume(NAME)
    shown = until_step(trainings, failed.step + 1)
    assert shown.problem == ""
    pid = trainings._run.process.pid
    trainings.close()
    assert gone(pid) and not trainings.running()
    closed = trainings.look(NAME)
    assert (closed.state, closed.problem) == ("stopped", "") and closed.step >= shown.step


SERVER = """
import sys, time
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.workflows.trainings import SessionTrainings
import json
trainings = SessionTrainings(Service(Shelf(LibraryFolders())), sys.argv[1])
trainings.start(sys.argv[2], "embedded", json.loads(sys.argv[3]))
while trainings.look(sys.argv[2]).step < 4:
    time.sleep(0.05)
print(trainings._run.process.pid, flush=True)
time.sleep(600)
"""


def test_a_server_that_is_killed_leaves_no_child_and_a_session_that_resumes(trainings):
    wanted = json.dumps(recipe(trainings, LONG | {"save_every_steps": 0}))
    command = [sys.executable, "-c", SERVER, str(trainings.root), NAME, wanted]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        pid = int(server.stdout.readline())
        assert trainings.look(NAME).state == "elsewhere"
        server.kill()
    until("the child's end", lambda: gone(pid))
    shown = trainings.look(NAME)
    assert shown.state == "stopped" and shown.resumable and shown.step >= 4


def test_what_cannot_be_trained_is_refused_before_anything_starts(trainings, tmp_path):
    values = recipe(trainings, SHORT)
    for changes, message in (
        ({"unet_steps": -1}, "unet_steps is -1"),
        ({"instance_prompt": " "}, "instance_prompt is empty"),
        ({"nonsense": 1}, "nonsense is not a setting"),
    ):
        with pytest.raises(UserError, match=message):
            trainings.start(NAME, "embedded", values | changes)
    secret = tmp_path / "there.safetensors"
    secret.write_bytes(b"x")
    for path in (secret, tmp_path / "not-there.safetensors", "/etc/passwd"):
        with pytest.raises(UserError, match="There is no base model"):  # the same for files that are there
            trainings.start(NAME, str(path), values)
    trainings.create("empty")
    with pytest.raises(UserError, match="has no photos"):
        trainings.start("empty", "embedded", values)
    for name in ("../x", "no such", ""):
        with pytest.raises(UserError):
            trainings.look(name)
    with pytest.raises(UserError, match="no run to resume"):
        trainings.resume(NAME)
    assert not trainings.running()


def test_photos_are_shown_with_their_crops_captions_and_faults(trainings, tmp_path):
    (tmp_path / "note.jpg").write_bytes(b"no picture")
    lines = trainings.add_photos(NAME, [tmp_path / "note.jpg"])
    assert lines[0] == "0 photos added, 1 refused." and "refused: note.jpg" in lines[1]
    photos = trainings.photos(NAME)
    assert len(photos) == 5 and photos[0].crop.size == (192, 192)
    trainings.set_caption(NAME, photos[0].name, "on a hill")
    trainings.delete_photo(NAME, photos[1].name)
    after = trainings.photos(NAME)
    assert [one.name for one in after] == [photos[0].name, *(one.name for one in photos[2:])]
    assert after[0].caption == "on a hill"
    with pytest.raises(UserError, match="has no photo"):
        trainings.delete_photo(NAME, "../../session.json")


def test_suggestions_suit_the_base_model_and_the_method(trainings):
    embedded = trainings.suggested(NAME)
    assert (embedded.base_model, embedded.values["resolution_px"], embedded.values["instance_prompt"]) == (
        "embedded", 64, "",
    )  # fmt: skip
    stock = trainings.suggested(NAME, "1.5", "full").values
    assert (stock["resolution_px"], stock["unet_steps"], stock["unet_learning_rate"]) == (512, 1500, 2e-6)
    lora = trainings.suggested(NAME, "1.5", "lora").values
    assert (lora["method"], lora["unet_learning_rate"]) == ("lora", 1e-4)
    names = [one.name for one in trainings.settings()]
    assert names == list(embedded.values)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (-9, "out of memory (exit -9)"),
        (137, "out of memory"),
        (-15, "SIGTERM"),
        (3, "without a word (exit 3)"),
    ],
)
def test_an_end_without_words_is_explained(status, said):
    message, fix = why_it_ended(status)
    assert said in message and "Resume" in fix


def test_the_curve_follows_a_growing_log_and_begins_anew_with_a_new_one(tmp_path):
    session = dreambooth.open_session("growing", tmp_path)
    log = session.logs / "metrics.jsonl"

    def line(step, loss=0.5):
        return json.dumps({"stage": "U-Net", "stage_step": step, "loss": loss}) + "\n"

    trace, waiting = LossTrace(session), None
    assert trace.svg() == ""
    log.write_text(line(1) + line(2) + line(3)[:7])
    two = trace.svg()
    assert "step 2" in two
    with log.open("a") as handle:
        handle.write(line(3)[7:])
    assert "step 3" in trace.svg()
    assert trace.svg(since=time.time() + 60) == ""  # of a run before the last one
    waiting = LossTrace(session, skip_present=True)
    assert waiting.svg() == ""
    (session.logs / "new").write_text(line(1) + line(2))
    os.replace(session.logs / "new", log)
    assert trace.svg() == two == waiting.svg()
