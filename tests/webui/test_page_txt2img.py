"""txt2img in a real browser: drawing, what is seen of it meanwhile, keys, drops, cards, phones."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator

import httpx
import pytest
from page_server import LONGEST_MS, fill, open_page, running_browser, served_page, value, wait_until_done
from PIL import Image

PROMPT = "#txt2img_prompt textarea"
PICTURES = "#txt2img_gallery img:not(.live-preview)"
#: Long enough to be seen being drawn, and ended by the tests themselves.
LONG = {"steps": 150, "batch_count": 20}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator:
    with served_page(tmp_path_factory.mktemp("library")) as served:
        served.context.options.change({"show_progress_every_n_steps": 1})
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def context(browser) -> Iterator:
    """A browser of its own, with nothing kept in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context, served):
    return open_page(context.new_page(), served.url)


def _shown_picture(page, url: str) -> Image.Image:
    page.wait_for_selector(PICTURES)
    source = page.locator(PICTURES).first.get_attribute("src")
    answer = httpx.get(source if source.startswith("http") else url + source.lstrip("/"), trust_env=False)
    return Image.open(io.BytesIO(answer.content))


def _until(page, condition) -> None:
    end = time.monotonic() + LONGEST_MS / 1000
    while not condition():
        assert time.monotonic() < end, "waited too long"
        page.wait_for_timeout(100)


def test_the_page_draws_what_the_api_draws_and_reaches_nothing_but_this_server(context, served):
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.add_init_script(
        "window.refused = []; document.addEventListener('securitypolicyviolation',"
        " event => window.refused.push(event.violatedDirective))"
    )
    open_page(page, served.url)
    fill(page, prompt="a red star", neg_prompt="a cat", steps=3, seed=7, cfg_scale=5, width=128)
    page.click("#txt2img_generate")
    page.wait_for_selector(PICTURES)
    wait_until_done(page)
    body = {"prompt": "a red star", "negative_prompt": "a cat", "steps": 3, "seed": 7, "cfg_scale": 5}
    body |= {
        "width": 128,
        "height": 64,
        "sampler_name": "Euler a",
        "override_settings": {"sd_vae": "Automatic"},
    }
    drawn = httpx.post(f"{served.url}sdapi/v1/txt2img", json=body, timeout=60, trust_env=False).json()
    wanted = Image.open(io.BytesIO(base64.b64decode(drawn["images"][0])))
    shown = _shown_picture(page, served.url)
    assert shown.size == (128, 64) and shown.tobytes() == wanted.tobytes()
    assert "Seed: 7, Size: 128x64" in value(page, "html_info_txt2img")
    assert all(url.startswith((served.url, "data:", "blob:")) for url in asked)
    assert page.evaluate("window.refused") == []


def test_a_job_is_seen_being_drawn_survives_a_reload_and_ends_with_what_is_finished(context, served):
    page = open_page(context.new_page(), served.url)
    fill(page, prompt="a red star", **LONG)
    page.focus(PROMPT)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(".live-preview")
    first = page.get_attribute(".live-preview", "src")
    page.wait_for_function("old => document.querySelector('.live-preview')?.src !== old", arg=first)
    assert "left" in page.inner_text("#txt2img_progress")
    page.reload()  # the server goes on, and the browser finds it again
    page.wait_for_selector(".live-preview")
    assert page.is_hidden("#txt2img_generate") and value(page, "txt2img_prompt") == "a red star"
    assert value(page, "txt2img_steps") == "150"
    (job,) = served.service.running()
    page.wait_for_function("document.querySelector('#txt2img_progress').innerText.match(/[1-9]\\d? %/)")
    _until(page, lambda: job.pictures)
    page.keyboard.press("Escape")
    page.wait_for_selector(PICTURES)
    wait_until_done(page)
    assert page.inner_text("#html_log_txt2img").startswith("Stopped with ")
    assert job.over and 0 < len(job.pictures) < LONG["batch_count"]
    page.reload()  # and finds what came of it
    page.wait_for_selector(PICTURES)
    assert page.inner_text("#html_log_txt2img").startswith("Stopped with ")


def test_another_browser_sees_nothing_of_it(browser, page, served):
    fill(page, prompt="a red star", steps=2)
    page.click("#txt2img_generate")
    page.wait_for_selector(PICTURES)
    stranger = browser.new_context()
    try:
        other = open_page(stranger.new_page(), served.url)
        other.wait_for_timeout(1500)
        assert other.locator(PICTURES).count() == 0 and value(other, "txt2img_prompt") == ""
    finally:
        stranger.close()


def test_what_is_wrong_is_said_with_its_way_out_and_the_page_is_ready_again(page):
    fill(page, prompt="a star <lora:nothing_like_it:1>")
    page.click("#txt2img_generate")
    page.wait_for_selector(".toast-body >> text=/no LoRA .nothing_like_it/")
    wait_until_done(page)
    assert page.is_visible("#txt2img_generate")


