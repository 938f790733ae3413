"""The tab img2img in a real browser: what is painted over is drawn anew, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from page_driver import PHONE, OnPage, browser, in_base64, noise, pixels, served_page
from PIL import Image

QUICK = {"prompt": "a red star", "steps": 3, "seed": 7}
BODY = {"prompt": "a red star", "steps": 3, "seed": 7, "sampler_name": "Euler a", "cfg_scale": 4,
        "width": 80, "height": 64}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served_page(tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
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


def test_img2img_draws_the_picture_that_the_api_draws(on_page, photo):
    on_page.show("img2img", "img2img")
    on_page.give("img2img_img2img_picture", photo, (80, 64))
    on_page.set(**QUICK, width=80, height=64, denoising_strength=0.6)
    drawn = on_page.generate()
    (same,) = on_page.api(**BODY, init_images=[in_base64(photo)], denoising_strength=0.6)
    assert (pixels(drawn) == pixels(same)).all()
    assert "Seed: 7, Size: 80x64" in on_page.info() and "Denoising strength: 0.6" in on_page.info()


def test_a_size_by_a_factor_is_that_of_the_picture(on_page, photo):
    on_page.show("img2img", "img2img")
    on_page.give("img2img_img2img_picture", photo, (80, 64))
    on_page.page.get_by_role("tab", name="Resize by").click()
    on_page.set(**QUICK)
    on_page.set(scale=1.5)
    assert on_page.generate().size == (120, 96)


def test_a_sketch_is_what_is_drawn_over(on_page, photo):
    on_page.show("img2img", "sketch")
    on_page.give("img2img_sketch_picture", photo, (80, 64))
    on_page.stroke("img2img_sketch_picture", (0.2, 0.5), (0.8, 0.5))
    painted = on_page.layer("img2img_sketch_picture")
    on_page.set(**QUICK, width=80, height=64, denoising_strength=0)
    drawn, before = pixels(on_page.generate()).astype(int), pixels(Image.open(photo)).astype(int)
    red = np.array([0xE2, 0x3B, 0x3B])
    inside = np.abs(drawn[painted] - red).mean()  # what the VAE makes of the sketch
    assert inside < np.abs(before[painted] - red).mean() / 2


def test_outpainting_adds_a_margin_and_keeps_the_picture(on_page, photo):
    on_page.show("img2img", "img2img")
    on_page.give("img2img_img2img_picture", photo, (80, 64))
    on_page.page.get_by_role("button", name="Outpainting").click()
    on_page.set(**QUICK, outpaint_left=32, outpaint_overlap=4)
    drawn, before = pixels(on_page.generate()), pixels(Image.open(photo))
    assert drawn.shape == (64, 112, 3)
    assert (drawn[:, 36:] == before[:, 4:]).all()
    assert (drawn[:, :32] != before[:, :1]).any(axis=2).mean() > 0.9  # not the stretched edge it began with


def test_what_is_missing_is_said_in_a_toast(on_page, photo):
    on_page.show("img2img", "inpaint")
    on_page.press("img2img_generate")
    assert "There is no picture to draw over in the tab Inpaint." in on_page.toast()
    on_page.give("img2img_inpaint_picture", photo, (80, 64))
    on_page.press("img2img_generate")
    on_page.page.get_by_text("Nothing is marked on the picture.").wait_for()


def test_a_file_that_is_no_picture_is_refused_where_it_was_dropped(on_page, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture at all")
    on_page.show("img2img", "img2img")
    on_page.give("img2img_img2img_picture", bad)
    on_page.page.get_by_text("The browser cannot show this file as a picture.").wait_for()


def test_a_result_is_sent_to_inpaint_with_its_fields(on_page, photo):
    on_page.show("img2img", "img2img")
    on_page.give("img2img_img2img_picture", photo, (80, 64))
    on_page.set(prompt="a blue heart", neg_prompt="a cat", steps=4, seed=11, width=80, height=64)
    drawn = on_page.generate()
    on_page.set(prompt="forgotten", neg_prompt="forgotten", steps=9)
    on_page.press("img2img_send_to_inpaint")
    on_page.holds("img2img_inpaint_picture", (80, 64))
    on_page.page.wait_for_function(
        "document.querySelector('#img2img_prompt textarea').value === 'a blue heart'"
    )
    assert on_page.page.input_value("#img2img_neg_prompt textarea") == "a cat"
    assert on_page.page.input_value("#img2img_steps input[type=number]") == "4"
    shown = on_page.page.get_attribute("#img2img_inpaint_picture img", "src")
    assert (pixels(on_page.fetched(shown)) == pixels(drawn)).all()
    on_page.stroke("img2img_inpaint_picture", (0.4, 0.5), (0.6, 0.5))  # and it is what is drawn over now
    changed = (pixels(on_page.generate()) != pixels(drawn)).any(axis=2)
    painted = on_page.layer("img2img_inpaint_picture")
    assert changed.any() and not changed[~painted].any()


def test_a_picture_is_copied_to_another_inner_tab_and_put_into_words(on_page, photo):
    on_page.show("img2img", "img2img")
    on_page.give("img2img_img2img_picture", photo, (80, 64))
    on_page.press("img2img_interrogate")
    on_page.page.wait_for_function(
        "document.querySelector('#img2img_prompt textarea').value.startsWith('a ')"
    )
    on_page.press("img2img_copy_to_sketch")
    on_page.holds("img2img_sketch_picture", (80, 64))
    on_page.set(**QUICK, width=80, height=64)
    assert on_page.generate().size == (80, 64)  # from the tab that is open now
