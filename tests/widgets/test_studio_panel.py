"""The studio's panel, pressed as a page presses it; with either major version of ipywidgets."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets.studio import StudioConfig, StudioPanel, studio_panel
from fastsd_lib.widgets.studio_form import StudioForm, open_upload
from fastsd_lib.workflows.studio_choices import StudioChoices


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    panel = studio_panel(StudioConfig(), tmp_path_factory.mktemp("root"))
    yield panel
    panel.close()


@pytest.fixture(autouse=True)
def usual(request):
    """The form as it is at first, and nothing being drawn."""
    yield
    if "panel" in request.fixturenames:
        panel = request.getfixturevalue("panel")
        panel.stop()
        wait(lambda: not panel.busy)
        panel.form.fill(StudioChoices())


def wait(condition: Callable[[], Any], patience_s: float = 180) -> Any:
    end = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def draw(panel: StudioPanel, **choices: Any) -> list[Any]:
    return asyncio.run(panel.draw(**{"inference_steps": 2, "seed": 3, **choices}))


def upload(widget: Any, name: str, content: bytes) -> None:
    """What a page does after the user chose a file, with either major version of ipywidgets."""
    if isinstance(widget.value, dict):
        widget.metadata, widget.data = [{"name": name}], [content]
        widget._counter += 1
    else:
        one = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
        widget.value = ({**one, "last_modified": datetime.now(timezone.utc)},)


def png(colour: str = "white", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def test_generate_returns_at_once_and_the_picture_is_shown_and_saved(panel):
    panel.form.set(inference_steps=80, count=1, seed=9)
    began = time.monotonic()
    panel.generate_button.click()
    assert time.monotonic() - began < 1 and panel.busy and panel.generate_button.disabled
    wait(lambda: "step " in panel._status.value and "fsd-bar" in panel._bar.value)
    wait(lambda: not panel.busy)
    picture, file = panel.results.pictures[-1]
    assert picture.seed == 9 and file.is_file() and str(file) in panel.results._where.value
    assert "Steps: 80" in panel.results._text.value and "1 picture in" in panel._status.value
    assert not panel.generate_button.disabled and panel.stop_button.disabled


def test_stop_ends_a_long_order_and_keeps_what_there_is(panel):
    draw(panel)
    panel.form.set(inference_steps=1000, count=50)
    panel.generate_button.click()
    wait(lambda: panel.job.state == "drawing" and panel.job.step > 2)
    panel.stop_button.click()
    wait(lambda: not panel.busy)
    assert panel.job.state == "stopped" and "Stopped" in panel._status.value
    assert not panel.generate_button.disabled


def test_skip_goes_on_with_the_next_picture(panel):
    panel.form.set(inference_steps=400, count=2, seed=20)
    panel.generate_button.click()
    wait(lambda: panel.job.state == "drawing" and panel.job.step > 2)
    panel.skip_button.click()
    wait(lambda: len(panel.job.pictures) == 1)
    assert panel.busy and panel.job.state == "drawing"


def test_a_preview_is_shown_while_it_is_drawn(panel):
    panel.form.set(inference_steps=1000)
    before = panel.results._large.value
    panel.generate_button.click()
    wait(lambda: panel.job.state == "drawing" and panel.results._large.value not in ("", before))
    assert "data:image" in panel.results._large.value and panel.busy


def test_a_wrong_value_is_said_in_the_panel_and_raised_in_a_cell(panel):
    panel.form.insert("<lora:nothere:1>")
    panel.generate_button.click()
    wait(lambda: not panel.busy)
    assert "no LoRA" in panel._message.value and "Traceback" not in panel._message.value
    with pytest.raises(UserError, match="no LoRA"):
        draw(panel, prompt="a <lora:nothere:1>")


def test_dice_and_recycle_set_the_seed(panel):
    draw(panel, seed=77)
    by_tip = {button.tooltip: button for button in buttons(panel.box)}
    by_tip["A new seed for each order"].click()
    assert panel.form.choices().seed == -1
    by_tip["The newest picture's seed"].click()
    assert panel.form.choices().seed == 77


def test_a_card_puts_its_tag_in_and_takes_it_out_again(panel):
    panel.form.set(prompt="a star")
    card = next(one for one in panel.cards.grid.buttons if one.description.startswith("tiny_night"))
    card.click()
    assert panel.form.choices().prompt == "a star <lora:tiny_night:1>"
    card.click()
    assert panel.form.choices().prompt == "a star"


def test_a_picture_that_says_how_it_was_made_fills_the_fields(panel):
    draw(panel, prompt="a photo of a green circle", seed=123, sampler="heun", width_px=96, height_px=64)
    file: Path = panel.results.pictures[-1][1]
    panel.form.fill(StudioChoices())
    upload(panel.png_info.upload, file.name, file.read_bytes())
    filled = panel.form.choices()
    assert (filled.prompt, filled.seed, filled.sampler) == ("a photo of a green circle", 123, "heun")
    assert (filled.width_px, filled.height_px, filled.inference_steps) == (96, 64, 2)
    assert "Seed: 123" in panel.png_info._shown.value and not panel.png_info.upload.value
    upload(panel.png_info.upload, "plain.png", png())
    assert "does not say" in panel.png_info._shown.value and panel.png_info.fill_button.disabled
    upload(panel.png_info.upload, "letter.png", b"dear diary")
    assert "no picture" in panel.png_info._shown.value and panel.form.choices() == filled


def test_the_history_fills_the_fields_again(panel):
    draw(panel, prompt="a photo of a yellow heart", seed=31)
    panel.form.fill(StudioChoices())
    panel.past.refresh()
    panel.past.grid.buttons[0].click()
    assert panel.form.choices().prompt == "a photo of a yellow heart"


def test_an_uploaded_picture_is_drawn_over_only_where_the_mask_is_white(panel):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    upload(panel.form.uploads["init"], "base.png", png("blue"))
    upload(panel.form.uploads["mask"], "mask.png", file.getvalue())
    assert "picture, 64 × 64" in panel.form._shown.value and not panel.form.uploads["init"].value
    (drawn,) = draw(panel, inference_steps=6, strength=1.0, mask_blur_px=0)
    assert {drawn.image.getpixel((x, y)) for x in (40, 63) for y in (0, 63)} == {(0, 0, 255)}
    assert drawn.image.crop((0, 0, 30, 64)).getextrema() != ((0, 0), (0, 0), (255, 255))
    assert panel.job.order.kind == "inpaint"


def test_draw_over_it_takes_the_chosen_result(panel):
    (drawn,) = draw(panel)
    next(one for one in buttons(panel.results.box) if one.description == "Draw over it").click()
    assert panel.form.choices().init is drawn.image


def test_a_model_that_is_not_there_is_said_and_the_old_one_stays(panel):
    panel.other_model.value = "/no/such/model.safetensors"
    panel.open_model()
    wait(lambda: "no file or folder" in panel._message.value)
    assert panel.model.value == "embedded"
    panel.other_model.value = "https://127.0.0.1/model.safetensors"
    panel.open_model()
    wait(lambda: "leads to this machine or its network" in panel._message.value)
    assert panel.model.value == "embedded"


def test_form_and_choices_are_each_others_inverse():
    form = StudioForm()
    picture = Image.new("RGB", (8, 8))
    choices = StudioChoices(
        "p", "n", sampler="heun", schedule="karras", inference_steps=7, guidance_scale=3.5, width_px=64, height_px=72,
        seed=2**32 - 1, count=3, clip_skip=2, tiling=True, hires=True, hires_scale=1.5, hires_upscaler="lanczos",
        hires_strength=0.25, hires_steps=4, init=picture, strength=0.5, resize_mode="fill", mask=picture,
        mask_blur_px=9, mask_fill="latent_noise", mask_invert=True, only_masked=True,
    )  # fmt: skip
    form.fill(choices)
    assert form.choices() == choices


def test_an_upload_is_turned_upright_and_what_is_none_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    file = io.BytesIO()
    Image.new("RGB", (20, 10)).save(file, "JPEG", exif=exif)
    assert open_upload(file.getvalue()).size == (10, 20)
    with pytest.raises(UserError, match="no picture"):
        open_upload(b"GIF89a")


def test_close_ends_everything_and_a_closed_panel_says_so(tmp_path):
    panel = studio_panel(StudioConfig(), tmp_path)
    panel.close(False)
    assert draw(panel)
    panel.close()
    panel.close()
    assert panel.generate_button.disabled and "Closed" in panel._status.value
    assert panel.studio.service.shelf.loaded() == []


def buttons(box: Any) -> list[Any]:
    found = [box] if type(box).__name__ == "Button" else []
    for child in getattr(box, "children", ()):
        found += buttons(child)
    return found
