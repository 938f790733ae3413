from __future__ import annotations

import pytest

from fastsd_lib.images.captions import read_caption
from fastsd_lib.widgets.caption_editor import UNSAVED, CaptionEditor
from fastsd_lib.workflows import dreambooth

NAMES = ["IMG_0001.png", "in the garden.png", "on a sofa.png"]


@pytest.fixture
def editor(session):
    dreambooth.caption_photos(session, "a photo of sks cat")
    return CaptionEditor(session, "a photo of sks cat")


def on_disk(editor):
    return {p.name: read_caption(editor.session.captions, p) for p in dreambooth.photos(editor.session)}


def test_the_first_photo_is_shown_with_its_caption_and_whole_prompt(editor):
    assert editor.chosen == "IMG_0001.png" and editor.text.value == ""
    editor.list.value = "on a sofa.png"
    assert editor.text.value == "on a sofa"
    assert "a photo of sks cat, on a sofa" in editor.prompt.value


def test_typing_marks_the_photo_and_saving_clears_the_mark(editor):
    editor.text.value = "asleep"
    assert editor.unsaved == ["IMG_0001.png"]
    assert editor.list.options[0] == (UNSAVED + "IMG_0001.png", "IMG_0001.png")
    assert "sks cat, asleep" in editor.prompt.value
    assert on_disk(editor)["IMG_0001.png"] == ""
    editor.save_button.click()
    assert editor.unsaved == [] and editor.save_button.disabled
    assert on_disk(editor)["IMG_0001.png"] == "asleep"
    assert editor.list.options[0] == ("IMG_0001.png", "IMG_0001.png")


def test_a_draft_survives_looking_at_another_photo(editor):
    editor.text.value = "asleep"
    editor.next_button.click()
    assert editor.chosen == NAMES[1] and editor.text.value == "in the garden"
    editor.previous_button.click()
    assert editor.text.value == "asleep" and editor.unsaved == [NAMES[0]]


def test_previous_and_next_go_round(editor):
    editor.previous_button.click()
    assert editor.chosen == NAMES[-1]
    editor.next_button.click()
    assert editor.chosen == NAMES[0]


def test_replace_in_all_is_a_draft_until_save_all(editor):
    editor.find.value, editor.replace.value = "a sofa", "the sofa"
    editor.replace_button.click()
    assert editor.unsaved == ["on a sofa.png"]
    assert on_disk(editor)["on a sofa.png"] == "on a sofa"
    editor.save_all_button.click()
    assert on_disk(editor)["on a sofa.png"] == "on the sofa"


def test_prefix_and_suffix_reach_every_caption_and_undo_takes_them_back(editor):
    before = dict(editor.texts)
    editor.prefix.value, editor.suffix.value = "sitting, ", ", at noon"
    editor.add_button.click()
    assert editor.texts["on a sofa.png"] == "sitting, on a sofa, at noon"
    assert editor.save_all_button.description == "Save all (3)"
    editor.undo_button.click()
    assert editor.texts == before and editor.unsaved == []
    assert editor.text.value == before[editor.chosen]
    editor.undo_button.click()  # once more brings the change back
    assert editor.texts["on a sofa.png"] == "sitting, on a sofa, at noon"


def test_undo_takes_back_all_that_was_typed_into_one_caption(editor):
    editor.list.value = "on a sofa.png"
    for text in ("on a sofa,", "on a sofa, a", "on a sofa, asleep"):
        editor.text.value = text
    editor.undo_button.click()
    assert editor.text.value == "on a sofa" and editor.unsaved == []


def test_what_cannot_be_done_is_said(editor):
    editor.replace_button.click()
    assert "what to find" in editor.status.value
    editor.find.value = "zebra"
    editor.replace_button.click()
    assert "No caption has" in editor.status.value
    editor.add_button.click()
    assert "what to put before or after" in editor.status.value


def test_a_prompt_that_is_longer_than_a_model_reads_says_so(editor):
    editor.text.value = "word " * 68  # with the instance prompt: 74 pieces
    assert "tokens" not in editor.prompt.value
    editor.text.value = "word " * 70
    assert "At least 76 tokens; a model reads 75" in editor.prompt.value


def test_captions_without_a_photo_are_named(session):
    (session.captions / "gone.txt").write_text("asleep")
    assert "Without a photo: gone.txt." in CaptionEditor(session, "a photo of sks cat").status.value


def test_markup_in_a_caption_is_shown_as_text(editor):
    editor.text.value = "<b>bold</b>"
    assert "&lt;b&gt;bold" in editor.prompt.value and "<b>" not in editor.prompt.value


def test_a_session_without_photos_says_so(empty_session):
    assert "No photos yet" in CaptionEditor(empty_session, "a photo of sks cat").preview.value
