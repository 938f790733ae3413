"""The ControlNet units of the page, in a real browser: they are what the API's units are."""

from __future__ import annotations

import base64
import io

import httpx
import pytest
from page_driver import OnPage, in_base64, pixels
from page_server import running_browser, served_page
from PIL import Image, ImageDraw

UNIT = "txt2img_controlnet_0"
BODY = {"prompt": "a red star", "steps": 3, "seed": 7, "sampler_name": "Euler a", "cfg_scale": 4,
        "width": 64, "height": 64}  # fmt: skip


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served_page(tmp_path_factory.mktemp("server")) as served:
        yield served.url


@pytest.fixture(scope="module")
def chromium():
    with running_browser() as running:
        yield running


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawings") / "circle.png"
    picture = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(picture).ellipse((20, 20, 76, 76), fill="navy")
    picture.save(path)
    return path


@pytest.fixture
def on_page(chromium, url):
    with OnPage.open(chromium, url) as opened:
        opened.show("txt2img")
        opened.page.locator("#txt2img_controlnet > button").click()
        opened.page.wait_for_selector(f"#{UNIT}_picture .view", state="visible")
        opened.set(prompt="a red star", steps=3, seed=7)
        yield opened


def tiny_canny(url):
    (title,) = httpx.get(f"{url}controlnet/model_list", timeout=60, trust_env=False).json()["model_list"]
    return title


def test_a_unit_draws_what_the_same_unit_of_the_api_draws(on_page, drawing, url):
    alone = on_page.generate()
    on_page.give(f"{UNIT}_picture", drawing, (96, 96))
    on_page.choose(f"{UNIT}_type", "Canny")
    on_page.page.wait_for_function(f"document.querySelector('#{UNIT}_module input').value === 'canny'")
    on_page.choose(f"{UNIT}_enable", "Enable")
    assert on_page.page.input_value(f"#{UNIT}_model input") == tiny_canny(url)
    resolution = on_page.page.locator(f"#{UNIT}_processor_res input[type=number]")
    resolution.fill("64")
    resolution.press("Tab")
    steered = on_page.generate()
    unit = {"enabled": True, "module": "canny", "model": tiny_canny(url), "image": in_base64(drawing),
            "processor_res": 64, "threshold_a": 100, "threshold_b": 200}  # fmt: skip
    drawn = on_page.api(**BODY, alwayson_scripts={"ControlNet": {"args": [unit]}})
    assert (pixels(steered) == pixels(drawn[0])).all()
    assert (pixels(steered) != pixels(alone)).any()
    assert "ControlNet 0: " in on_page.info() and "Module: canny" in on_page.info()


def test_the_preview_is_what_the_api_detects_and_the_sliders_are_the_modules(on_page, drawing, url):
    on_page.give(f"{UNIT}_picture", drawing, (96, 96))
    assert not on_page.page.locator(f"#{UNIT}_threshold_a").is_visible()
    on_page.pick(f"{UNIT}_module", "canny")
    on_page.page.get_by_text("Low Threshold").wait_for()
    low = on_page.page.locator(f"#{UNIT}_threshold_a input[type=number]")
    low.fill("40")
    low.press("Tab")
    on_page.press(f"{UNIT}_run")
    on_page.page.wait_for_selector(f"#{UNIT}_preview img", state="visible")
    shown = on_page.fetched(on_page.page.get_attribute(f"#{UNIT}_preview img", "src"))
    body = {"controlnet_module": "canny", "controlnet_input_images": [in_base64(drawing)],
            "controlnet_threshold_a": 40, "controlnet_threshold_b": 200}  # fmt: skip
    answer = httpx.post(f"{url}controlnet/detect", json=body, timeout=60, trust_env=False).json()
    told = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert (pixels(shown) == pixels(told)).all() and pixels(shown).any()
    on_page.pick(f"{UNIT}_module", "scribble_xdog")
    on_page.page.get_by_text("XDoG Threshold").wait_for()
    assert not on_page.page.get_by_text("High Threshold").is_visible()


def test_control_types_offer_what_is_theirs_and_nothing_is_offered_that_is_not_here(on_page, url):
    kinds = on_page.page.locator(f"#{UNIT}_type label").all_inner_texts()
    assert kinds[:2] == ["All", "Canny"] and "Scribble" in kinds and "Instant-ID" not in kinds
    on_page.choose(f"{UNIT}_type", "Scribble")
    on_page.page.wait_for_function(f"document.querySelector('#{UNIT}_module input').value !== 'none'")
    on_page.page.locator(f"#{UNIT}_model input").click()
    offered = on_page.page.get_by_role("option").all_inner_texts()
    assert [one.split("\n")[-1] for one in offered] == ["None"]  # no ControlNet for scribbles here


def test_what_is_wrong_with_a_unit_is_said(on_page):
    on_page.press(f"{UNIT}_run")
    on_page.page.get_by_text("There is no picture for the preprocessor.").wait_for()
    on_page.choose(f"{UNIT}_enable", "Enable")
    on_page.press("txt2img_generate")
    on_page.page.get_by_text("names no ControlNet").first.wait_for()


def test_on_img2img_a_unit_without_a_picture_follows_the_one_that_is_drawn_over(on_page, drawing, url):
    on_page.show("img2img", "img2img")
    on_page.give("img2img_img2img_picture", drawing, (96, 96))
    on_page.page.locator("#img2img_controlnet > button").click()
    on_page.choose("img2img_controlnet_0_type", "Canny")
    on_page.page.wait_for_function(
        "document.querySelector('#img2img_controlnet_0_module input').value === 'canny'"
    )
    on_page.choose("img2img_controlnet_0_enable", "Enable")
    on_page.choose("img2img_controlnet_0_perfect", "Pixel Perfect")
    on_page.set(prompt="a red star", steps=3, seed=7)
    drawn = on_page.generate()
    unit = {"module": "canny", "model": tiny_canny(url), "pixel_perfect": True}
    same = on_page.api(**BODY, init_images=[in_base64(drawing)],
                       alwayson_scripts={"ControlNet": {"args": [unit]}})  # fmt: skip
    assert (pixels(drawn) == pixels(same[0])).all()