def test_keys_weigh_and_move_words(page):
    page.fill(PROMPT, "a cat, red star, <lora:tiny_night:1>")
    place = "([from, to]) => document.querySelector('#txt2img_prompt textarea').setSelectionRange(from, to)"

    def press(at: int, key: str, to: int | None = None) -> str:
        page.focus(PROMPT)
        page.evaluate(place, [at, at if to is None else to])
        page.keyboard.press(key)
        return page.input_value(PROMPT)

    assert press(3, "Control+ArrowUp") == "a (cat:1.1), red star, <lora:tiny_night:1>"
    assert press(4, "Control+ArrowUp") == "a (cat:1.2), red star, <lora:tiny_night:1>"
    assert press(13, "Control+ArrowDown", 21) == "a (cat:1.2), (red star:0.9), <lora:tiny_night:1>"
    assert press(34, "Control+ArrowDown") == "a (cat:1.2), (red star:0.9), <lora:tiny_night:0.95>"
    assert press(16, "Alt+ArrowLeft") == "(red star:0.9), a (cat:1.2), <lora:tiny_night:0.95>"
    press(4, "Control+ArrowUp")
    assert page.input_value(PROMPT) == "red star, a (cat:1.2), <lora:tiny_night:0.95>"
    page.keyboard.press("Control+z")
    assert page.input_value(PROMPT) == "(red star:0.9), a (cat:1.2), <lora:tiny_night:0.95>"


def test_a_picture_that_is_dropped_on_the_prompt_fills_the_fields(page, served):
    body = {
        "prompt": "a blue moon",
        "steps": 6,
        "sampler_name": "DPM++ 2M",
        "seed": 5,
        "width": 72,
        "height": 64,
    }
    body |= {"subseed": 9, "subseed_strength": 0.2}
    drawn = httpx.post(f"{served.url}sdapi/v1/txt2img", json=body, timeout=60, trust_env=False).json()
    page.evaluate(
        """(encoded) => {
            const bytes = Uint8Array.from(atob(encoded), (sign) => sign.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "picture.png", { type: "image/png" }));
            document.querySelector("#txt2img_prompt textarea").dispatchEvent(
                new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: transfer }));
        }""",
        drawn["images"][0],
    )
    page.wait_for_function("document.querySelector('#txt2img_prompt textarea').value === 'a blue moon'")
    page.wait_for_function("document.querySelector('#txt2img_subseed_show input').checked")
    shown = {
        name: value(page, f"txt2img_{name}") for name in ("steps", "sampling", "seed", "width", "subseed")
    }
    assert shown == {"steps": "6", "sampling": "DPM++ 2M", "seed": "5", "width": "72", "subseed": "9"}


def test_a_card_puts_its_tag_into_the_prompt_and_takes_it_out(page):
    page.fill(PROMPT, "a star")
    page.click("#txt2img_settings button[role=tab]:has-text('LoRA')")
    card = page.locator("#txt2img_lora_cards .card[data-put='<lora:tiny_night:1>']")
    card.click()
    assert page.input_value(PROMPT) == "a star <lora:tiny_night:1>"
    page.fill("#txt2img_lora_search input, #txt2img_lora_search textarea", "no such")
    assert card.is_hidden()
    page.fill("#txt2img_lora_search input, #txt2img_lora_search textarea", "NIGHT")
    card.click()
    assert page.input_value(PROMPT) == "a star"


def test_generate_forever_goes_on_until_it_is_told_to_stop(page, served):
    before = len(served.service.kept())
    fill(page, prompt="a red star", steps=1)
    page.click("#txt2img_generate", button="right")
    page.click("text=Generate forever")
    _until(page, lambda: len(served.service.kept()) >= before + 3)
    page.evaluate("fastsd.forever('txt2img', false)")
    wait_until_done(page)
    page.wait_for_timeout(500)
    assert page.is_visible("#txt2img_generate")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_column_and_nothing_to_the_side(browser, served, scheme):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    try:
        page = open_page(phone.new_page(), served.url)
        fill(page, prompt="a red star", steps=2)
        page.click("#txt2img_generate")
        page.wait_for_selector(PICTURES)
        page.check("#txt2img_hr-checkbox input")
        page.check("#txt2img_subseed_show input")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        inside = (
            "[...document.querySelectorAll('#tab_txt2img :is(button, input, textarea)')]"
            ".filter(one => one.offsetParent && !one.closest('.visually-hidden'))"
            ".filter(one => one.getBoundingClientRect().right > 391).map(one => one.outerHTML)"
        )
        assert page.evaluate(inside) == []
        assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    finally:
        phone.close()
