"""The fields of the page as the body of an A1111 request, and back from the text of a picture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from page_server import served_page

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import infotext


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Iterator:
    folder = tmp_path_factory.mktemp("library")
    (folder / "styles.csv").write_text("name,prompt,negative_prompt\ngrain,film grain,smooth\n")
    with served_page(folder) as served:
        yield served.context


@pytest.fixture
def form(context):
    import gradio as gr

    from fastsd_lib.webui.page_tasks import PageTasks
    from fastsd_lib.webui.tabs import quick_settings, txt2img
    from fastsd_lib.webui.tabs.desk import Desk, Usual

    with gr.Blocks():
        desk = Desk(context, PageTasks(context), usual=Usual(64, 20, 4.0))
        quick_settings.build(desk)
        with gr.Tabs() as desk.tabs, gr.Tab("txt2img"):
            txt2img.build(desk)
    return desk.forms["txt2img"]


def _values(form, **changed) -> list:
    values = {name: one.value for name, one in (form.fields | form.extras).items()}
    assert not set(changed) - set(values), f"no fields {set(changed) - set(values)}"
    return list((values | changed).values())


def test_untouched_fields_make_a_request_without_second_pass_and_variation(form):
    body = form.body(_values(form, prompt="a star"))
    assert (body.prompt, body.steps, body.width, body.seed) == ("a star", 20, 64, -1)
    assert not body.enable_hr and body.hr_prompt == "" and body.subseed_strength == 0
    assert body.override_settings["sd_model_checkpoint"] == "embedded"
    assert body.override_settings["CLIP_stop_at_last_layers"] == 1


def test_the_seeds_extras_and_the_second_pass_count_only_when_they_are_on(form):
    chosen = {"subseed": 5, "subseed_strength": 0.3, "hr_scale": 1.5, "hr_prompt": "a moon"}
    off = form.body(_values(form, **chosen))
    on = form.body(_values(form, **chosen, enable_hr=True, seed_extra=True))
    assert (off.subseed_strength, off.hr_prompt) == (0, "")
    assert (on.subseed, on.subseed_strength, on.hr_scale, on.hr_prompt) == (5, 0.3, 1.5, "a moon")


def test_a_value_that_cannot_be_is_refused_by_its_label(form):
    with pytest.raises(UserError, match=r"Sampling steps is '5000': input should be less than or equal"):
        form.body(_values(form, steps=5000))


def test_a_picture_fills_every_field_that_its_text_names(form, context):
    """Round trip: draw with unusual values, read the picture's text into the fields, and ask again with those."""
    from fastsd_lib.webui.a1111 import translate

    asked = form.body(
        _values(
            form, prompt="a <b>star</b>, a: b", negative_prompt="cat", styles=["grain"], steps=7,
            sampler_name="DPM++ 2M", scheduler="Simple", cfg_scale=5.5, seed=77, width=128, height=64,
            tiling=True, seed_extra=True, subseed=5, subseed_strength=0.3, seed_resize_from_w=64,
            seed_resize_from_h=64, enable_hr=True, hr_upscaler="Lanczos", hr_second_pass_steps=3,
            denoising_strength=0.4, hr_scale=1.5, hr_sampler_name="Euler", hr_scheduler="Exponential",
            hr_prompt="a moon", hr_negative_prompt="a dog", CLIP_stop_at_last_layers=2,
        )
    )  # fmt: skip
    asked.steps = 2  # drawn quickly
    order = translate(asked, context).orders[0]
    text = infotext(context.service.submit(order).future.result(60)[0].record)

    updates = dict(zip(form.pasteable(), form.paste(text), strict=True))
    pasted = {name: updates[one] for name, one in form.fields.items() if name not in ("n_iter", "batch_size")}
    assert pasted["styles"] == ["grain"] and pasted["prompt"] == "a <b>star</b>, a: b"
    assert updates[form.extras["seed_extra"]] is True
    assert updates[form.extras["overrides"]] == ["Clip skip: 2"]
    again = form.body(_values(form, **pasted, seed_extra=True, overrides=["Clip skip: 2"]))
    assert translate(again, context).orders[0].request == order.request


def test_texts_of_old_and_other_programs_are_read_and_what_is_not_here_is_said(form, recwarn):
    old = "a cat\nSteps: 9, Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 1, Size: 64x64"
    pasted = dict(zip(form.fields, form.paste(old), strict=False))
    assert (pasted["sampler_name"], pasted["scheduler"], pasted["enable_hr"]) == ("DPM++ 2M", "Karras", False)
    strange = form.paste(old.replace("DPM++ 2M Karras", "Best Sampler"))
    assert dict(zip(form.fields, strange, strict=False))["sampler_name"] == {"__type__": "update"}
