"""Image to image, inpainting, the second pass, variations: what changes, what stays, and what each must equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation import plan as plans
from fastsd_lib.generation.canvas import filled, outpaint
from fastsd_lib.generation.denoising import denoise_together
from fastsd_lib.generation.engine import draw, load_engine
from fastsd_lib.generation.passes import batch
from fastsd_lib.generation.request import MASK_FILLS, UPSCALER_LABELS, GenerationRequest, Hires, Inpaint
from fastsd_lib.models import registry

ORDER = GenerationRequest("a photo of a red star", negative_prompt="cat", inference_steps=4, seed=3)


@pytest.fixture(scope="module")
def engine(tiny_pipeline):
    return load_engine(tiny_pipeline, device="cpu")


@pytest.fixture(scope="module")
def photo():
    """64 px of noise over a gradient: no two pixels of a row alike."""
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))


def disc(size=64, box=(16, 16, 47, 47)):
    mask = Image.new("L", (size, size))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def levels(picture):
    return np.asarray(picture, dtype=int)


def apart(one, other):
    return np.abs(levels(one) - levels(other)).max()


def drawn(engine, **choices):
    return engine.generate(replace(ORDER, **choices))[0].image


# ------------------------------------------------------------------ image to image


def test_strength_0_returns_the_picture_and_1_ignores_it(engine, photo):
    assert apart(drawn(engine, init=photo, strength=0), photo) == 0
    assert apart(drawn(engine, init=photo, strength=1), drawn(engine)) <= 1


def test_image_to_image_draws_what_diffusers_draws(engine, tiny_pipeline, photo):
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    from fastsd_lib.generation.vae import encode

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_pipeline.path)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        latents = encode(engine.parts, [photo], print)
    theirs = pipeline(
        ORDER.prompt,
        image=latents,
        negative_prompt=ORDER.negative_prompt,
        strength=0.5,
        num_inference_steps=8,
        guidance_scale=7.5,
        generator=[torch.Generator().manual_seed(ORDER.seed)],
    ).images[0]
    ours = drawn(engine, init=photo, strength=0.5, inference_steps=8, guidance_scale=7.5)
    assert apart(ours, theirs) <= 1


def test_more_strength_leaves_less_of_the_picture():
    embedded = load_engine(registry.base_model(), device="cpu")
    star = drawn(embedded, prompt="a photo of a red star on a blue background", inference_steps=15)
    heart = "a photo of a green heart on a yellow background"
    distances = [
        np.abs(
            levels(drawn(embedded, prompt=heart, init=star, strength=strength, inference_steps=12))
            - levels(star)
        ).mean()
        for strength in (0.1, 0.4, 0.7, 1.0)
    ]
    assert distances == sorted(distances) and distances[0] < 15 and distances[-1] > 60


def test_the_share_of_steps_is_the_strength(engine, photo):
    events = []
    engine.generate(replace(ORDER, init=photo, strength=0.5, inference_steps=10), events.append)
    assert (events[-1].done, events[-1].total) == (5, 5)
    assert plans.make_plan(engine.parts, replace(ORDER, init=photo, strength=0.01)).steps == 1


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill", "latent"])
def test_a_picture_of_another_shape_is_brought_to_size(engine, mode):
    wide = Image.new("RGB", (120, 60), "red")
    wide.paste((0, 0, 255), (0, 0, 30, 60))
    result = engine.generate(
        replace(ORDER, init=wide, strength=0.25, width_px=64, height_px=64, resize_mode=mode)
    )[0]
    assert result.image.size == (64, 64)
    canvas = plans.make_plan(
        engine.parts, replace(ORDER, init=wide, width_px=64, height_px=64, resize_mode=mode)
    ).canvas
    blue = (levels(canvas.picture)[..., 2] > 128).mean()
    assert blue == pytest.approx({"crop": 0.0, "fill": 0.25}.get(mode, 0.25), abs=0.05)


def test_without_a_size_the_picture_keeps_its_own_in_whole_latents(engine):
    assert drawn(engine, init=Image.new("RGB", (50, 37)), strength=0.25).size == (48, 36)


def test_transparent_turned_and_gray_pictures_are_drawn_over(engine):
    for mode in ("RGBA", "LA", "L", "P", "1", "CMYK"):
        assert drawn(engine, init=Image.new(mode, (64, 64)), strength=0.25).mode == "RGB"


# ------------------------------------------------------------------ inpainting


@pytest.mark.parametrize("fill", MASK_FILLS)
@pytest.mark.parametrize("blur_px", [0, 4])
@pytest.mark.parametrize("only_masked", [False, True])
def test_unmasked_pixels_stay_identical(engine, photo, fill, blur_px, only_masked):
    inpaint = Inpaint(disc(), fill=fill, blur_px=blur_px, only_masked=only_masked, padding_px=4)
    result = drawn(engine, init=photo, inpaint=inpaint, strength=0.9)
    masked = levels(disc()) > 0
    changed = (levels(result) != levels(photo)).any(axis=2)
    assert not changed[~masked].any()
    assert changed[masked].mean() > 0.9


def test_an_inverted_mask_keeps_what_was_to_change(engine, photo):
    result = drawn(engine, init=photo, inpaint=Inpaint(disc(), invert=True), strength=0.9)
    changed = (levels(result) != levels(photo)).any(axis=2)
    masked = levels(disc()) > 0
    assert not changed[masked].any() and changed[~masked].mean() > 0.9


def test_the_model_sees_what_stays_at_every_step(engine, photo):
    """Outside the mask the noisy latents are the picture's own, so that what is drawn joins on."""
    plan = plans.make_plan(engine.parts, replace(ORDER, init=photo, inpaint=Inpaint(disc()), strength=1))
    with plans.drawing_mode(plan):
        passes = batch(plan, range(1))
        denoising = next(passes)
        while denoising.ask is not None:
            denoise_together(plan.parts, plan.levels, [denoising])
    kept = denoising.mask[0, 0] == 0
    assert 0 < kept.float().mean() < 1
    assert torch.equal(denoising.latents[0, :, kept], denoising.known[0, :, kept])


