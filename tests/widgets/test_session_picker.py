from __future__ import annotations

import zipfile

import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions.checkpoints import write_checkpoint
from fastsd_lib.sessions.lock import session_lock
from fastsd_lib.sessions.session import list_sessions, sessions_dir
from fastsd_lib.widgets.session_picker import SessionPicker, facts_of
from fastsd_lib.workflows import dreambooth


def test_a_named_session_is_made_once_and_opened_ever_after(tmp_path):
    first = SessionPicker(tmp_path, "my-cat").session
    assert SessionPicker(tmp_path, "my-cat").session == first
    assert first.manifest.is_file()


def test_picking_another_line_changes_the_session_and_its_counts(tmp_path, session):
    dreambooth.open_session("empty", tmp_path)
    picker = SessionPicker(tmp_path, "empty")
    assert "<td>0</td>" in picker._facts.value
    assert picker.list.index == 1  # the line that a page highlights
    picker.list.value = "cat"
    assert picker.list.index == 0
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


def checkpoint(session, step: int, total: int = 500) -> None:
    write_checkpoint(
        session.checkpoints, step=step, total_steps=total, stage="U-Net", run="r", files={"x": lambda: [b"x"]}
    )


def test_an_unfinished_run_says_where_it_stands_and_what_to_run(tmp_path, session):
    assert facts_of(session)["Training"] == "not yet"
    checkpoint(session, 120)
    picker = SessionPicker(tmp_path, "cat")
    assert "stopped at step 120 of 500: run step 8 to go on" in picker._facts.value
    assert picker.list.options[0][0].endswith("stopped at step 120 of 500")
    checkpoint(session, 500)
    assert facts_of(session)["Training"] == "finished at step 500"
    (session.checkpoints / "step_000500" / "manifest.json").unlink()  # broke off: the older one counts
    assert facts_of(session)["Training"].startswith("stopped at step 120")


def test_a_session_in_use_says_by_whom(tmp_path, session):
    with session_lock(session.path, "training"):
        picker = SessionPicker(tmp_path, "cat")
        assert "in use: training, process" in picker._facts.value
    assert "in use" not in SessionPicker(tmp_path, "cat")._facts.value


def test_a_folder_of_the_older_notebooks_is_shown_with_its_subject_and_its_model(tmp_path):
    folder = sessions_dir(tmp_path) / "phtmejhn"
    (folder / "instance_images").mkdir(parents=True)
    for number in (1, 2):
        Image.new("RGB", (96, 96), (number, 0, 0)).save(
            folder / "instance_images" / f"phtmejhn ({number}).jpg"
        )
    with zipfile.ZipFile(folder / "phtmejhn.ckpt", "w") as model:
        model.writestr("archive/data.pkl", b"")
    picker = SessionPicker(tmp_path)
    assert "<td>phtmejhn (2)</td>" in picker._facts.value
    assert f"<td>{folder / 'phtmejhn.ckpt'}</td>" in picker._facts.value


def test_a_session_that_cannot_be_opened_is_said_and_the_choice_stays(tmp_path, session):
    dreambooth.open_session("broken", tmp_path).manifest.write_text("{")
    picker = SessionPicker(tmp_path, "cat")
    picker.list.value = "broken"
    assert "not valid JSON" in picker._message.value
    assert picker.session == session and picker.list.value == "cat"


def test_listing_sessions_writes_into_none_but_the_chosen_one(tmp_path):
    older = sessions_dir(tmp_path) / "aaa"
    (older / "instance_images").mkdir(parents=True)
    picker = SessionPicker(tmp_path, "zebra")
    picker.name.value = "zoo"
    picker.create_button.click()
    assert [path.name for path in older.iterdir()] == ["instance_images"]
    picker.list.value = "aaa"  # now it is: what the older notebooks did not make is added
    assert (older / "session.json").is_file()


# ---------------------------------------------------------------------------------------------- import


@pytest.fixture
def shared(tmp_path):
    """A session that somebody zipped, as they do it by hand."""
    folder = tmp_path / "shared"
    Image.new("RGB", (96, 96), "teal").save(folder_of(folder, "their-dog") / "dog (1).jpg")
    archive = tmp_path / "their-dog.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for path in sorted(folder.rglob("*")):
            made.write(path, path.relative_to(folder))
    return archive


def folder_of(folder, name):
    photos = folder / name / "instance_images"
    photos.mkdir(parents=True)
    return photos


def test_an_imported_session_is_chosen_and_importing_it_again_opens_it_as_it_stands(tmp_path, shared):
    root = tmp_path / "root"
    picker = SessionPicker(root, "mine")
    picker.import_from("  ")  # as the cell does when nobody asked for one
    assert picker.session.name == "mine"
    picker.import_from(str(shared))
    assert picker.session.name == picker.list.value == "their-dog"
    assert "Imported" in picker._message.value and len(dreambooth.photos(picker.session)) == 1
    (picker.session.captions / "dog (1).txt").write_text("my own caption")
    again = SessionPicker(root, "mine")
    again.import_from(shared)
    assert again.session.name == "their-dog" and "opened as it stands" in again._message.value
    assert (again.session.captions / "dog (1).txt").read_text() == "my own caption"
    assert [one.name for one in list_sessions(root)] == ["mine", "their-dog"]


def test_the_import_button_takes_source_and_name_and_says_what_is_wrong(tmp_path, shared):
    picker = SessionPicker(tmp_path / "root", "their-dog")
    picker.source.value = str(shared)
    picker.import_button.click()
    assert "There is a session" in picker._message.value and "their-dog-2" in picker._message.value
    assert "--name" not in picker._message.value
    assert picker.session.name == "their-dog" and not picker.import_button.disabled
    picker.name.value = "a dog"
    picker.import_button.click()
    assert picker.session.name == "a dog" and picker.source.value == picker.name.value == ""
    picker.source.value = "/no/such.zip"
    picker.import_button.click()
    assert "There is no file or folder" in picker._message.value


def test_a_cell_that_imports_makes_no_other_session_and_may_run_twice(tmp_path, shared, monkeypatch):
    import IPython.display

    monkeypatch.setattr(IPython.display, "display", lambda box: None)
    for _ in range(2):
        picker = SessionPicker(tmp_path / "root", "demo", str(shared))
        picker.show()
        assert picker.session.name == "their-dog"
        assert [one.name for one in list_sessions(tmp_path / "root")] == ["their-dog"]
    with pytest.raises(UserError, match="There is no file or folder"):
        SessionPicker(tmp_path / "root", "demo", "/no/such.zip").show()
