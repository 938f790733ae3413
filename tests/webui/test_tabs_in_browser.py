"""Extras, PNG Info, Models, Settings, Queue and History, used in a real browser."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from own_api import coded, picture
from page_server import browser_at, open_tab, reload, served_page, toast
from PIL import Image

DRAWN = {
    "width": 64,
    "height": 64,
    "steps": 4,
    "sampler_name": "Euler a",
    "seed": 11,
    "cfg_scale": 6.5,
    "save_images": True,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with served_page(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture(scope="module")
def page(served):
    with browser_at(served, accept_downloads=True) as shown:
        yield shown


def _post(served, path: str, body=None) -> dict:
    answer = httpx.post(served.url + path, json=body, timeout=60, trust_env=False)
    assert answer.is_success, answer.text
    return answer.json()


def _drawn(served, prompt: str, **more) -> Path:
    """The file of a picture that the API drew and saved."""
    _post(served, "sdapi/v1/txt2img", {**DRAWN, "prompt": prompt, **more})
    end = time.monotonic() + 10
    while True:
        files = served.service.history.search(prompt)[0]["files"]
        if files or time.monotonic() > end:
            return Path(files[0])
        time.sleep(0.02)


def _shows(page, place: str, text: str) -> None:
    page.locator(place, has_text=text).first.wait_for()


# ------------------------------------------------------------------ PNG Info


def test_a_dropped_picture_says_how_it_was_made_and_fills_txt2img(served, page):
    file = _drawn(served, "a dropped star <lora:tiny_night:0.5>", negative_prompt="dots")
    open_tab(page, "PNG Info")
    page.locator("#pnginfo_image input[type=file]").set_input_files(file)
    _shows(page, "#pnginfo_facts", "a dropped star")
    _shows(page, "#pnginfo_facts", "6.5")
    _shows(page, "#pnginfo_facts", "fastsd")
    assert "Negative prompt: dots" in page.locator("#pnginfo_text textarea").input_value()
    page.locator("#pnginfo_send_to_txt2img").click()
    page.locator("#txt2img_prompt textarea").wait_for()
    page.wait_for_function(
        "document.querySelector('#txt2img_prompt textarea').value.includes('a dropped star')"
    )
    assert page.locator("#txt2img_neg_prompt textarea").input_value() == "dots"
    assert page.locator("#txt2img_steps input").first.input_value() == "4"
    assert page.locator("#txt2img_seed input").first.input_value() == "11"


def test_a_picture_from_elsewhere_says_what_is_not_here(served, page, tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", "a cat <lora:ghost:1>\nSteps: 9, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x64,"
                                " Model hash: 0123456789, Model: <b>dream</b>")  # fmt: skip
    picture().save(tmp_path / "cat.png", pnginfo=text)
    open_tab(page, "PNG Info")
    page.locator("#pnginfo_image button[aria-label='Remove Image']").click()
    page.locator("#pnginfo_image input[type=file]").set_input_files(tmp_path / "cat.png")
    _shows(page, "#pnginfo_warnings", "'<b>dream</b>' (hash 0123456789) is not here")  # shown, not obeyed
    _shows(page, "#pnginfo_warnings", "ghost")


def test_what_is_no_picture_is_said_with_the_way_out(page, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    open_tab(page, "PNG Info")
    page.locator("#pnginfo_image button[aria-label='Remove Image']").click()
    page.locator("#pnginfo_image input[type=file]").set_input_files(tmp_path / "torn.png")
    assert "no picture that can be read" in toast(page)


# ------------------------------------------------------------------ Extras


def test_a_picture_is_enlarged_and_compared(served, page, tmp_path):
    picture(40, 28).save(tmp_path / "small.png")
    open_tab(page, "Extras")
    page.locator("#extras_image input[type=file]").set_input_files(tmp_path / "small.png")
    page.locator("#extras_image img").wait_for()
    page.locator("#extras_generate").click()
    _shows(page, "#extras_state", "Enlarged to 160 x 112")
    page.locator("#extras_compared img").first.wait_for()
    saved = sorted((served.folder / "outputs" / "extras-images").rglob("*small*"))
    assert Image.open(saved[-1]).size == (160, 112)
    assert "Postprocess upscale by: 4" in page.locator("#html_info_extras textarea").input_value()


def test_a_batch_names_the_bad_file_does_the_others_and_gives_a_zip(page, tmp_path):
    import zipfile

    for name in ("one", "two"):
        picture(40, 28).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    open_tab(page, "Extras")
    page.locator("#mode_extras button[role=tab]", has_text="Batch").click()
    files = [tmp_path / f"{name}.png" for name in ("one", "bad", "two")]
    page.locator("#extras_batch", has_text="Drop File Here").wait_for()
    page.wait_for_timeout(500)  # an inner tab is laid out when it is first chosen; its input listens later
    page.locator("#extras_batch input[type=file]").set_input_files(files)
    page.locator("#extras_batch tr", has_text="two").first.wait_for()
    page.locator("#extras_generate").click()
    _shows(page, "#extras_state", "2 of 3 enlarged")
    _shows(page, "#extras_trouble", "bad.png")
    with page.expect_download() as download:
        page.locator("#extras_zip").click()
    assert len(zipfile.ZipFile(download.value.path()).namelist()) == 2


def test_extras_without_a_picture_says_so(page):
    reload(page)
    open_tab(page, "Extras")
    page.locator("#extras_generate").click()
    assert "There is no picture" in toast(page)


# ------------------------------------------------------------------ Models


def test_models_are_listed_searched_identified_loaded_and_unloaded(served, page):
    open_tab(page, "Models")
    _shows(page, "#models_table", "embedded")
    assert str(Path(__file__).parents[2]) not in page.content()  # no path of the server
    page.locator("#models_identify").click()
    _shows(page, "#models_inside", "a Diffusers folder")
    page.locator("#models_unload").click()
    _shows(page, "#models_memory", "No model is in memory")
    assert served.service.shelf.loaded() == []
    page.locator("#models_load").click()
    _shows(page, "#models_state", "embedded is loaded")
    page.locator("#models_kind label", has_text="LoRA").click()
    _shows(page, "#models_table", "tiny_night")
    page.locator("#models_identify").click()
    _shows(page, "#models_inside", "a LoRA")
    page.locator("#models_search textarea, #models_search input").first.fill("nothing like it")
    _shows(page, "#models_table", "Nothing of that name")
    page.locator("#models_search textarea, #models_search input").first.fill("")


# ------------------------------------------------------------------ Settings


def test_a_setting_is_found_changed_kept_and_put_back(served, page):
    open_tab(page, "Settings")
    page.locator("#settings_search textarea, #settings_search input").first.fill("jpeg")
    page.locator("#settings_jpeg_quality").wait_for()
    page.wait_for_function("document.querySelector('#settings_eta_ddim').offsetParent === null")
    page.locator("#settings_jpeg_quality input").first.fill("61")
    page.locator("#settings_apply").click()
    _shows(page, "#settings_state", "Changed: Quality of JPEG")
    assert served.context.options["jpeg_quality"] == 61
    assert '"jpeg_quality": 61' in (served.folder / "config.json").read_text("utf-8")
    page.locator("#settings_reset").click()
    _shows(page, "#settings_state", "defaults are filled in")
    page.locator("#settings_apply").click()
    _shows(page, "#settings_state", "Changed: Quality of JPEG")
    assert served.context.options["jpeg_quality"] == 80


def test_a_fixed_setting_says_why_and_cannot_be_changed(page):
    open_tab(page, "Settings")
    page.locator("#settings_search textarea, #settings_search input").first.fill("")
    page.locator("#settings_randn_source", has_text="noise is drawn on the CPU").wait_for()
    assert page.locator("#settings_randn_source input").is_disabled()


def test_a_value_out_of_its_range_is_refused_and_nothing_changes(served, page):
    open_tab(page, "Settings")
    page.locator("#settings_CLIP_stop_at_last_layers input").first.fill("99")
    page.locator("#settings_apply").click()
    assert "12" in toast(page)
    assert served.context.options["CLIP_stop_at_last_layers"] == 1


def test_the_browser_keeps_its_theme_and_its_fields(page):
    open_tab(page, "Settings")
    page.locator("#settings_theme label", has_text="Dark").click()
    page.wait_for_function("document.body.classList.contains('dark')")
    open_tab(page, "txt2img")
    page.locator("#txt2img_prompt textarea").fill("a kept prompt")
    open_tab(page, "Settings")
    page.locator("#settings_keep_txt2img").click()
    page.evaluate("sessionStorage.clear()")
    reload(page)
    page.wait_for_function("document.body.classList.contains('dark')")
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'a kept prompt'")
    open_tab(page, "Settings")
    page.locator("#settings_forget_txt2img").click()
    page.locator("#settings_theme label", has_text="Light").click()
    assert page.evaluate("localStorage.getItem('fastsd.fields.txt2img')") is None


# ------------------------------------------------------------------ Queue


def test_jobs_are_seen_moved_cancelled_and_held(served, page):
    open_tab(page, "Queue")
    page.locator(".queue-pause").click()
    _shows(page, ".queue-state", "Paused")
    assert served.service.paused
    ids = [
        _post(
            served,
            "fastsd/v1/jobs",
            {"prompt": f"<i>job</i> {n}", "count": 40, "inference_steps": 15},
        )["id"]
        for n in range(3)
    ]
    _shows(page, ".queue-row", "<i>job</i> 2")
    rows = page.locator(".queue-row")
    assert rows.count() == 3
    row = page.locator(f".queue-row[data-job='{ids[2]}']")
    row.locator("button", has_text="↑").click()
    page.wait_for_function("document.querySelectorAll('.queue-row')[1].textContent.includes('job</i> 2')")
    assert [job.id for job in served.service.jobs()] == [ids[0], ids[2], ids[1]]
    row.locator("button", has_text="To front").click()
    page.wait_for_function("document.querySelectorAll('.queue-row')[0].textContent.includes('job</i> 2')")
    page.locator(f".queue-row[data-job='{ids[1]}'] button", has_text="Cancel").click()
    page.locator(f".queue-row[data-job='{ids[1]}']").wait_for(state="detached")
    page.locator(".queue-pause").click()
    page.locator(f".queue-row.drawing[data-job='{ids[2]}'] .queue-picture img").wait_for()
    _shows(page, f".queue-row[data-job='{ids[2]}'] .queue-about", "step ")
    row.locator("button", has_text="Stop after this picture").click()
    row.wait_for(state="detached", timeout=60_000)
    assert 0 < len(served.service.job(ids[2]).pictures) < 40
    page.locator(f".queue-row[data-job='{ids[0]}'] button", has_text="Cancel").click()
    _shows(page, ".queue-past", "<i>job</i> 2")
    page.locator(".queue-empty").wait_for()


# ------------------------------------------------------------------ History


def test_a_picture_of_earlier_is_found_restored_compared_repeated_and_forgotten(served, page):
    _drawn(served, "an old heart", seed=21, negative_prompt="dots")
    file = _drawn(served, "an old circle", seed=22, steps=5)
    open_tab(page, "History")
    page.locator("#history_search textarea, #history_search input").first.fill("an old")
    page.wait_for_function("document.querySelectorAll('#history_tiles .tile').length === 2")
    page.locator("#history_tiles .tile", has_text="an old heart").click()
    page.locator("#html_info_history textarea").wait_for()
    page.wait_for_function("document.querySelector('#html_info_history textarea').value.includes('Seed: 21')")
    page.locator("#history_send_to_txt2img").click()
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'an old heart'")
    open_tab(page, "History")
    page.locator("#history_hold").click()
    _shows(page, "#history_compared", "Held")
    page.locator("#history_tiles .tile", has_text="an old circle").click()
    page.wait_for_function("document.querySelector('#html_info_history textarea').value.includes('Seed: 22')")
    page.locator("#history_hold").click()
    _shows(page, "#history_compared td", "an old heart")
    assert page.locator("#history_compared img").count() == 2
    before = served.service.history.count("an old circle")
    page.locator("#history_repeat").click()
    _shows(page, "#history_compared", "Ordered again")
    assert served.service.history.count("an old circle") == before + 1
    page.locator("#history_with_files input").check()
    page.locator("#history_forget").click()
    _shows(page, "#history_about", "1 file deleted")
    assert not file.exists()


def test_a_job_over_a_picture_gives_back_the_picture_it_was_drawn_over(served, page):
    body = {
        **DRAWN,
        "prompt": "a star drawn over",
        "init_images": [coded(picture(64, 64))],
        "denoising_strength": 0.5,
    }
    _post(served, "sdapi/v1/img2img", body)
    open_tab(page, "History")
    page.locator("#history_search textarea, #history_search input").first.fill("drawn over")
    page.locator("#history_tiles .tile", has_text="a star drawn over").click()
    page.locator("#history_given img").wait_for()
    page.locator("#history_given_send_to_img2img").click()
    page.wait_for_function(
        "document.querySelector('#img2img_prompt textarea')?.value === 'a star drawn over'"
    )
