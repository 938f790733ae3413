from __future__ import annotations

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets.session_picker import SessionPicker
from fastsd_lib.workflows import dreambooth


def test_a_named_session_is_made_once_and_opened_ever_after(tmp_path):
    first = SessionPicker(tmp_path, "my-cat").session
    assert SessionPicker(tmp_path, "my-cat").session == first
    assert first.manifest.is_file()


def test_picking_another_line_changes_the_session_and_its_counts(tmp_path, session):
    dreambooth.open_session("empty", tmp_path)
    picker = SessionPicker(tmp_path, "empty")
    assert "<td>0</td>" in picker._facts.value
    picker.list.value = "cat"
    assert picker.session == session
    assert "<td>3</td>" in picker._facts.value


def test_create_makes_a_session_and_chooses_it(tmp_path):
    picker = SessionPicker(tmp_path, "first")
    picker.name.value = "second"
    picker.create_button.click()
    assert picker.session.name == picker.list.value == "second"
    assert {name for _, name in picker.list.options} == {"first", "second"}


def test_a_bad_name_is_explained_and_the_choice_stays(tmp_path):
    picker = SessionPicker(tmp_path, "first")
    picker.name.value = "../x"
    picker.create_button.click()
    assert "cannot be called" in picker._message.value and "type a name such as" in picker._message.value
    assert picker.session.name == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["Fast-Dreambooth"]


def test_without_a_name_the_newest_session_is_chosen_and_none_is_said_plainly(tmp_path):
    with pytest.raises(UserError, match="No session is chosen") as error:
        _ = SessionPicker(tmp_path).session
    assert "press Create" in error.value.fix
    dreambooth.open_session("only", tmp_path)
    assert SessionPicker(tmp_path).session.name == "only"
