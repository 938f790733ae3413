from __future__ import annotations

import pytest

from fastsd_lib.sessions.checkpoints import write_checkpoint
from fastsd_lib.sessions.free_space import trash_dir
from fastsd_lib.sessions.lock import session_lock
from fastsd_lib.widgets.free_space import FreeSpace
from fastsd_lib.workflows import dreambooth


@pytest.fixture
def trained(session):
    """Three checkpoints of one run, of which two are older than need be."""
    for step in (10, 20, 30):
        write_checkpoint(
            session.checkpoints, step=step, total_steps=40, stage="U-Net", run="r",
            files={"weights": lambda: [bytes(200_000)]},
        )  # fmt: skip
    return session


@pytest.fixture
def widget(tmp_path, trained):
    return FreeSpace(tmp_path, "cat")


def steps(session) -> list[str]:
    return sorted(path.name for path in session.checkpoints.iterdir())


def test_sizes_are_shown_by_part_and_checkpoint_with_what_would_go(widget, trained):
    page = widget._usage.value
    assert page.count("can go: an older one") == 2 and "step_000030" in page
    assert "are free." in page
    assert widget.free_button.description.startswith("Free 4") and not widget.free_button.disabled
    assert steps(trained) == ["step_000010", "step_000020", "step_000030"]  # looking deletes nothing


def test_freeing_asks_first_and_keeps_photos_and_the_newest_checkpoint(widget, trained):
    widget.free_button.click()
    assert widget.free_button.description.startswith("Really free")
    assert len(steps(trained)) == 3
    widget.free_button.click()
    assert steps(trained) == ["step_000030"]
    assert len(dreambooth.photos(trained)) == 3
    assert "Freed 4" in widget._message.value
    assert widget.free_button.description == "Nothing to free" and widget.free_button.disabled


def test_keep_or_another_button_takes_the_question_back(widget, trained):
    widget.free_button.click()
    assert widget.keep_button.layout.display == ""
    widget.keep_button.click()
    assert not widget.free_button.description.startswith("Really")
    widget.free_button.click()
    widget.remove_button.click()
    assert widget.remove_button.description == "Really remove session"
    widget.free_button.click()  # asks anew
    assert len(steps(trained)) == 3 and trained.path.is_dir()


def test_a_session_in_use_is_never_touched(tmp_path, trained):
    with session_lock(trained.path, "training"):
        widget = FreeSpace(tmp_path, "cat")
        assert widget.free_button.disabled and widget.remove_button.disabled
        assert "In use, so nothing of it can go: training" in widget._usage.value
    widget = FreeSpace(tmp_path, "cat")
    widget.free_button.click()
    with session_lock(trained.path, "training"):  # began between the two presses
        widget.free_button.click()
        assert "This session is in use" in widget._message.value
    assert len(steps(trained)) == 3


def test_a_removed_session_waits_in_the_trash_until_that_is_emptied(tmp_path, widget, trained):
    dreambooth.open_session("other", tmp_path)
    widget = FreeSpace(tmp_path, "cat")
    widget.remove_button.click()
    widget.remove_button.click()
    assert not trained.path.exists() and widget.session.name == "other"
    (kept,) = trash_dir(tmp_path).iterdir()
    assert len(list((kept / "instance_images").glob("*.png"))) == 3
    assert widget.trash_button.description.startswith("Empty trash (")
    widget.trash_button.click()
    widget.trash_button.click()
    assert not list(trash_dir(tmp_path).iterdir()) and widget.trash_button.disabled


def test_all_sessions_are_measured_when_asked_and_an_empty_place_is_said(tmp_path, widget):
    dreambooth.open_session("other", tmp_path)
    assert widget._sizes.value == ""
    widget.measure_button.click()
    assert widget._sizes.value.index("<td>cat</td>") < widget._sizes.value.index("<td>other</td>")
    nothing = FreeSpace(tmp_path / "nowhere")
    assert "No session yet." in nothing._usage.value and nothing.free_button.disabled


def test_on_drive_its_own_trash_is_mentioned(tmp_path, photo_folder):
    root = tmp_path / "MyDrive"
    session = dreambooth.open_session("cat", root)
    (session.path / "cache").mkdir()
    (session.path / "cache" / "latents.safetensors").write_bytes(bytes(5000))
    widget = FreeSpace(root, "cat")
    widget.free_button.click()
    widget.free_button.click()
    assert "drive.google.com/drive/trash" in widget._message.value
