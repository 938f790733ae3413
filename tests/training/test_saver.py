import errno
import os
import shutil
import threading
import time
from collections import namedtuple

import psutil
import pytest
import torch
from safetensors.torch import load_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions.checkpoints import find_damage, list_checkpoints, newest_intact
from fastsd_lib.training.checkpoint import Snapshot
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.saver import HostBuffers, Saver

RUN = "r" * 16


def _snapshot(step, tensors, frozen=()):
    return Snapshot(step, "U-Net", {"unet.safetensors": tensors}, {}, {}, frozenset(frozen))


@pytest.fixture
def lines():
    return []


@pytest.fixture
def saver(tmp_path, lines):
    config = DreamBoothConfig("x", keep_checkpoints=2)
    return Saver(tmp_path, RUN, 100, config, lambda event: lines.append(event.facts[""]))


@pytest.fixture
def slow_disk(monkeypatch):
    """Syncing waits until the test lets it."""
    gate, real = threading.Event(), os.fsync

    def fsync(handle):
        assert gate.wait(30)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    yield gate
    gate.set()


@pytest.fixture
def full_disk(monkeypatch):
    """Every sync fails while `.full` is set, with `.number`."""
    real = os.fsync

    class Disk:
        full, number = True, errno.ENOSPC

    def fsync(handle):
        if Disk.full:
            raise OSError(Disk.number, os.strerror(Disk.number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return Disk


def test_training_goes_on_while_the_disk_is_slow_and_what_is_saved_is_of_the_step_asked_for(
    saver, slow_disk, tmp_path
):
    weights = torch.arange(1000.0)
    saver.save(_snapshot(1, {"w": weights}))  # returns although nothing can be written
    weights.zero_()
    assert saver.latest is None and list_checkpoints(tmp_path) == []
    slow_disk.set()
    assert saver.finish().step == 1
    saved = load_file(saver.latest.path / "unet.safetensors")["w"]
    assert torch.equal(saved, torch.arange(1000.0))


def test_a_save_that_comes_too_early_waits_for_the_one_before_it_and_says_so(saver, slow_disk, lines):
    writing = lambda: sum(one.name == "checkpoint" for one in threading.enumerate())  # noqa: E731
    saver.save(_snapshot(1, {"w": torch.ones(4)}))
    other = threading.Thread(target=saver.save, args=(_snapshot(2, {"w": torch.ones(4)}),))
    other.start()
    other.join(0.3)
    assert other.is_alive() and writing() == 1
    assert lines == ["step 2 waits: the disk is still writing step 1"]
    slow_disk.set()
    other.join(30)
    assert saver.finish().step == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ENOTCONN, errno.EDQUOT, errno.EROFS])
def test_a_save_that_fails_in_mid_run_is_one_line_and_the_next_is_tried(
    saver, full_disk, lines, tmp_path, number
):
    full_disk.full, full_disk.number = False, number
    saver.save(_snapshot(1, {"w": torch.ones(4)}))
    saver.wait()
    full_disk.full = True
    saver.save(_snapshot(2, {"w": torch.ones(4)}))
    saver.wait()
    saver.tell()
    why = os.strerror(number)
    assert lines == [f"step 2 not saved: {why}; training goes on, safe up to step 1"]
    assert [one.step for one in list_checkpoints(tmp_path)] == [1] and find_damage(saver.latest.path) == ""
    full_disk.full = False
    saver.save(_snapshot(3, {"w": torch.ones(4)}))
    assert saver.finish().step == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000001", "step_000003"]


def test_the_last_save_of_a_run_must_not_fail(saver, full_disk, lines):
    saver.save_now(_snapshot(100, {"w": torch.ones(4)}))
    assert lines == ["step 100 not saved: No space left on device; nothing is saved yet"]
    with pytest.raises(UserError, match=r"step 100 could not be written.*No space left") as caught:
        saver.finish()
    assert "--resume: it continues from the start" in caught.value.fix
    full_disk.full = False
    saver.save_now(_snapshot(50, {"w": torch.ones(4)}))
    full_disk.full = True
    saver.save_now(_snapshot(100, {"w": torch.ones(4)}))
    with pytest.raises(UserError) as caught:
        saver.finish()
    assert "--resume: it continues from step 50" in caught.value.fix


def test_a_save_that_would_hardly_fit_is_not_begun(saver, monkeypatch, lines, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10 << 30, 10 << 30, 5 << 20))
    saver.save(_snapshot(1, {"w": torch.ones(1 << 20)}))  # 4 MiB, of which 1.3 times are wanted
    saver.wait()
    saver.tell()
    assert "No space left on device (5 MiB are free, a checkpoint needs 5)" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_when_memory_is_short_training_waits_for_the_disk_and_is_told_once(
    saver, monkeypatch, slow_disk, lines
):
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(1000))
    slow_disk.set()
    for step in (1, 2):
        saver.save(_snapshot(step, {"w": torch.ones(4096)}))
        assert saver.latest.step == step  # without any waiting
    assert lines == ["memory is short: training waits while each checkpoint is written"]
    assert saver._buffers._held == {}


