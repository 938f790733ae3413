import errno
import json
import os
import shutil
import time
from dataclasses import replace
from itertools import count

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.lora_file import read_lora
from fastsd_lib.sessions import checkpoints, lock
from fastsd_lib.workflows import dreambooth, workbench


@pytest.fixture
def desk(tmp_path):
    return tmp_path / "local disk"


def _steps(folder):
    return [one.step for one in checkpoints.list_checkpoints(folder)]


def test_a_session_on_drive_is_trained_on_the_local_disk_and_ends_when_drive_holds_the_last_step(
    session,
    narrow_sd15,
    config,
    desk,
):
    said = []
    done = dreambooth.train(session, narrow_sd15, config, local_folder=desk, report=said.append)
    assert done.path.is_relative_to(desk)
    assert _steps(session.checkpoints)[-1] == 5
    assert not any(checkpoints.find_damage(path) for path in session.checkpoints.glob("step_*"))
    assert (session.logs / "metrics.jsonl").read_text().count("\n") == 5
    assert sorted(path.name for path in session.samples.glob("step_*"))[-1] == "step_000005_1.png"
    assert not (session.path / "cache").exists()  # what can be made again takes no room on Drive
    told = [event.facts["safe"] for event in said if "safe" in event.facts]
    assert told[-1] == "safe on the session's disk up to step 5"


def test_a_run_whose_machine_was_lost_goes_on_from_drive(session, narrow_sd15, config, desk):
    dreambooth.make_class_images(session, narrow_sd15, config)
    ticks = count(1)
    stopped = dreambooth.train(
        session, narrow_sd15, config, local_folder=desk, should_stop=lambda: next(ticks) >= 4
    )
    assert not stopped.finished
    shutil.rmtree(desk)
    said = []
    done = dreambooth.train(session, narrow_sd15, config, local_folder=desk, report=said.append)
    assert done.finished
    assert min(event.done for event in said if event.task == "U-Net") == stopped.step - 2
    assert (session.logs / "metrics.jsonl").read_text().count(
        "\n"
    ) == 5  # one log, as if nothing had happened
    assert not list(session.logs.glob("*.earlier-*"))


def test_when_drive_cannot_take_the_last_step_the_run_says_where_it_is_and_carries_it_next_time(
    session,
    narrow_sd15,
    config,
    desk,
    monkeypatch,
):
    dreambooth.make_class_images(session, narrow_sd15, config)
    plain = os.mkdir

    def full(path, *rest, **named):
        if str(path).startswith(str(session.checkpoints)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return plain(path, *rest, **named)

    monkeypatch.setattr(os, "mkdir", full)
    monkeypatch.setattr(workbench, "ARRIVE_S", 1.0)
    with pytest.raises(
        UserError, match=r"Step 5 is saved in .* only: nothing on .* yet; .* is full"
    ) as caught:
        dreambooth.train(session, narrow_sd15, config, local_folder=desk)
    assert "it is carried over" in caught.value.fix
    assert _steps(session.checkpoints) == []
    monkeypatch.undo()
    assert dreambooth.train(session, narrow_sd15, config, local_folder=desk).finished
    assert _steps(session.checkpoints) == [5]


def test_a_second_notebook_on_the_session_is_told_who_trains_there(session, narrow_sd15, config):
    with lock.session_lock(session.path, "training"):
        with pytest.raises(UserError, match="training"):
            dreambooth.train(session, narrow_sd15, config)


def test_a_lora_run_exports_its_adapters_alone_beside_the_whole_model(session, narrow_sd15, config, desk):
    config = replace(config, method="lora", lora_rank=4)
    done = dreambooth.train(session, narrow_sd15, config, local_folder=desk)
    made = dreambooth.export(session, narrow_sd15, done, local_folder=desk)
    assert made.path == session.model_file and made.path.is_file()
    assert session.lora_file.stat().st_size < made.path.stat().st_size / 4
    assert all(one.down.shape[0] == 4 for one in read_lora(session.lora_file).values())
    assert len(dreambooth.draw(made, "photo of sks cat", [1])) == 1


def test_a_run_whose_session_another_machine_took_over_saves_and_stops(
    session, narrow_sd15, config, monkeypatch
):
    dreambooth.make_class_images(session, narrow_sd15, config)
    monkeypatch.setattr(lock, "BEAT_S", 0.01)

    def taken(event):
        if event.task == "U-Net" and event.done == 0:
            other = {"token": "other", "host": "elsewhere", "boot": "b", "pid": 1, "started": "s",
                     "since": time.time(), "beat": time.time(), "doing": "training"}  # fmt: skip
            (session.path / lock.LOCK_FILE).write_text(json.dumps(other).ljust(1024))
            time.sleep(0.3)

    with pytest.raises(UserError, match=r"taken over by .*elsewhere.*Training stopped; step 3 is saved"):
        dreambooth.train(session, narrow_sd15, config, report=taken)
