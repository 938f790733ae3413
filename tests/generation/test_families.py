"""SD 2.x and SDXL beside diffusers' own pipelines, alone and in mixed company, from folders and single files."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import save_sd2, save_sdxl

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.conditioning import encode
from fastsd_lib.generation.denoising import denoise_together
from fastsd_lib.generation.engine import draw, load_engine
from fastsd_lib.generation.passes import batch
from fastsd_lib.generation.plan import drawing_mode, make_plan
from fastsd_lib.generation.request import GenerationRequest, Inpaint
from fastsd_lib.generation.seen_text import SeenText, join
from fastsd_lib.generation.vae import decode
from fastsd_lib.generation.vae import encode as encode_pictures

ORDER = GenerationRequest("a photo of a red star", negative_prompt="cat", inference_steps=3, seed=3, count=2)
KINDS = ("sd2", "sd2_v", "sdxl", "sdxl_inpaint")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {
        "sd2": save_sd2(folder / "sd2"),
        "sd2_v": save_sd2(folder / "sd2_v", prediction="v_prediction"),
        "sdxl": save_sdxl(folder / "sdxl"),
        "sdxl_inpaint": save_sdxl(folder / "sdxl_inpaint", in_channels=9),
        "refiner": save_sdxl(folder / "refiner", refines=True),
    }


@pytest.fixture(scope="module")
def engines(models):
    return {name: load_engine(model, device="cpu") for name, model in models.items()}


def difference(one, other) -> int:
    """In levels of 255: 1 is rounding."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def witness(model, kind: str = ""):
    """diffusers' own pipeline."""
    import diffusers

    names = {"sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
    pipeline = getattr(diffusers, kind or names[model.family]).from_pretrained(model.path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline, order: GenerationRequest, **more):
    seeds = [torch.Generator().manual_seed(order.seed + number) for number in range(order.count)]
    return pipeline(
        prompt=[order.prompt] * order.count,
        negative_prompt=[order.negative_prompt] * order.count if order.negative_prompt else None,
        num_inference_steps=order.inference_steps,
        guidance_scale=order.guidance_scale or 7.5,
        generator=seeds,
        **more,
    ).images


@pytest.mark.parametrize("kind", ["sd2", "sd2_v", "sdxl"])
@pytest.mark.parametrize("negative", ["cat", ""])
def test_pictures_are_those_of_diffusers(models, engines, kind, negative):
    order = replace(ORDER, negative_prompt=negative)
    size = {"height": 48, "width": 32}
    ours = engines[kind].generate(replace(order, height_px=48, width_px=32))
    theirs = drawn_by(witness(models[kind]), order, **size)
    assert max(difference(one.image, other) for one, other in zip(ours, theirs, strict=True)) <= 1
    assert difference(ours[0].image, ours[1].image) > 20


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_clip_skip_counts_from_the_very_last_layer_so_2_is_what_these_models_read_anyway(
    models, engines, kind
):
    order = replace(ORDER, count=1, width_px=32, height_px=32)
    one, two, three = (engines[kind].generate(replace(order, clip_skip=skip))[0].image for skip in (1, 2, 3))
    assert difference(one, two) == 0 and difference(one, three) > 3
    if kind == "sdxl":  # diffusers counts further skips; its negative prompt never skips
        pipeline = witness(models[kind])
        ours = engines[kind].generate(replace(order, clip_skip=3, guidance_scale=1))[0].image
        theirs = drawn_by(pipeline, replace(order, guidance_scale=1), clip_skip=1, height=32, width=32)[0]
        assert difference(ours, theirs) <= 1
    with pytest.raises(UserError, match="clip_skip is 9") as error:
        engines[kind].generate(replace(order, clip_skip=9))
    assert f"take 1 to {4 if kind == 'sd2' else 3}" in error.value.fix


@pytest.mark.parametrize("kind", ["sd2_v", "sdxl", "sdxl_inpaint"])
def test_a_seed_gives_one_picture_alone_in_a_batch_and_beside_a_longer_prompt(engines, kind):
    parts = engines[kind].parts
    order = replace(ORDER, width_px=32, height_px=32, count=3, sampler="euler_a")
    batch = engines[kind].generate(order)
    alone = engines[kind].generate(replace(order, seed=order.seed + 1, count=1))[0]
    assert difference(batch[1].image, alone.image) <= 1
    longer = replace(
        order, prompt="a blue cat, " * 40, negative_prompt="", seed=99, sampler="dpmpp_2m", count=1
    )
    expected = engines[kind].generate(longer)[0].image
    mixed = drawn_together(parts, [replace(order, count=1, seed=order.seed + 1), longer])
    assert difference(mixed[0], alone.image) <= 1 and difference(mixed[1], expected) <= 1


def drawn_together(parts, orders):
    """Two requests in one U-Net call at each step, as the service draws them."""
    plans = [make_plan(parts, order) for order in orders]
    with drawing_mode(plans[0]):
        passes = [batch(plan, range(1)) for plan in plans]
        those = [next(one) for one in passes]
        while waiting := [one for one in those if one.ask is not None]:
            denoise_together(parts, plans[0].levels, waiting)
        pictures = []
        for one in passes:
            try:
                next(one)
            except StopIteration as end:
                pictures += end.value
    return pictures


def test_each_text_encoder_the_pooled_text_and_the_size_reach_the_picture(engines):
    parts, order = (
        engines["sdxl"].parts,
        replace(ORDER, count=1, width_px=32, height_px=32, inference_steps=6),
    )
    seen = []
    hook = parts.unet.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs), with_kwargs=True)
    try:
        engines["sdxl"].generate(order)
    finally:
        hook.remove()
    besides = seen[0]["added_cond_kwargs"]
    assert besides["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    with torch.no_grad():
        tokens = parts.tokenizer_2(
            [order.negative_prompt, order.prompt], padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        second = parts.text_encoder_2(tokens, output_hidden_states=True)
        first = parts.text_encoder(
            torch.where(tokens == 0, parts.tokenizer.pad_token_id, tokens), output_hidden_states=True
        )
    expected = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    assert torch.allclose(seen[0]["encoder_hidden_states"], expected, atol=1e-5)
    assert torch.allclose(besides["text_embeds"], second.text_embeds, atol=1e-5)


def test_a_long_prompt_is_pooled_by_its_first_chunk_and_an_empty_negative_one_is_zeros(engines):
    parts = engines["sdxl"].parts
    order = replace(ORDER, prompt="star " * 80, negative_prompt="")
    [(_, seen)], negative = encode(parts, order, size_px=(64, 32)).at(0, 3)
    assert seen.hidden.shape == negative.hidden.shape == (154, 192)
    [(_, first)], _ = encode(parts, replace(order, prompt="star " * 75)).at(0, 3)
    assert torch.equal(seen.pooled, first.pooled)
    assert seen.time_ids.tolist() == [32, 64, 0, 0, 32, 64]
    assert not negative.hidden.any() and not negative.pooled.any()
    spoken = encode(replace(parts, zero_empty_negative=False), order).at(0, 3)[1]
    assert spoken.hidden.any() and spoken.pooled.any()


def test_the_refiner_reads_with_the_second_encoder_alone_and_is_told_a_score(models, engines):
    parts = engines["refiner"].parts
    assert parts.text_encoder_2 is None and parts.text_parts[0].name == "clip_g"
    [(_, wanted)], unwanted = encode(parts, ORDER, size_px=(32, 32)).at(0, 3)
    assert (wanted.time_ids.tolist(), unwanted.time_ids.tolist()) == ([32, 32, 0, 0, 6], [32, 32, 0, 0, 2.5])
    pipeline = witness(models["refiner"], "StableDiffusionXLImg2ImgPipeline")
    told = pipeline.encode_prompt(ORDER.prompt, negative_prompt=ORDER.negative_prompt)
    for ours, theirs in zip(
        (wanted.hidden, unwanted.hidden, wanted.pooled, unwanted.pooled), told, strict=True
    ):
        assert torch.allclose(ours, theirs[0], atol=1e-5)
    [picture] = engines["refiner"].generate(replace(ORDER, count=1, width_px=32, height_px=32))
    assert np.asarray(picture.image).std() > 5


def test_each_row_of_a_shared_call_has_its_own_pooled_text_and_size():
    texts = [
        (SeenText(torch.zeros(77, 8), torch.full((4,), float(n)), torch.full((6,), float(10 * n))), rows)
        for n, rows in ((1, 2), (2, 1))
    ]
    besides = join(texts)["added_cond_kwargs"]
    assert besides["text_embeds"][:, 0].tolist() == [1, 1, 2]
    assert besides["time_ids"][:, 0].tolist() == [10, 10, 20]


def without_chance(vae):
    """Latents without the noise that diffusers draws from its generator: the spread is next to nothing."""
    with torch.no_grad():
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -30


@pytest.mark.parametrize(("prompt", "other"), [("a sksword", "a red star")])
def test_learned_words_have_a_part_for_each_text_encoder(engines, prompt, other):
    parts = engines["sdxl"].parts
    ids = parts.tokenizer("red star", add_special_tokens=False).input_ids
    word = {
        "clip_l": parts.text_encoder.get_input_embeddings().weight[ids].detach(),
        "clip_g": parts.text_encoder_2.get_input_embeddings().weight[ids].detach(),
    }
    [(_, learned)], _ = encode(parts, replace(ORDER, prompt=prompt), embeddings={"sksword": word}).at(0, 3)
    [(_, plain)], _ = encode(parts, replace(ORDER, prompt=other)).at(0, 3)
    assert torch.equal(learned.hidden, plain.hidden) and torch.equal(learned.pooled, plain.pooled)
    wrong = {
        "sksword": torch.zeros(2, 64),
        "skshalf": {"clip_l": torch.zeros(2, 64)},
        "skswide": {"clip_l": torch.zeros(2, 64), "clip_g": torch.zeros(2, 1280)},
    }
    said = encode(parts, replace(ORDER, prompt="sksword skshalf skswide"), embeddings=wrong)
    assert said.warnings == [
        "the embedding 'sksword' is made for another model: (2, 64), not a part each for clip_l and clip_g",
        "the embedding 'skshalf' is made for another model: clip_l, not clip_l and clip_g",
        "the embedding 'skswide' is made for another model: (2, 1280), not (count, 128)",
    ]
    single = encode(engines["sd2"].parts, replace(ORDER, prompt="sksword"), embeddings={"sksword": word})
    assert single.warnings == [
        "the embedding 'sksword' is made for another model: clip_l and clip_g, not clip_h"
    ]


def test_an_inpainting_model_of_sdxl_draws_what_diffusers_draws_where_all_is_masked(models, engines):
    order = replace(ORDER, width_px=32, height_px=32)
    ours = engines["sdxl_inpaint"].generate(order)
    pipeline = witness(models["sdxl_inpaint"], "StableDiffusionXLInpaintPipeline")
    without_chance(pipeline.vae)
    without_chance(engines["sdxl_inpaint"].parts.vae)
    gray = Image.new("RGB", (32, 32), (127, 127, 127))
    white = Image.new("L", (32, 32), 255)
    theirs = drawn_by(pipeline, order, image=gray, mask_image=white, strength=1.0, height=32, width=32)
    assert max(difference(one.image, other) for one, other in zip(ours, theirs, strict=True)) <= 1


def test_an_inpainting_model_of_sdxl_is_shown_what_diffusers_shows_it(models, engines):
    photo = Image.fromarray(np.random.default_rng(2).integers(0, 255, (32, 32, 3), np.uint8))
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 8, 24, 20))
    parts, pipeline = (
        engines["sdxl_inpaint"].parts,
        witness(models["sdxl_inpaint"], "StableDiffusionXLInpaintPipeline"),
    )
    without_chance(pipeline.vae)
    without_chance(parts.vae)
    order = replace(ORDER, count=1, init=photo, strength=1, inpaint=Inpaint(mask, blur_px=0))
    seen = [first_input(parts.unet, lambda: engines["sdxl_inpaint"].generate(order))]
    options = {"image": photo, "mask_image": mask, "strength": 1.0, "height": 32, "width": 32}
    seen.append(first_input(pipeline.unet, lambda: drawn_by(pipeline, order, **options)))
    assert seen[0].shape == (2, 9, 16, 16)
    assert torch.allclose(seen[0], seen[1], atol=1e-4)


