"""The canvas in a real browser: what is painted over is drawn anew, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from page_driver import OnPage, noise, pixels
from page_server import PHONE, running_browser, served_page
from PIL import Image

QUICK = {"prompt": "a red star", "steps": 3, "seed": 7}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served_page(tmp_path_factory.mktemp("server")) as served:
        yield served.url


@pytest.fixture(scope="module")
def chromium():
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return noise(tmp_path_factory.mktemp("photos") / "photo.png", 80, 64)


@pytest.fixture
def on_page(chromium, url):
    with OnPage.open(chromium, url) as opened:
        yield opened


def test_what_is_painted_with_the_mouse_is_drawn_anew_and_every_other_pixel_stays(on_page, photo):
    on_page.show("img2img", "inpaint")
    on_page.give("img2img_inpaint_picture", photo, (80, 64))
    on_page.set(**QUICK)
    on_page.press("img2img_detect_image_size_btn")
    on_page.page.wait_for_function("document.querySelector('#img2img_width input').value === '80'")
    on_page.stroke("img2img_inpaint_picture", (0.3, 0.4), (0.6, 0.7))
    painted = on_page.layer("img2img_inpaint_picture")
    before, after = pixels(Image.open(photo)), pixels(on_page.generate())
    assert after.shape == before.shape == (64, 80, 3) and 50 < painted.sum() < 800
    changed = (before != after).any(axis=2)
    assert not changed[~painted].any() and changed[painted].mean() > 0.9


def test_the_mask_has_the_pixels_of_a_picture_that_is_not_square(on_page, tmp_path):
    on_page.show("img2img", "inpaint")
    on_page.give("img2img_inpaint_picture", noise(tmp_path / "wide.png", 700, 500), (700, 500))
    on_page.stroke("img2img_inpaint_picture", (0.5, 0.5), (0.5, 0.5))
    rows, columns = np.nonzero(on_page.layer("img2img_inpaint_picture"))
    assert on_page.layer("img2img_inpaint_picture").shape == (500, 700)
    width = 500 // 12 + 1  # the brush begins at a twelfth of the short side
    assert abs(rows.mean() - 250) < 1.5 and abs(columns.mean() - 350) < 1.5
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == width
    on_page.choose("img2img_inpaint_full_res", "Only masked")
    on_page.set(**QUICK)
    before, after = pixels(Image.open(tmp_path / "wide.png")), pixels(on_page.generate())
    changed = (before != after).any(axis=2)
    assert after.shape == (500, 700, 3)
    assert changed.any() and not changed[~on_page.layer("img2img_inpaint_picture")].any()


def test_undo_redo_erase_invert_and_clear(on_page, photo):
    canvas = "img2img_inpaint_picture"
    on_page.show("img2img", "inpaint")
    on_page.give(canvas, photo, (80, 64))
    tool = on_page.page.locator(f"#{canvas}").get_by_label
    on_page.stroke(canvas, (0.2, 0.5), (0.8, 0.5))
    line = on_page.layer(canvas)
    on_page.page.keyboard.press("e")
    on_page.stroke(canvas, (0.5, 0.2), (0.5, 0.8))
    cut = on_page.layer(canvas)
    assert cut.sum() < line.sum() and not (cut & ~line).any()

    def becomes(expected):
        for _ in range(50):
            if (on_page.layer(canvas) == expected).all():
                return True
            on_page.page.wait_for_timeout(50)
        return False

    on_page.page.keyboard.press("Control+z")
    assert becomes(line)
    tool("Redo (Ctrl+Y)").click()
    assert becomes(cut)
    tool("Turn the mask round").click()
    assert becomes(~cut)
    tool("Clear the drawing").click()
    assert becomes(np.zeros_like(cut)) and tool("Redo (Ctrl+Y)").is_disabled()


def test_zoomed_in_the_brush_still_meets_the_pixels_under_it(on_page, photo):
    canvas = "img2img_inpaint_picture"
    on_page.show("img2img", "inpaint")
    on_page.give(canvas, photo, (80, 64))
    on_page.page.mouse.move(*on_page.point(canvas, (0.25, 0.25)))
    on_page.page.keyboard.down("Shift")
    for _ in range(5):
        on_page.page.mouse.wheel(0, -100)
    on_page.page.keyboard.up("Shift")
    for _ in range(8):
        on_page.page.keyboard.press("[")
    on_page.page.locator(f"#{canvas} .view").focus()
    for _ in range(8):
        on_page.page.keyboard.press("[")  # down to one pixel
    on_page.stroke(canvas, (20.5 / 80, 16.5 / 64), (20.5 / 80, 16.5 / 64))
    assert np.argwhere(on_page.layer(canvas)).tolist() == [[16, 20]]


def test_a_finger_paints_on_a_phone_and_two_fingers_do_not(chromium, url, photo):
    canvas = "img2img_inpaint_picture"
    with OnPage.open(chromium, url, PHONE) as phone:
        phone.show("img2img", "inpaint")
        phone.give(canvas, photo, (80, 64))
        fingers = phone.page.context.new_cdp_session(phone.page)

        def touch(kind, *points):
            spots = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": spots})

        start, end = phone.point(canvas, (0.3, 0.5)), phone.point(canvas, (0.7, 0.5))
        touch("touchStart", start)
        for share in (0.25, 0.5, 0.75, 1):
            touch("touchMove", (start[0] + (end[0] - start[0]) * share, start[1]))
        touch("touchEnd")
        phone.page.wait_for_function(
            f"!document.querySelector('#{canvas}').querySelector('[data-do=undo]').disabled"
        )
        painted = phone.layer(canvas)
        assert painted.shape == (64, 80) and painted[32, 26:54].all() and not painted[:20].any()
        zoom = phone.page.locator(f"#{canvas} .zoomed").inner_text()
        touch("touchStart", start, end)
        touch("touchMove", (start[0] - 20, start[1]), (end[0] + 20, end[1]))
        touch("touchEnd")
        assert phone.page.locator(f"#{canvas} .zoomed").inner_text() != zoom
        assert (phone.layer(canvas) == painted).all()
        wide = phone.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"]
