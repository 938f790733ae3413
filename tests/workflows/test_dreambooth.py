import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.workflows import class_images, dreambooth, models


def test_photos_become_a_single_file_that_diffusers_itself_loads(session, narrow_sd15, config):
    checkpoint = dreambooth.train(session, narrow_sd15, config)
    assert checkpoint.finished
    trained = dreambooth.export(session, narrow_sd15, checkpoint)
    assert trained.path == session.model_file

    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_single_file(
        str(trained.path),
        config=str(narrow_sd15.path),
        local_files_only=True,
        torch_dtype=torch.float32,
        safety_checker=None,
    )
    from safetensors.torch import load_file

    learned = load_file(checkpoint.path / "unet.safetensors")
    loaded = pipe.unet.state_dict()
    assert loaded.keys() == learned.keys()
    assert all(torch.equal(loaded[name], value.half().float()) for name, value in learned.items())

    grid = Image.open(dreambooth.compare(session, narrow_sd15, trained, config, seeds=(1, 2)))
    assert grid.width > 2 * 160 and grid.height > 5 * 160  # photos, and two prompts before and after
    events = [entry["event"] for entry in json.loads(session.manifest.read_text())["history"]]
    assert events[-3:] == ["training started", "training finished", "exported"]
    assert sorted(path.name for path in session.samples.glob("step_*")) == [
        "step_000003_1.png",
        "step_000005_1.png",
    ]


def test_a_second_call_with_the_same_settings_trains_nothing(session, narrow_sd15, config):
    first = dreambooth.train(session, narrow_sd15, config)
    log = (session.logs / "metrics.jsonl").read_text()
    assert dreambooth.train(session, narrow_sd15, config) == first
    assert (session.logs / "metrics.jsonl").read_text() == log
    assert dreambooth.train(session, narrow_sd15, replace(config, unet_steps=4)).step == 6


def test_a_stop_is_heard_while_class_images_are_drawn_and_what_was_drawn_is_kept(
    session, narrow_sd15, config, monkeypatch
):
    monkeypatch.setattr(class_images, "BATCH", 2)
    ticks = count(1)
    with pytest.raises(UserError, match="Stopped with 2 of 3 class images drawn; they are kept") as caught:
        dreambooth.train(session, narrow_sd15, config, should_stop=lambda: next(ticks) >= 2)
    assert "run this again" in caught.value.fix
    assert len(list(session.class_images.glob("class-*.png"))) == 2
    assert dreambooth.make_class_images(session, narrow_sd15, config) == 3


def test_a_stopped_run_continues_and_starting_over_is_a_choice(session, narrow_sd15, config):
    dreambooth.make_class_images(session, narrow_sd15, config)
    ticks = count(1)
    stopped = dreambooth.train(session, narrow_sd15, config, should_stop=lambda: next(ticks) >= 3)
    assert (stopped.step, stopped.finished) == (3, False)
    assert dreambooth.train(session, narrow_sd15, config).finished
    lines = (session.logs / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]
    said = []
    assert dreambooth.train(session, narrow_sd15, config, resume=False, report=said.append).finished
    assert any(event.task == "text encoder" and event.done == 1 for event in said)


def test_lost_class_images_are_made_again_as_they_were_and_the_user_s_own_come_first(
    session, narrow_sd15, config
):
    assert dreambooth.make_class_images(session, narrow_sd15, config) == 3
    made = sorted(session.class_images.glob("class-*.png"))
    before = np.stack([np.asarray(Image.open(path), int) for path in made])
    made[1].unlink()
    dreambooth.make_class_images(session, narrow_sd15, config)
    after = np.stack([np.asarray(Image.open(path), int) for path in made])
    assert (
        abs(after - before).max() <= 1
    )  # drawn alone instead of in a batch: the last bit may round differently
    Image.new("RGB", (80, 80), "red").save(session.class_images / "mine.png")
    assert dreambooth.make_class_images(session, narrow_sd15, config) == 3
    assert class_images.planned(session, narrow_sd15, config, session.path / "cache")[0].name == "mine.png"
    assert dreambooth.make_class_images(session, narrow_sd15, replace(config, class_prompt="")) == 0


def test_a_session_without_photos_and_settings_that_clash_are_said_before_training(
    tmp_path, narrow_sd15, config
):
    empty = dreambooth.open_session("empty", tmp_path)
    with pytest.raises(UserError, match="no photo to learn from") as caught:
        dreambooth.train(empty, narrow_sd15, replace(config, class_prompt=""))
    assert "add-images" in caught.value.fix
    with pytest.raises(UserError, match="nothing would be trained"):
        dreambooth.train(empty, narrow_sd15, replace(config, unet_steps=0, text_encoder_steps=0))


def test_the_recipe_of_the_run_is_kept_in_the_session_and_in_the_model(session, narrow_sd15, config):
    from safetensors import safe_open

    checkpoint = dreambooth.train(session, narrow_sd15, config)
    trained = dreambooth.export(session, narrow_sd15, checkpoint)
    base, config = dreambooth.planned(session)
    assert (base, config) == (str(narrow_sd15.path), config)
    with safe_open(trained.path, "pt") as file:
        assert json.loads(file.metadata()["fastsd.recipe"])["unet_learning_rate"] == config.unet_learning_rate


def test_a_base_model_is_a_name_a_file_of_the_library_or_a_link(tmp_path):
    file = tmp_path / "models/Stable-diffusion/mine.safetensors"
    models.convert(dreambooth.base_model().path, file)
    assert dreambooth.base_model("mine", tmp_path).path == file
    assert dreambooth.base_model(str(file), tmp_path).family == "sd1"
    with pytest.raises(
        UserError, match="CivitAI link names no model"
    ):  # a link is followed, not taken for a path
        dreambooth.base_model("https://civitai.com/nothing", tmp_path)


def test_no_base_model_chosen_names_the_choices(session):
    with pytest.raises(UserError, match="No base model") as caught:
        dreambooth.planned(session)
    assert "--model embedded" in caught.value.fix


def test_a_damaged_checkpoint_is_reported_by_verify(session, narrow_sd15, config):
    checkpoint = dreambooth.train(session, narrow_sd15, config)
    assert dreambooth.verify(session) == []
    file = checkpoint.path / "unet.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert [line for line in dreambooth.verify(session) if "unet.safetensors is damaged" in line]


def test_a_first_run_on_a_base_model_takes_the_recipe_that_suits_it_and_what_the_user_changed(tmp_path):
    session = dreambooth.open_session("new", tmp_path)
    text = session.recipe.read_text().replace("flip: false", "flip: true")
    session.recipe.write_text(text)
    _, tiny = dreambooth.planned(session, model="embedded", choices=["instance_prompt=photo of sks cat"])
    assert (tiny.resolution_px, tiny.unet_steps, tiny.prior_target) == (64, 400, "base")
    assert (tiny.instance_prompt, tiny.class_prompt, tiny.flip) == ("photo of sks cat", "", True)
    _, classic = dreambooth.planned(session, model="1.5", choices=["instance_prompt=photo of sks cat"])
    assert (classic.resolution_px, classic.unet_steps, classic.flip) == (512, 1500, True)
    _, lora = dreambooth.planned(session, model="1.5", choices=["instance_prompt=x", "method=lora"])
    assert (lora.unet_learning_rate, lora.text_encoder_learning_rate) == (1e-4, 5e-5)
    session.recipe.write_text(text.replace("unet_steps: 1500", "unet_steps: 800"))
    _, own = dreambooth.planned(session, model="embedded", choices=["instance_prompt=photo of sks cat"])
    assert own.unet_steps == 800
