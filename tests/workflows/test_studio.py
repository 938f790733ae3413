"""The studio without its panel: models from everywhere, orders, files, and a picture's text put back."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.picture_text import read_texts
from fastsd_lib.generation.styles import Style, write_styles
from fastsd_lib.models import registry
from fastsd_lib.workflows import dreambooth
from fastsd_lib.workflows.studio import StudioConfig, open_studio
from fastsd_lib.workflows.studio_choices import StudioChoices, from_infotext

SHORT = StudioChoices("a photo of a red star", inference_steps=2, seed=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where sessions live: one of them trained, and a table of styles."""
    from fastsd_lib.formats.single_file import export_single_file

    root = tmp_path_factory.mktemp("root")
    session = dreambooth.open_session("cat", root)
    dreambooth.open_session("untrained", root)
    export_single_file(registry.base_model(), session.model_file, dtype=None)
    write_styles(root / "styles.csv", [Style("night", "{prompt}, at night", "day"), Style("soft", "soft")])
    return root


@pytest.fixture(scope="module")
def studio(place):
    studio = open_studio(StudioConfig(), place)
    yield studio
    studio.close()


def test_models_of_sessions_and_paths_stand_beside_the_embedded_one(studio, place, tmp_path):
    assert {"embedded", "cat"} <= set(studio.models()) and "untrained" not in studio.models()
    assert studio.use_model("cat") == "cat"
    other = tmp_path / "dog.safetensors"
    shutil.copyfile(dreambooth.open_session("cat", place).model_file, other)
    assert studio.use_model(str(other)) == "dog" and "dog" in studio.models()
    with pytest.raises(UserError, match="nearest"):
        studio.use_model("embeded")


def test_an_order_draws_in_the_background_and_its_files_say_how(studio):
    job, notes = studio.order(replace(SHORT, count=2, model="cat"))
    pictures = studio.wait(job, 120)
    files = studio.save(job)
    assert notes == [] and len(pictures) == len(files) == 2 and len(set(files)) == 2
    assert studio.save(job) == files  # a second time writes nothing
    text = read_texts(files[1])["parameters"]
    assert "Seed: 6," in text and "Model: cat" in text
    newest = studio.past()[0]
    assert newest["id"] == job.id and newest["files"] == [str(file) for file in files]


def test_pictures_go_to_a_sessions_samples_when_that_is_chosen(studio, place):
    job, _ = studio.order(SHORT)
    studio.wait(job, 120)
    assert studio.save(job, "cat")[0].parent == dreambooth.open_session("cat", place).samples


def test_styles_are_put_in_and_an_unknown_one_is_named(studio):
    job, notes = studio.order(replace(SHORT, styles=("night", "loud")))
    request = job.order.request
    assert (request.prompt, request.negative_prompt) == ("a photo of a red star, at night", "day")
    assert notes == ["There is no style 'loud'; it was left out."]
    studio.service.cancel(job.id)


def test_an_open_seed_is_thrown_anew_each_time():
    seeds = {replace(SHORT, seed=-1).request({})[0].seed for _ in range(8)}
    assert len(seeds) > 1
    with pytest.raises(UserError, match="seed is -2"):
        replace(SHORT, seed=-2).request({})


def test_a_mask_needs_a_picture_and_a_second_pass_needs_none():
    mask = Image.new("L", (64, 64), 255)
    with pytest.raises(UserError, match="no picture under it"):
        replace(SHORT, mask=mask).request({})
    request, notes = replace(SHORT, init=mask.convert("RGB"), mask=mask, hires=True).request({})
    assert request.inpaint is not None and request.hires is None and "second pass was left out" in notes[0]


def test_a_pictures_own_text_gives_back_the_choices_that_made_it(studio):
    made = replace(
        SHORT, prompt="a photo of a blue heart", negative_prompt="dark", sampler="dpmpp_2m", schedule="karras",
        inference_steps=3, guidance_scale=3.5, width_px=64, height_px=96, seed=11, hires=True, hires_scale=1.5,
        hires_strength=0.4, hires_upscaler="latent_bicubic",
    )  # fmt: skip
    job, _ = studio.order(made)
    text = read_texts((studio.wait(job, 120), studio.save(job))[1][0])["parameters"]
    read, notes = from_infotext(StudioChoices(), text, {}, lambda name: studio.service.shelf.find(name).name)
    assert notes == []
    assert replace(read, model="", strength=made.strength, schedule="karras") == made
    assert read.schedule in ("karras", "automatic")  # for this sampler both are one


def test_a_text_of_elsewhere_fills_what_it_can_and_names_the_rest(studio):
    text = (
        "a cat\nNegative prompt: a dog\nSteps: 25, Sampler: DPM++ 2M Karras, CFG scale: seven, Seed: 3, "
        "Size: 512x768, Model: dreamshaper, Clip skip: 2"
    )
    read, notes = from_infotext(StudioChoices(), text, {}, lambda name: studio.service.shelf.find(name).name)
    assert (read.prompt, read.negative_prompt, read.inference_steps) == ("a cat", "a dog", 25)
    assert (read.sampler, read.schedule, read.width_px, read.height_px) == ("dpmpp_2m", "karras", 512, 768)
    assert read.clip_skip == 2 and read.guidance_scale == StudioChoices().guidance_scale
    assert len(notes) == 2 and "CFG scale 'seven'" in notes[0] and "'dreamshaper' is not here" in notes[1]


def test_lora_cards_carry_the_tag_and_the_picture_beside_the_file(studio, place):
    lora = next(iter((registry.EXTRAS_FOLDER / "Lora").glob("*.safetensors")))
    folder = place / "models" / "Lora"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(lora, folder / "mine.safetensors")
    Image.new("RGB", (8, 8), "red").save(folder / "mine.png")
    cards = {card.name: card for card in studio.cards()}
    assert cards["mine"].tag == "<lora:mine:1>" and cards["mine"].picture == folder / "mine.png"
    assert cards["tiny_night"].picture is None and cards["tiny_zorp"].tag == "tiny_zorp"


def test_a_folder_that_cannot_be_made_and_a_library_that_is_not_there_are_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        open_studio(StudioConfig(outputs_folder=str(tmp_path / "file" / "x")), tmp_path)
    with pytest.raises(UserError, match="no folder"):
        open_studio(StudioConfig(library_folder=str(tmp_path / "none")), tmp_path)