def test_a_large_photo_is_drawn_in_its_masked_part_alone(engine):
    rng = np.random.default_rng(2)
    large = Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8))
    mask = Image.new("L", large.size)
    ImageDraw.Draw(mask).rectangle((240, 20, 279, 49), fill=255)
    request = replace(ORDER, init=large, inpaint=Inpaint(mask, only_masked=True, padding_px=10), strength=1)
    plan = plans.make_plan(engine.parts, request)
    assert plan.canvas.picture.size == (64, 64)  # the model's own size
    left, top, right, bottom = plan.canvas.box
    assert left <= 230 and right >= 290 and top <= 10 and bottom >= 60 and right - left == bottom - top
    result = engine.generate(request)[0].image
    assert result.size == large.size
    assert not (levels(result) != levels(large)).any(axis=2)[levels(mask) == 0].any()


def test_the_border_fades_inwards_and_thin_strokes_are_drawn_whole():
    from fastsd_lib.generation.canvas import _feathered

    mask = disc()
    ImageDraw.Draw(mask).line((2, 60, 60, 60), fill=255, width=1)
    soft = levels(_feathered(mask, 4))
    assert (soft[levels(mask) == 0] == 0).all() and (soft[levels(mask) > 0] > 0).all()
    assert soft[32, 32] == 255 and soft[32, 17] < 128
    assert (soft[60, 3:60] == 255).all()
    across = soft[32, 16:33]
    assert (np.diff(across) >= 0).all()


def test_the_fill_takes_the_colours_around_the_mask():
    picture = Image.new("RGB", (64, 64), "red")
    picture.paste((0, 0, 255), (32, 0, 64, 64))
    picture.paste((0, 255, 0), (16, 16, 48, 48))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    result = levels(filled(picture, mask))
    assert result[..., 1].max() < 20  # no green is left
    assert result[32, 18, 0] > 200 and result[32, 45, 2] > 200  # red on the left, blue on the right
    assert (result[levels(mask) == 0] == levels(picture)[levels(mask) == 0]).all()


