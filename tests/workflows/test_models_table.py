"""The table of what lies on a Drive: every model by its header, every problem as a row, and an end on any Drive."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy
import pytest
import safetensors.numpy

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.core.stopping import TrainingStopped
from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER
from fastsd_lib.workflows import dreambooth, model_downloads, model_rows, models
from fastsd_lib.workflows.model_rows import lying_there, row_of, size_words

LORA, CONTROL = (
    EXTRAS_FOLDER / "Lora/tiny_night.safetensors",
    EXTRAS_FOLDER / "ControlNet/tiny_canny.safetensors",
)


def lora(path: Path, width: int) -> Path:
    """As kohya names it; the text that it reads is `width` wide, which tells its base."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {"lora_down.weight": (4, width), "lora_up.weight": (320, 4), "alpha": ()}
    arrays = {f"{name}.{end}": numpy.zeros(shape, "float16") for end, shape in tensors.items()}
    safetensors.numpy.save_file(arrays, path)
    return path


def copied(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return target


def by_name(rows) -> dict:
    return {row.path.name: row for row in rows}


@pytest.fixture
def drive(tmp_path):
    """A Drive as people have it: A1111's folders, those of the older notebooks, sessions, photos."""
    root = tmp_path / "MyDrive"
    copied(LORA, root / "models/Lora/night.safetensors")
    lora(root / "models/Lora/people/portrait.safetensors", 2048)
    copied(CONTROL, root / "models/ControlNet/edges.safetensors")
    lora(root / "sd/stable-diffusion-webui/models/Lora/old.safetensors", 768)
    (root / "models/Stable-diffusion/pipeline").parent.mkdir(parents=True)
    os.symlink(EMBEDDED_FOLDER, root / "elsewhere")
    (root / "photos").mkdir()
    lora(root / "photos/not-asked-for.safetensors", 768)
    return root


def test_every_model_is_told_from_its_header_with_the_base_that_it_fits(drive):
    rows = by_name(lying_there(drive))
    assert set(rows) == {"night.safetensors", "portrait.safetensors", "edges.safetensors", "old.safetensors"}
    portrait, old = rows["portrait.safetensors"], rows["old.safetensors"]
    assert (portrait.kind, portrait.family, portrait.dtype, portrait.problem) == ("lora", "sdxl", "F16", "")
    assert (portrait.base, portrait.sort, old.base) == ("SDXL", "LoRA", "SD 1.x")
    assert portrait.size_bytes == portrait.path.stat().st_size
    assert rows["edges.safetensors"].kind == "controlnet"


def test_a_pipeline_folder_is_one_row_and_its_parts_are_none(drive):
    shutil.copytree(EMBEDDED_FOLDER, drive / "models/Stable-diffusion/mine")
    found = [row for row in lying_there(drive) if "Stable-diffusion" in str(row.path)]
    assert [(row.path.name, row.kind, row.family) for row in found] == [("mine", "checkpoint", "sd1")]


def test_the_models_of_sessions_stand_in_it_and_their_resumable_states_do_not(drive):
    session = dreambooth.open_session("cat", drive)
    lora(session.path / "cat.safetensors", 768)
    lora(session.checkpoints / "step_000010/unet.safetensors", 768)
    lora(drive / "models/checkpoints/of-comfyui.safetensors", 768)  # elsewhere it is a folder like others
    names = set(by_name(lying_there(drive)))
    assert (
        "cat.safetensors" in names and "unet.safetensors" not in names and "of-comfyui.safetensors" in names
    )


def test_what_is_wrong_with_a_file_is_its_row_and_the_others_are_told_all_the_same(drive):
    folder = drive / "models/Stable-diffusion"
    whole = copied(LORA, folder / "whole.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.safetensors").touch()
    (folder / "page.safetensors").write_text("<!DOCTYPE html><title>Sign in</title>" + " " * 500)
    (folder / "half.safetensors.part").write_bytes(whole[:500])
    (folder / ".model.partial.safetensors").write_bytes(whole[:500])
    safetensors.numpy.save_file({"weights": numpy.zeros((3, 3))}, folder / "other.safetensors")
    os.mkfifo(folder / "pipe.ckpt")
    rows = by_name(lying_there(drive))
    assert not rows["whole.safetensors"].problem
    for name, said in (
        ("cut.safetensors", "not a whole"),
        ("empty.safetensors", "0 bytes"),
        ("page.safetensors", "web page"),
        ("half.safetensors.part", "unfinished"),
        (".model.partial.safetensors", "unfinished"),
        ("other.safetensors", "weights"),
        ("pipe.ckpt", "no ordinary file"),
    ):
        assert said in rows[name].problem, (name, rows[name].problem)
        assert rows[name].problem.count(str(drive)) == 0  # the path has a column of its own


def test_links_are_followed_inside_of_the_folder_once_and_never_out_of_it(drive, tmp_path):
    lora(tmp_path / "outside/secret.safetensors", 768)
    folder = drive / "models/Lora"
    os.symlink(tmp_path / "outside", folder / "out")
    os.symlink(tmp_path / "outside/secret.safetensors", folder / "out.safetensors")
    os.symlink(folder, folder / "people/back-up")
    os.symlink(drive / "photos", folder / "inside")
    os.symlink(folder / "gone.safetensors", folder / "dead.safetensors")
    rows = lying_there(drive)
    told = by_name(rows)
    assert "leads out" in told["out"].problem and "leads out" in told["out.safetensors"].problem
    assert "nowhere" in told["dead.safetensors"].problem
    assert "not-asked-for.safetensors" in told and "secret.safetensors" not in told
    assert len(rows) == len({os.path.realpath(row.path) if not row.problem else row.path for row in rows})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_row(drive):
    (drive / "models/Lora/people").chmod(0)
    assert "cannot be read" in by_name(lying_there(drive))["people"].problem


def test_twenty_thousand_files_are_walked_in_seconds_with_progress(tmp_path):
    for number in range(20):
        (tmp_path / f"models/{number}").mkdir(parents=True)
        for name in range(1000):
            os.close(os.open(tmp_path / f"models/{number}/{name}.txt", os.O_CREAT))
    copied(LORA, tmp_path / "models/7/here.safetensors")
    began = time.process_time()
    assert [row.path.name for row in lying_there(tmp_path)] == ["here.safetensors"]
    assert time.process_time() - began < 5


def test_the_walk_ends_after_so_many_names_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(model_rows, "MOST_ENTRIES", 50)
    (tmp_path / "models").mkdir()
    for name in range(60):
        (tmp_path / f"models/{name}.txt").touch()
    (row,) = lying_there(tmp_path)
    assert "more than 50 names" in row.problem and "ask for one of the folders" in row.fix


def test_long_work_tells_where_it_is_and_short_work_nothing(drive, monkeypatch):
    events: list[ProgressEvent] = []
    lying_there(drive, events.append)
    assert events == []
    monkeypatch.setattr(model_rows, "QUICK_S", -1)
    rows = lying_there(drive, events.append)
    reading = [event for event in events if event.task == "reading headers"]
    assert [event.done for event in reading] == list(range(1, len(rows) + 1))
    assert any(event.task == "looking" and "names" in str(event.facts[""]) for event in events)


def test_a_root_that_is_no_drive_is_walked_as_it_is_and_one_that_is_not_there_holds_nothing(drive, tmp_path):
    assert set(by_name(lying_there(drive / "photos"))) == {"not-asked-for.safetensors"}
    assert lying_there(tmp_path / "nowhere") == []


def test_asked_for_a_folder_everything_in_it_is_told_and_a_path_of_nothing_is_a_mistake(drive):
    assert "not-asked-for.safetensors" in by_name(models.identify(drive))
    assert [row.kind for row in models.identify([EMBEDDED_FOLDER, LORA])] == ["checkpoint", "lora"]
    with pytest.raises(UserError, match="no file or folder") as caught:
        models.identify(drive / "nothing.safetensors")
    assert "check the path" in str(caught.value)


def test_a_file_that_vanishes_is_a_row(tmp_path):
    assert row_of(tmp_path / "gone.safetensors").problem


def test_no_name_in_the_table_steers_a_terminal(drive):
    copied(LORA, drive / "models/Lora/red\x1b[31m.safetensors").write_bytes(b"")
    row = next(row for row in lying_there(drive) if "red" in row.path.name)
    assert "\x1b" not in row.complaint and "\\x1b" in row.complaint


@pytest.mark.parametrize(("size", "words"), [(5, "5 bytes"), (2656, "2.66 kB"), (2_132_625_894, "2.13 GB"),
                                             (6_940_000_000, "6.94 GB")])  # fmt: skip
def test_sizes_are_said_as_download_pages_say_them(size, words):
    assert size_words(size) == words


def test_a_stop_ends_all_downloads_at_once(tmp_path, monkeypatch):
    """The panel's Stop comes out of a report; it is no failure of one source after which the next is tried."""
    asked = []

    def stopped(word, *rest):
        asked.append(word)
        raise TrainingStopped("Stopped.")

    monkeypatch.setattr(model_downloads, "download", stopped)
    with pytest.raises(TrainingStopped):
        models.download("https://a.example/1.pt https://a.example/2.pt", tmp_path)
    assert asked == ["https://a.example/1.pt"]