def test_buffers_are_made_once(saver):
    weights = {"w": torch.ones(64), "half": torch.ones(3, dtype=torch.bfloat16)}
    buffers = HostBuffers()
    first = buffers.copied(_snapshot(1, weights)).tensors["unet.safetensors"]
    weights["w"].fill_(7)
    again = buffers.copied(_snapshot(2, weights)).tensors["unet.safetensors"]
    assert torch.equal(again["w"], weights["w"])
    assert {name: one.data_ptr() for name, one in first.items()} == {
        name: one.data_ptr() for name, one in again.items()
    }
    assert first["w"].data_ptr() != weights["w"].data_ptr()


def test_what_a_stage_does_not_change_is_not_copied(saver):
    weights = {"w": torch.ones(64)}
    copied = HostBuffers().copied(_snapshot(1, weights, frozen=["unet.safetensors"]))
    assert copied.tensors["unet.safetensors"]["w"].data_ptr() == weights["w"].data_ptr()


def test_the_newest_and_every_so_manieth_are_kept(tmp_path):
    config = DreamBoothConfig("x", keep_checkpoints=2, keep_every_steps=4)
    saver = Saver(tmp_path, RUN, 100, config, lambda event: None)
    for step in range(1, 11):
        saver.save(_snapshot(step, {"w": torch.ones(4)}))
    saver.finish()
    assert [one.step for one in list_checkpoints(tmp_path)] == [4, 8, 9, 10]


def test_whoever_asked_hears_of_each_checkpoint_once_it_is_safe(tmp_path):
    heard = []

    def on_saved(saved):
        heard.append((saved.step, newest_intact(tmp_path, RUN)[0] == saved))

    saver = Saver(tmp_path, RUN, 100, DreamBoothConfig("x"), lambda event: None, on_saved)
    for step in (1, 2, 3):
        saver.save(_snapshot(step, {"w": torch.ones(4)}))
    saver.finish()
    assert heard == [(1, True), (2, True), (3, True)]


def test_what_is_no_disk_s_fault_is_raised_in_the_training_thread(tmp_path):
    def on_saved(saved):
        raise ZeroDivisionError("in the listener")

    saver = Saver(tmp_path, RUN, 100, DreamBoothConfig("x"), lambda event: None, on_saved)
    saver.save(_snapshot(1, {"w": torch.ones(4)}))
    with pytest.raises(ZeroDivisionError):
        saver.finish()


# ------------------------------------------------------------------------------------- a whole run


def _same(one, other):
    return all(
        torch.equal(value, getattr(other, part).state_dict()[name])
        for part in ("unet", "text_encoder")
        for name, value in getattr(one, part).state_dict().items()
    )


def test_a_run_whose_disk_is_full_for_a_while_ends_as_if_it_had_not_been(job, full_disk):
    full_disk.full = False
    _, expected = job.run("whole")
    said = []

    def report(event):
        full_disk.full = event.task == "text encoder" and event.done >= 2
        said.append(event.facts.get(""))

    finished, parts = job.run("run", watch={"report": report})
    assert finished.finished and _same(parts, expected)
    assert "step 3 not saved: No space left on device; training goes on, nothing is saved yet" in said


def test_a_run_that_cannot_save_its_end_says_so_and_is_resumed_when_there_is_space(job, full_disk):
    full_disk.full = False
    _, expected = job.run("whole")

    def report(event):
        if event.task == "U-Net" and event.done >= 3 and not full_disk.full:
            while 6 not in [one.step for one in list_checkpoints(job.folder / "run/checkpoints")]:
                time.sleep(0.01)  # it is written beside the training
            for writing in [one for one in threading.enumerate() if one.name == "checkpoint"]:
                writing.join()  # it has its name before the folder is synced
            full_disk.full = True

    with pytest.raises(UserError, match="The checkpoint of step 9 could not be written") as caught:
        job.run("run", watch={"report": report})
    assert "continues from step 6" in caught.value.fix
    full_disk.full = False
    finished, parts = job.run("run")
    assert finished.finished and _same(parts, expected)


def test_a_loss_that_is_not_finite_leaves_the_checkpoints_before_it_and_saves_nothing(job):
    with pytest.raises(UserError, match="loss became"):
        job.run(text_encoder_steps=0, unet_learning_rate=1e30, unet_steps=6, save_every_steps=0)
    assert list_checkpoints(job.folder / "run/checkpoints") == []


def test_a_resumed_run_looks_in_the_other_folders_too(job):
    _, expected = job.run("whole")
    job.run("there", should_stop=lambda: job.steps_taken("there") >= 6)
    elsewhere = job.folder / "there/checkpoints"
    finished, parts = job.run("here", watch={"also": [elsewhere]})
    assert finished.finished and _same(parts, expected)
    assert job.steps_taken("here") == 3