def test_fills_begin_differently(engine, photo):
    results = [
        drawn(engine, init=photo, inpaint=Inpaint(disc(), fill=fill), strength=0.5) for fill in MASK_FILLS
    ]
    for number, one in enumerate(results):
        assert all(apart(one, other) > 5 for other in results[:number])


@pytest.fixture(scope="module")
def inpainting_parts(engine):
    """The tiny model with a U-Net of 9 channels, as inpainting models have."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(3)
    config = {**engine.parts.unet.config, "in_channels": 9}
    return replace(engine.parts, unet=UNet2DConditionModel.from_config(config).eval().requires_grad_(False))


def test_an_inpainting_model_gets_the_mask_and_the_picture_without_what_it_hides(inpainting_parts, photo):
    seen = []
    hook = inpainting_parts.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        request = replace(ORDER, init=photo, inpaint=Inpaint(disc(), blur_px=0), strength=1)
        result = draw(inpainting_parts, request)[0].image
        hidden = levels(photo).copy()
        hidden[levels(disc()) > 0] = 7  # what is under the mask must not matter
        other = draw(inpainting_parts, replace(request, init=Image.fromarray(hidden.astype(np.uint8))))[
            0
        ].image
        whole = draw(inpainting_parts, ORDER)[0].image
    finally:
        hook.remove()
    assert seen[0].shape[1] == 9
    assert seen[0][0, 4].unique().tolist() == [0, 1] and seen[-1][0, 4].unique().tolist() == [1]
    assert torch.equal(seen[0][:, 5:], seen[4][:, 5:])
    masked = levels(disc()) > 0
    assert (levels(result) == levels(photo))[~masked].all()
    assert other.size == whole.size == (64, 64)


def test_outpainting_adds_a_margin_and_keeps_the_middle(engine, photo):
    init, inpaint = outpaint(photo, left_px=16, bottom_px=32, overlap_px=4)
    result = drawn(engine, init=init, inpaint=inpaint, strength=1)
    assert result.size == (80, 96)
    assert (levels(result)[: 64 - 4, 16 + 4 :] == levels(photo)[: 64 - 4, 4:]).all()
    assert (levels(inpaint.mask)[:, :16] == 255).all() and (levels(inpaint.mask)[64:] == 255).all()


# ------------------------------------------------------------------ second pass, variations, tiling


@pytest.mark.parametrize("upscaler", UPSCALER_LABELS)
def test_the_second_pass_draws_a_larger_picture(engine, upscaler):
    result = engine.generate(replace(ORDER, hires=Hires(1.5, upscaler=upscaler, inference_steps=2)))[0]
    assert result.image.size == (96, 96)
    assert result.record["extra_parameters"]["Hires upscaler"] == UPSCALER_LABELS[upscaler]


def test_a_second_pass_of_little_strength_is_the_first_one_enlarged(engine):
    first = drawn(engine)
    enlarged = np.asarray(first.resize((128, 128), Image.Resampling.LANCZOS), dtype=int)
    weak, strong = (
        drawn(engine, hires=Hires(2, upscaler="lanczos", strength=strength, inference_steps=20))
        for strength in (0.05, 1.0)
    )
    weak_far, strong_far = (np.abs(levels(one) - enlarged).mean() for one in (weak, strong))
    assert weak_far < strong_far


def test_the_second_pass_counts_in_the_progress_and_may_differ_in_everything(engine):
    events = []
    hires = Hires(
        width_px=80, height_px=96, strength=0.5, inference_steps=6, sampler="Euler a", prompt="a blue cat"
    )
    result = engine.generate(replace(ORDER, hires=hires), events.append)[0]
    assert result.image.size == (80, 96) and events[-1].done == events[-1].total == 4 + 3
    other = engine.generate(replace(ORDER, hires=replace(hires, prompt="a red star")))[0]
    assert apart(result.image, other.image) > 1
    extra = result.record["extra_parameters"]
    assert (extra["Hires sampler"], extra["Hires resize"]) == ("Euler a", "80x96")


def test_an_edited_prompt_goes_on_in_the_second_pass_where_the_first_one_ended(engine):
    hires = Hires(1.5, strength=0.8, inference_steps=5)
    edited = drawn(engine, prompt="a [red star:blue cat:0.5]", hires=hires)
    said = drawn(engine, prompt="a [red star:blue cat:0.5]", hires=replace(hires, prompt="a blue cat"))
    assert apart(edited, said) <= 1


def test_a_variation_runs_from_the_seed_to_the_other_seed(engine):
    def varied(strength):
        return drawn(engine, seed=5, variation_seed=9, variation_strength=strength)

    assert apart(varied(0), drawn(engine, seed=5)) == 0
    assert apart(varied(1), drawn(engine, seed=9)) <= 1
    few, more = (np.abs(levels(varied(s)) - levels(varied(0))).mean() for s in (0.1, 0.6))
    assert 0 < few < more


def test_variations_share_the_seed_and_count_the_other_one_up(engine):
    pictures = engine.generate(replace(ORDER, count=3, variation_seed=20, variation_strength=0.5))
    assert [picture.seed for picture in pictures] == [3, 3, 3]
    assert [picture.record["variation_seed"] for picture in pictures] == [20, 21, 22]
    alone = drawn(engine, variation_seed=21, variation_strength=0.5)
    assert apart(pictures[1].image, alone) <= 1


def test_the_noise_of_a_mix_is_as_strong_as_noise():
    from fastsd_lib.generation.noise import PictureNoise, Variation

    mixed = PictureNoise([1], (4, 32, 32), torch.device("cpu"), Variation([2], 0.5)).first()
    assert mixed.std().item() == pytest.approx(1, abs=0.03)


def test_a_seed_from_another_size_keeps_its_noise_in_the_middle():
    from fastsd_lib.generation.noise import PictureNoise, Variation

    device = torch.device("cpu")
    small = PictureNoise([1], (4, 8, 8), device).first()
    large = PictureNoise([1], (4, 12, 16), device, Variation(from_size=(8, 8))).first()
    assert torch.equal(large[:, :, 2:10, 4:12], small)
    cut = PictureNoise([1], (4, 4, 6), device, Variation(from_size=(8, 8))).first()
    assert torch.equal(cut, small[:, :, 2:6, 1:7])


def test_tiled_pictures_are_drawn_without_an_edge(engine):
    """Shifting the noise round shifts the picture round: no place is special to the model."""
    parts = engine.parts
    plan = plans.make_plan(parts, replace(ORDER, tiling=True))
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    text = torch.zeros(1, 77, 128)

    def shifted(by):
        return parts.unet(x.roll(by, 3), torch.tensor([500.0]), text, return_dict=False)[0].roll(-by, 3)

    with plans.drawing_mode(plan):
        still, moved = shifted(0), shifted(8)
    assert torch.allclose(still, moved, atol=1e-4)
    with torch.inference_mode():
        assert not torch.allclose(shifted(0), shifted(8), atol=1e-2)
    assert apart(drawn(engine, tiling=True), drawn(engine)) > 1


# ------------------------------------------------------------------ many at once, and too little memory


def test_requests_that_share_the_unet_call_each_get_their_own_picture(engine):
    """Other sampler, steps, prompt length, guidance and picture count: as if each were alone."""
    requests = [
        replace(ORDER, sampler="Heun", inference_steps=3, count=2),
        replace(ORDER, sampler="DPM++ 2M SDE", prompt="red " * 100, inference_steps=5, seed=9),
        replace(ORDER, sampler="UniPC", guidance_scale=1, inference_steps=2),
        replace(ORDER, prompt="a red star AND a blue cat :0.5"),
    ]
    alone = [[picture.image for picture in engine.generate(request)] for request in requests]
    todo = [plans.make_plan(engine.parts, request) for request in requests]
    calls = []
    hook = engine.parts.unet.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
    try:
        with plans.drawing_mode(todo[0]):
            passes = [batch(plan, range(plan.request.count)) for plan in todo]
            going = [next(one) for one in passes]
            while waiting := [one for one in going if one.ask is not None]:
                denoise_together(engine.parts, todo[0].levels, waiting)
            together = []
            for one in passes:
                with pytest.raises(StopIteration) as end:
                    next(one)
                together.append(end.value.value)
    finally:
        hook.remove()
    assert calls == [4 + 2 + 1 + 3] * 2 + [4 + 2 + 3] * 2 + [4 + 2]  # Heun's 5 calls are those of 3 steps
    for ours, expected in zip(together, alone, strict=True):
        assert max(apart(one, other) for one, other in zip(ours, expected, strict=True)) <= 1


def test_too_little_memory_for_a_batch_draws_fewer_at_once_and_says_so(engine):
    expected = engine.generate(replace(ORDER, count=3))

    def short_of_memory(module, inputs):
        if len(inputs[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = engine.parts.unet.register_forward_pre_hook(short_of_memory)
    try:
        pictures = engine.generate(replace(ORDER, count=3))
    finally:
        hook.remove()
    assert [apart(a.image, b.image) <= 1 for a, b in zip(pictures, expected, strict=True)] == [True] * 3
    assert pictures[0].record["warnings"] == [
        "out of memory with 3 pictures at once: 1 at once from there on"
    ]


def test_too_little_memory_for_one_picture_says_what_to_do(engine):
    def none_left(module, inputs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    hook = engine.parts.unet.register_forward_pre_hook(none_left)
    try:
        with pytest.raises(UserError, match="does not suffice for a picture of 64 x 64 px") as error:
            engine.generate(ORDER)
    finally:
        hook.remove()
    assert "smaller" in error.value.fix


def test_too_little_memory_in_the_vae_decodes_in_tiles_and_says_so(engine):
    def short_of_memory(module, inputs):
        if inputs[0].shape[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")

    large = replace(ORDER, width_px=128, height_px=128, inference_steps=1)
    expected = engine.generate(large)[0].image
    hook = engine.parts.vae.decoder.register_forward_pre_hook(short_of_memory)
    try:
        picture = engine.generate(large)[0]
    finally:
        hook.remove()
    assert picture.image.size == (128, 128)
    assert "the picture is decoded in tiles" in picture.record["warnings"][-1]
    assert np.abs(levels(picture.image) - levels(expected)).mean() < 20
    assert not engine.parts.vae.use_tiling


# ------------------------------------------------------------------ what no model can follow


@pytest.mark.parametrize(
    ("wrong", "said", "way_out"),
    [
        ({"strength": 1.5}, "strength is 1.5", "0.75 is usual"),
        ({"strength": float("nan")}, "strength is nan", "0 to 1"),
        ({"eta": -1}, "eta is -1", "the sampler's own"),
        ({"clip_skip": 0}, "clip_skip is 0", "1 to 12"),
        ({"variation_strength": 2}, "variation_strength is 2", "0 to 1"),
        ({"variation_seed": -3}, "variation_seed is -3", "whole number"),
        ({"schedule": "karas"}, "No sigma schedule 'karas'", "did you mean 'Karras'"),
        ({"resize_mode": "zoom"}, "resize_mode is 'zoom'", "stretch, crop"),
        ({"inpaint": Inpaint(disc())}, "no picture under it", "give init"),
        ({"init": disc(), "inpaint": Inpaint(Image.new("L", (64, 64)))}, "marks nothing", "invert"),
        ({"init": disc(), "inpaint": Inpaint(disc(), blur_px=-1)}, "blur_px is -1", "4 is usual"),
        ({"init": disc(), "inpaint": Inpaint(disc(), fill="red")}, "fill is 'red'", "latent_noise"),
        ({"init": disc(), "hires": Hires()}, "drawn from nothing", "leave out"),
        ({"hires": Hires(9)}, "hires.scale is 9", "1 to 8"),
        ({"hires": Hires(upscaler="ESRGAN")}, "hires.upscaler is 'ESRGAN'", "lanczos"),
        ({"hires": Hires(sampler="eular")}, "No sampler 'eular'", "Euler"),
        ({"hires": Hires(width_px=66)}, "hires.width_px is 66", "64 or 68"),
    ],
)
def test_orders_no_model_can_follow_name_the_field(engine, wrong, said, way_out):
    with pytest.raises(UserError, match=said) as error:
        engine.generate(replace(ORDER, **wrong))
    assert way_out in error.value.fix
