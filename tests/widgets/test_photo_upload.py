from __future__ import annotations

from datetime import datetime, timezone

import ipywidgets

from fastsd_lib.widgets.photo_upload import PhotoUpload, uploaded_files


def upload(widget: PhotoUpload, name: str, content: bytes) -> None:
    """What a page does after the user chose a file, with either major version of ipywidgets."""
    if isinstance(widget.upload.value, dict):
        widget.upload.metadata, widget.upload.data = [{"name": name}], [content]
        widget.upload._counter += 1
    else:
        one = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
        widget.upload.value = ({**one, "last_modified": datetime.now(timezone.utc)},)


def test_a_folder_is_added_and_each_refusal_says_why(empty_session, photo_folder):
    widget = PhotoUpload(empty_session)
    widget.folder.value = str(photo_folder)
    widget.folder_button.click()
    assert len(widget.photos) == 3
    assert "3 photos added, 1 refused." in widget._report.value
    assert "letter.jpg is not a photo" in widget._report.value
    assert sorted(path.name for path in photo_folder.iterdir()) == [
        "IMG_0001.png", "in the garden.png", "letter.jpg", "on a sofa.png",
    ]  # fmt: skip


def test_an_upload_lands_in_the_session_and_leaves_the_widget_empty(empty_session, photo_folder):
    widget = PhotoUpload(empty_session)
    content = (photo_folder / "on a sofa.png").read_bytes()
    upload(widget, "on a sofa.png", content)
    assert [photo.name for photo in widget.photos] == ["on a sofa.png"]
    assert not widget.upload.value
    upload(widget, "on a sofa.png", content)  # the same again is taken, and recognised
    assert len(widget.photos) == 1


def test_an_uploaded_name_cannot_leave_the_session(empty_session, photo_folder, tmp_path):
    widget = PhotoUpload(empty_session)
    upload(widget, "../../evil.png", (photo_folder / "on a sofa.png").read_bytes())
    assert [photo.parent for photo in widget.photos] == [empty_session.instance_images]
    assert not list(tmp_path.parent.glob("evil*"))


def test_both_shapes_of_the_upload_value_are_read():
    seven = {"a.png": {"metadata": {"name": "a.png"}, "content": b"x"}}
    eight = ({"name": "a.png", "content": memoryview(b"x")},)
    assert uploaded_files(seven) == uploaded_files(eight) == [("a.png", b"x")]


def test_delete_asks_first_and_takes_the_caption_along(session):
    widget = PhotoUpload(session)
    (session.captions / "on a sofa.txt").write_text("red\n")
    widget.delete_buttons["on a sofa.png"].click()
    assert len(widget.photos) == 3
    assert widget.delete_buttons["on a sofa.png"].description == "Really delete"
    widget.delete_buttons["on a sofa.png"].click()
    assert [photo.name for photo in widget.photos] == ["IMG_0001.png", "in the garden.png"]
    assert not (session.captions / "on a sofa.txt").exists()


def test_keep_takes_the_question_back(session):
    widget = PhotoUpload(session)
    widget.delete("on a sofa.png")
    keep = next(b for b in buttons(widget.box) if b.description == "Keep")
    keep.click()
    widget.delete_buttons["on a sofa.png"].click()
    assert len(widget.photos) == 3


def test_an_empty_folder_or_subject_adds_nothing_and_a_missing_folder_is_named(empty_session):
    widget = PhotoUpload(empty_session)
    widget.add_folder("  ")
    widget.add_sample("")
    assert widget._report.value == ""
    widget.add_folder("/no/such/folder")
    assert "/no/such/folder" in widget._report.value
    assert widget.photos == []


def test_the_sample_cat_is_added(empty_session):
    widget = PhotoUpload(empty_session)
    widget.add_sample("cat")
    assert len(widget.photos) >= 5
    assert len(widget.delete_buttons) == len(widget.photos)


def buttons(box: ipywidgets.Box) -> list[ipywidgets.Button]:
    found = [box] if isinstance(box, ipywidgets.Button) else []
    for child in getattr(box, "children", ()):
        found += buttons(child)
    return found
