"""The sampling loop against diffusers' own pipeline, against itself in batches, and with wrong orders."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.single_file import export_single_file
from fastsd_lib.generation.request import GenerationRequest

ORDER = GenerationRequest("a photo of a red star", negative_prompt="cat", inference_steps=4, seed=3, count=3)


@pytest.fixture(scope="module")
def engine(tiny_pipeline):
    from fastsd_lib.generation.engine import load_engine

    return load_engine(tiny_pipeline, device="cpu")


@pytest.fixture(scope="module")
def witness(tiny_pipeline):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_pipeline.path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def difference(one, other) -> int:
    """In levels of 255: 1 is rounding."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def drawn_by(pipeline, order: GenerationRequest):
    import torch

    noise = [torch.Generator().manual_seed(order.seed + number) for number in range(order.count)]
    return pipeline(
        [order.prompt] * order.count,
        negative_prompt=[order.negative_prompt] * order.count,
        num_inference_steps=order.inference_steps,
        guidance_scale=7.5,
        generator=noise,
    ).images


# Ours -> the rule of diffusers on the same noise levels.
WITNESSES = {
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
}


@pytest.mark.parametrize("name", WITNESSES)
def test_samplers_draw_what_diffusers_pipeline_draws(engine, witness, name):
    import diffusers

    kind, settings = WITNESSES[name]
    schedule = {k: v for k, v in engine.parts.scheduler_config.items() if not k.startswith("_")}
    witness.scheduler = getattr(diffusers, kind).from_config({**schedule, **settings})
    order = replace(ORDER, sampler=name, schedule="ddim", count=2)
    ours = engine.generate(order)
    theirs = drawn_by(witness, order)
    apart = [difference(one.image, other) for one, other in zip(ours, theirs, strict=True)]
    assert max(apart) <= 1
    assert difference(ours[0].image, ours[1].image) > 20  # and they are two pictures


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_models_that_predict_velocity_draw_what_diffusers_draws(engine, witness, kind):
    import diffusers

    from fastsd_lib.generation.engine import draw

    schedule = {k: v for k, v in engine.parts.scheduler_config.items() if not k.startswith("_")}
    config = {**schedule, "prediction_type": "v_prediction"}
    witness.scheduler = getattr(diffusers, kind).from_config(config)
    name = "ddim" if kind.startswith("DDIM") else "euler"
    order = replace(ORDER, sampler=name, schedule="ddim", count=1)
    ours = draw(replace(engine.parts, scheduler_config=config), order)[0]
    assert difference(ours.image, drawn_by(witness, order)[0]) <= 1
    assert difference(ours.image, engine.generate(order)[0].image) > 20


def test_weights_of_prompts_joined_by_and_add_up(engine):
    """Two halves of one prompt are that prompt."""
    whole = engine.generate(replace(ORDER, count=1))[0].image
    halves = replace(ORDER, count=1, prompt="a photo of a red star :0.5 AND a photo of a red star :0.5")
    assert difference(engine.generate(halves)[0].image, whole) <= 1
    switched = engine.generate(replace(ORDER, count=1, prompt="a photo of a [cat:red star:0]"))[0].image
    assert difference(switched, whole) <= 1


@pytest.mark.parametrize("name", ["ddim", "euler_a"])
def test_a_picture_of_a_batch_is_the_picture_of_its_seed_alone(engine, name):
    batch = engine.generate(replace(ORDER, sampler=name))
    for picture in batch:
        alone = engine.generate(replace(ORDER, sampler=name, count=1, seed=picture.seed))[0]
        assert difference(picture.image, alone.image) <= 1


def test_batches_that_do_not_fit_at_once_give_the_same_pictures(engine, monkeypatch):
    from fastsd_lib.generation import engine as room

    at_once = engine.generate(ORDER)
    monkeypatch.setattr(room, "BATCH_LATENTS", 2 * 16 * 16)
    events = []
    in_two = engine.generate(ORDER, events.append)
    assert [difference(a.image, b.image) <= 1 for a, b in zip(at_once, in_two, strict=True)] == [True] * 3
    assert [event.facts["picture"] for event in (events[0], events[-1])] == ["1-2 of 3", "3 of 3"]


def test_progress_counts_every_step_to_the_end(engine):
    events = []
    engine.generate(replace(ORDER, count=1), events.append)
    assert [(event.done, event.total) for event in events] == [(n, 4) for n in range(5)]


def test_a_single_file_draws_the_same_as_its_folder(engine, tiny_pipeline, tmp_path):
    from fastsd_lib.generation.engine import load_engine

    file = export_single_file(tiny_pipeline, tmp_path / "m.safetensors", dtype=None)
    ours = load_engine(file, device="cpu").generate(ORDER)
    assert [p.image.tobytes() for p in ours] == [p.image.tobytes() for p in engine.generate(ORDER)]


def test_a_bare_single_file_draws_with_the_configs_of_a_folder(engine, tiny_pipeline, tmp_path):
    from safetensors.numpy import load_file, save_file

    from fastsd_lib.generation.engine import load_engine

    file = export_single_file(tiny_pipeline, tmp_path / "m.safetensors", dtype=None)
    save_file(load_file(file.path), file.path)  # as other programs write it: weights only
    ours = load_engine(file, device="cpu", config_from=tiny_pipeline.path).generate(ORDER)
    assert [p.image.tobytes() for p in ours] == [p.image.tobytes() for p in engine.generate(ORDER)]