def first_input(unet, draw) -> torch.Tensor:
    seen = []
    hook = unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    try:
        draw()
    finally:
        hook.remove()
    return seen[0]


def test_a_model_trained_to_zero_signal_draws_what_diffusers_draws(models, engines):
    import diffusers

    parts = engines["sd2_v"].parts
    zero = replace(parts, scheduler_config={**parts.scheduler_config, "rescale_betas_zero_snr": True})
    order = replace(ORDER, sampler="euler", schedule="uniform", width_px=32, height_px=32)
    ours = draw(zero, order)
    pipeline = witness(models["sd2_v"])
    config = {**pipeline.scheduler.config, "rescale_betas_zero_snr": True, "timestep_spacing": "linspace"}
    pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(config)
    theirs = drawn_by(pipeline, order, height=32, width=32)
    assert max(difference(one.image, other) for one, other in zip(ours, theirs, strict=True)) <= 1
    assert difference(ours[0].image, draw(parts, order)[0].image) > 5


def test_parts_that_wait_elsewhere_draw_the_same_and_stay_ordinary_weights(models, engines):
    """On the CPU they move nowhere; that they leave a GPU is not tried here."""
    parts = load_engine(models["sdxl"], device="cpu").parts
    parts.offload()
    order = replace(ORDER, count=1, width_px=32, height_px=32)
    assert difference(draw(parts, order)[0].image, engines["sdxl"].generate(order)[0].image) == 0
    assert not any(weight.is_inference() for module in parts.modules for weight in module.parameters())


