from __future__ import annotations

import pytest

from fastsd_lib.images.crop import load_crops
from fastsd_lib.widgets.crop_preview import CropPreview
from fastsd_lib.workflows import dreambooth


@pytest.fixture
def preview(session):
    preview = CropPreview(session, resolution_px=160)
    preview.choice.value = "on a sofa.png"  # 120 x 80, its subject at the right
    return preview


def test_every_photo_gets_a_tile_and_the_chosen_one_its_square(preview):
    assert preview.tiles.value.count("<img") == 3
    assert preview.tiles.value.count("fsd-chosen") == 1
    assert preview.draft.edges == (40, 0, 120, 80)
    assert "left:33.333%;top:0.000%;width:66.667%;height:100.000%" in preview.view.value


def test_a_nudge_waits_for_save_and_then_outlives_a_new_detection(preview, session):
    preview.nudge_buttons["←"].click()
    assert preview.draft.edges == (36, 0, 116, 80)
    assert dreambooth.crop_photos(session)["on a sofa.png"].edges == (40, 0, 120, 80)
    preview.save_button.click()
    assert preview.save_button.disabled
    kept = load_crops(session.crops_file, dreambooth.photos(session))["on a sofa.png"]
    assert (kept.edges, kept.reason) == ((36, 0, 116, 80), "by hand")
    assert dreambooth.crop_photos(session)["on a sofa.png"] == kept


def test_the_square_stays_inside_the_photo_whatever_is_pressed(preview):
    for label in ["→", "↓", "Wider", "Closer", "Closer", "→", "↑", "←"] * 8 + ["Wider"] * 40:
        preview.nudge_buttons[label].click()
        left, top, right, bottom = preview.draft.edges
        assert 0 <= left < right <= 120 and 0 <= top < bottom <= 80
        assert right - left == bottom - top


def test_a_slider_moves_the_square_and_follows_it_back_inside(preview):
    preview.sliders["size"].value = 50
    preview.sliders["left"].value = 119
    assert preview.draft.edges == (70, 0, 120, 50)
    assert preview.sliders["left"].value == 70


def test_find_again_brings_back_what_detection_finds(preview):
    preview.sliders["size"].value = 30
    preview.again_button.click()
    assert preview.draft.edges == (40, 0, 120, 80)
    assert "Found by" in preview.status.value


def test_what_was_found_again_is_automatic_again_also_after_saving(preview, session):
    preview.nudge_buttons["←"].click()
    preview.save_button.click()
    preview.again_button.click()
    assert "Not saved yet" in preview.status.value and not preview.save_button.disabled
    preview.save_button.click()
    kept = load_crops(session.crops_file, dreambooth.photos(session))["on a sofa.png"]
    assert kept.edges == (40, 0, 120, 80) and kept.reason != "by hand"
    again = CropPreview(session)
    again.choice.value = "on a sofa.png"
    assert "Set by hand" not in again.status.value and "Found by" in again.status.value


def test_a_crop_that_must_be_enlarged_says_so(preview):
    assert "80 px, enlarged 2.0x" in preview.crop_view.value


def test_next_goes_round_and_leaves_an_unsaved_move_behind(preview):
    preview.nudge_buttons["←"].click()
    for _ in range(3):
        preview.next_button.click()
    assert preview.choice.value == "on a sofa.png"
    assert preview.draft.edges == (40, 0, 120, 80)


def test_an_empty_session_says_what_to_do(empty_session):
    assert "add some first" in CropPreview(empty_session).box.children[1].value