def test_at_guidance_1_the_unet_runs_once_per_picture_and_the_negative_prompt_is_mute(engine):
    sizes = []
    hook = engine.parts.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    try:
        one = engine.generate(replace(ORDER, count=1, guidance_scale=1))[0]
        other = engine.generate(replace(ORDER, count=1, guidance_scale=1, negative_prompt="dog"))[0]
        engine.generate(replace(ORDER, count=1))
    finally:
        hook.remove()
    assert sizes == [1] * 8 + [2] * 4
    assert one.image.tobytes() == other.image.tobytes()


def test_the_record_draws_the_same_picture_again(engine):
    picture = engine.generate(replace(ORDER, sampler="euler", width_px=32))[1]
    known = {field: picture.record.get(field) for field in GenerationRequest.__dataclass_fields__}
    wanted = {field: value for field, value in known.items() if value is not None}
    again = engine.generate(GenerationRequest(**wanted))[0]
    assert again.image.size == (32, 64)
    assert difference(picture.image, again.image) <= 1


def test_the_models_own_guidance_is_used_when_none_is_asked(tiny_pipeline, tmp_path):
    import shutil

    from fastsd_lib.generation.engine import load_engine

    shutil.copytree(tiny_pipeline.path, tmp_path / "m")
    (tmp_path / "m" / "fastsd.json").write_text('{"guidance_scale": 3.0}')
    own = load_engine(ModelFiles("sd1", "diffusers", tmp_path / "m"), device="cpu")
    assert own.generate(replace(ORDER, inference_steps=1))[0].record["guidance_scale"] == 3.0


def test_training_modules_come_back_in_training_mode(engine):
    engine.parts.unet.train()
    try:
        engine.generate(replace(ORDER, count=1, inference_steps=1))
        assert engine.parts.unet.training and not engine.parts.vae.training
    finally:
        engine.parts.unet.eval()


def test_what_the_reporter_raises_ends_the_drawing(engine):
    seen = []

    def report(event):
        seen.append(event.done)
        if event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(ORDER, report)
    assert seen == [0, 1, 2]


def test_a_prompt_longer_than_77_tokens_is_read_to_its_end(engine):
    long = "red " * 75
    one, other = (
        engine.generate(GenerationRequest(long + word, inference_steps=2))[0] for word in ("star", "cat")
    )
    assert difference(one.image, other.image) > 1
    assert one.record["warnings"] == []


@pytest.mark.parametrize(
    ("wrong", "said", "way_out"),
    [
        ({"width_px": 66}, "width_px is 66, but this model draws in multiples of 4", "take 64 or 68"),
        ({"height_px": -8}, "height_px is -8", "take 4 or 8"),
        ({"inference_steps": 0}, "inference_steps is 0", "1 to 1000"),
        ({"count": 0}, "count is 0", "1 to 1000 pictures"),
        ({"seed": -1}, "seed is -1", "a whole number from 0"),
        ({"seed": 2**32 - 2}, "the last of 3 pictures would have the seed", "take a smaller seed"),
        ({"guidance_scale": -2.0}, "guidance_scale is -2.0", "7.5 is usual"),
        ({"sampler": "eular"}, "No sampler 'eular'", "did you mean 'Euler'"),
    ],
)
def test_orders_no_model_can_follow_say_what_to_take(engine, wrong, said, way_out):
    with pytest.raises(UserError, match=said) as error:
        engine.generate(replace(ORDER, **wrong))
    assert way_out in error.value.fix


def test_devices_dtypes_and_families_that_are_not_there_say_so(tiny_pipeline, tmp_path):
    from fastsd_lib.generation.engine import load_engine

    with pytest.raises(UserError, match="No device 'tpu' here"):
        load_engine(tiny_pipeline, device="tpu")
    with pytest.raises(UserError, match="No dtype 'int4'"):
        load_engine(tiny_pipeline, dtype="int4")
    with pytest.raises(UserError, match="is not a whole Diffusers folder"):
        load_engine(ModelFiles("sdxl", "diffusers", tmp_path), device="cpu")


def test_a_broken_model_says_so_instead_of_drawing_black(engine):
    import torch

    weight = engine.parts.unet.conv_out.bias
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        with pytest.raises(UserError, match="gave no numbers") as error:
            engine.generate(replace(ORDER, count=1))
        assert "fp32" in error.value.fix
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize(
    ("channels", "pipeline", "use"),
    [
        (4, "StableUnCLIPPipeline", r"variations of a picture \(unCLIP\)"),
        (8, "StableDiffusionInstructPix2PixPipeline", "instruct-pix2pix"),
        (5, "StableDiffusionDepth2ImgPipeline", "depth to image"),
    ],
)
def test_a_model_that_takes_more_than_text_is_refused_before_it_is_loaded(
    tiny_pipeline, tmp_path, channels, pipeline, use
):
    from diffusers import UNet2DConditionModel

    from fastsd_lib.generation.engine import load_engine

    folder = shutil.copytree(tiny_pipeline.path, tmp_path / "other")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', f'"{pipeline}"'))
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": channels}).save_pretrained(folder / "unet")
    with pytest.raises(UserError, match=f"other is a model for {use}, which is not drawn with here") as error:
        load_engine(ModelFiles("sd1", "diffusers", folder), device="cpu")
    assert error.value.fix == "take a text-to-image or inpainting model, such as 1.5."