# ------------------------------------------------------------------ VAE


def test_a_vae_that_leaves_the_range_of_fp16_goes_on_in_float32_and_says_so(models):
    engine = load_engine(models["sdxl"], device="cpu")
    vae = engine.parts.vae
    with torch.no_grad():  # exact in both widths, so that only the overflow between them differs
        vae.decoder.conv_in.weight.mul_(2.0**18)
        vae.decoder.conv_in.bias.mul_(2.0**18)
    latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    notes: list[str] = []
    expected = decode(engine.parts, latents, notes.append)[0]
    assert notes == [] and np.asarray(expected).std() > 5
    vae.half()
    picture = decode(engine.parts, latents, notes.append)[0]
    assert notes == ["the VAE gave no numbers (NaN) in float16: it works in float32 from here on"]
    assert difference(picture, expected) <= 2 and next(vae.parameters()).dtype == torch.float32
    with torch.no_grad():
        vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="VAE of sdxl gave no numbers") as error:
        decode(engine.parts, latents, notes.append)
    assert error.value.fix == "choose another VAE for it."


def test_the_vae_may_scale_each_channel_of_the_latents(engines):
    parts = engines["sdxl"].parts
    own = parts.vae.config
    latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    spread = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None, None]
    plain = decode(parts, latents * spread + 0.5 * own.scaling_factor, [].append)[0]
    parts.vae.register_to_config(latents_mean=[0.5] * 4, latents_std=[1.0, 2.0, 3.0, 4.0])
    try:
        assert difference(decode(parts, latents, [].append)[0], plain) <= 1
        means = encode_pictures(parts, [plain], [].append)
        parts.vae.register_to_config(latents_mean=None, latents_std=None)
        again = encode_pictures(parts, [plain], [].append)
        assert torch.allclose(means, (again - 0.5 * own.scaling_factor) / spread, atol=1e-5)
    finally:
        parts.vae.register_to_config(latents_mean=None, latents_std=None)
