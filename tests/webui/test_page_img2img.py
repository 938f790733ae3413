"""The tab img2img in a real browser: each inner tab draws over what it shows, as the API does."""

from __future__ import annotations

import numpy as np
import pytest
from page_driver import OnPage, in_base64, noise, pixels
from page_server import running_browser, served_page
from PIL import Image

QUICK = {"prompt": "a red star", "steps": 3, "seed": 7}
BODY = {"prompt": "a red star", "steps": 3, "seed": 7, "sampler_name": "Euler a", "cfg_scale": 4,
        "width": 80, "height": 64}  # fmt: skip


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
