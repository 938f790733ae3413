"""Flux and SD3: our requests through diffusers' pipelines, beside those pipelines asked directly."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vocabulary import save_tokenizer

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.infotext import infotext
from fastsd_lib.generation.request import GenerationRequest, Hires, Inpaint
from fastsd_lib.models.identify import identify

ORDER = GenerationRequest("a red star", inference_steps=2, seed=3, count=2, width_px=32, height_px=48)
WORDS = ("▁a", "▁red", "▁blue", "▁star", "▁cat", "▁", *"abcdefghijklmnopqrstuvwxyz(),.:1234567890")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    return {"flux": save_flux(folder / "flux"), "sd3": save_sd3(folder / "sd3")}


@pytest.fixture(scope="module")
def engines(models):
    return {name: load_engine(model, device="cpu") for name, model in models.items()}


def save_flux(folder) -> ModelFiles:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(1)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    clip, words = clip_text(folder / "words", projects=False)
    t5, letters = t5_text()
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        tiny_vae(),
        clip,
        words,
        t5,
        letters,
        transformer,
    ).save_pretrained(folder)
    shutil.rmtree(folder / "words")
    return identify(folder).model_files


def save_sd3(folder) -> ModelFiles:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=32, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, pos_embed_max_size=32,
    )  # fmt: skip
    one, words = clip_text(folder / "one", projects=True)
    two, more_words = clip_text(folder / "two", projects=True)
    t5, letters = t5_text(width=64)
    StableDiffusion3Pipeline(
        transformer,
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        tiny_vae(),
        one,
        words,
        two,
        more_words,
        t5,
        letters,
    ).save_pretrained(folder)
    for name in ("one", "two"):
        shutil.rmtree(folder / name)
    return identify(folder).model_files


def tiny_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * 2, use_quant_conv=False, use_post_quant_conv=False,
        scaling_factor=0.3611, shift_factor=0.1159,
    ).eval()  # fmt: skip


def clip_text(folder, projects: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    count = save_tokenizer(folder)
    config = CLIPTextConfig(
        vocab_size=count, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=32, bos_token_id=count - 2, eos_token_id=count - 1, pad_token_id=count - 1,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if projects else CLIPTextModel)(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    return model.eval(), CLIPTokenizer.from_pretrained(folder)


def t5_text(width: int = 32):
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((word, -float(len(word))) for word in WORDS)]
    tokenizer = T5TokenizerFast(vocab=pieces, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        is_encoder_decoder=False,
    )
    return T5EncoderModel(config).eval(), tokenizer


def told(picture) -> list[str]:
    """Its warnings, but for that of a size far below the model's own, at which all is drawn here."""
    return [line for line in picture.record["warnings"] if "learned from" not in line]


def difference(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_request_is_drawn_as_the_pipeline_of_diffusers_draws_it(models, engines, name):
    import diffusers

    order = replace(ORDER, negative_prompt="cat" if name == "sd3" else "", guidance_scale=2.5)
    ours = engines[name].generate(order)
    kind = {"flux": "FluxPipeline", "sd3": "StableDiffusion3Pipeline"}[name]
    pipeline = getattr(diffusers, kind).from_pretrained(models[name].path)
    more = {"negative_prompt": "cat"} if name == "sd3" else {}
    for number in range(2):
        theirs = pipeline(
            order.prompt, num_inference_steps=2, guidance_scale=2.5, width=32, height=48,
            generator=torch.Generator().manual_seed(3 + number), **more,
        ).images[0]  # fmt: skip
        assert difference(ours[number].image, theirs) <= 1
    assert difference(ours[0].image, ours[1].image) > 5
    record = ours[1].record
    assert (record["seed"], record["width_px"], record["height_px"]) == (4, 32, 48)
    assert (record["guidance_scale"], record["model"], told(ours[1])) == (2.5, name, [])
    assert "Steps: 2, Sampler: Euler, Schedule type: Simple, CFG scale: 2.5, Seed: 4" in infotext(record)


@pytest.mark.parametrize("name", ["flux", "sd3"])
@pytest.mark.parametrize("over", [False, True])
def test_a_seed_gives_one_picture_alone_and_in_a_batch(engines, name, over):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 32, 3), np.uint8))
    order = replace(ORDER, count=3, **({"init": photo, "strength": 0.5} if over else {}))
    heard = []
    batch = engines[name].generate(order, heard.append)
    alone = engines[name].generate(replace(order, seed=4, count=1))[0]
    assert difference(batch[1].image, alone.image) <= 1
    assert difference(batch[0].image, batch[1].image) > 5
    assert heard[-1].total == 6 and [event.done for event in heard] == sorted(event.done for event in heard)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_strength_says_how_much_of_a_picture_is_drawn_anew(engines, name):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 32, 3), np.uint8))
    order = replace(ORDER, count=1, init=photo, inference_steps=4)
    none, little, much = (
        engines[name].generate(replace(order, strength=strength))[0].image for strength in (0, 0.1, 1)
    )
    assert difference(none, photo) == 0
    through_vae = engines[name].pipeline.vae
    with torch.no_grad():
        pixels = torch.from_numpy(np.asarray(photo, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        expected = through_vae.decode(through_vae.encode(pixels).latent_dist.mean).sample
    kept = torch.from_numpy(np.asarray(little, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    new = torch.from_numpy(np.asarray(much, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    assert (kept - expected).abs().mean() < (new - expected).abs().mean()


def test_what_is_not_followed_is_said_in_one_line(engines):
    order = replace(
        ORDER,
        count=1,
        prompt="a (red:1.3) star <lora:light:1>",
        negative_prompt="cat",
        sampler="dpmpp_2m_karras",
        eta=0.5,
        clip_skip=3,
    )
    assert told(engines["flux"].generate(order)[0]) == [
        "flux models do not heed: sampler dpmpp_2m_karras, eta, clip_skip, negative_prompt",
        "<lora:light:1> is not in force here",
        "weights, editing and AND in the prompt are read as plain text by this model",
    ]
    assert engines["sd3"].generate(order)[0].record["warnings"][0] == (
        "sd3 models do not heed: sampler dpmpp_2m_karras, eta"
    )
    [warning] = told(engines["sd3"].generate(replace(ORDER, count=1, prompt="red " * 300))[0])
    assert warning == "the prompt has 301 tokens, and 256 of them are read"
    assert told(engines["flux"].generate(replace(ORDER, count=1, sampler="euler"))[0]) == []


@pytest.mark.parametrize(
    ("more", "message", "fix"),
    [
        ({"width_px": 30}, "width_px is 30, but this model draws in multiples of 4", "take 28 or 32"),
        ({"hires": Hires()}, r"not drawn with a second pass \(hires\)", "leave out hires"),
        ({"tiling": True}, r"edges that fit together \(tiling\)", "leave out tiling"),
        ({"variation_strength": 0.5}, "variations of a seed", "leave out variation_strength"),
        (
            {"init": Image.new("RGB", (32, 32)), "inpaint": Inpaint(Image.new("L", (32, 32), 255))},
            r"with a mask \(inpaint\)",
            "leave out inpaint",
        ),
        ({"inference_steps": 0}, "inference_steps is 0", "take"),
    ],
)
def test_what_would_make_another_picture_is_refused(engines, more, message, fix):
    with pytest.raises(UserError, match=message) as error:
        engines["flux"].generate(replace(ORDER, **more))
    assert fix in error.value.fix


def test_single_files_and_folders_that_are_not_whole_say_so(models, tmp_path):
    with pytest.raises(UserError, match="in a single file, which is not opened here") as error:
        load_engine(ModelFiles("flux", "single_file", tmp_path / "flux.safetensors"), device="cpu")
    assert error.value.fix.endswith("convert flux.safetensors flux")
    torn = tmp_path / "torn"
    shutil.copytree(models["sd3"].path, torn)
    next((torn / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="is not a whole sd3 pipeline") as error:
        load_engine(ModelFiles("sd3", "diffusers", torn), device="cpu")
    assert "download it again" in error.value.fix


@pytest.mark.parametrize(
    ("pipeline", "use"),
    [("FluxFillPipeline", "filling a masked place"), ("FluxControlPipeline", "drawing along depth or edges")],
)
def test_flux_models_that_take_more_than_text_are_refused_before_they_are_loaded(
    models, tmp_path, pipeline, use
):
    folder = tmp_path / "other"
    shutil.copytree(models["flux"].path, folder)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", pipeline))
    with pytest.raises(
        UserError, match=f"other is a model for {use}.*, which is not drawn with here"
    ) as error:
        load_engine(ModelFiles("flux", "diffusers", folder), device="cpu")
    assert error.value.fix == "take Flux.1 dev or schnell."


def test_a_size_far_from_the_models_own_is_warned_of_but_not_over_a_picture(engines):
    small, own = (replace(ORDER, count=1, width_px=side, height_px=side) for side in (32, 256))
    assert engines["flux"].generate(small)[0].record["warnings"] == [
        "Flux cannot do 32 x 32 px: it learned from pictures of 256 px; take 256 px."
    ]
    assert engines["flux"].generate(own)[0].record["warnings"] == []
    over = replace(small, init=Image.new("RGB", (32, 32)), strength=0.5)
    assert engines["flux"].generate(over)[0].record["warnings"] == []


def test_fewer_are_drawn_at_once_when_memory_does_not_suffice(engines):
    transformer, order = engines["flux"].pipeline.transformer, replace(ORDER, count=2)
    expected = engines["flux"].generate(order)

    def narrow(module, inputs, kwargs):
        if len(kwargs["hidden_states"]) > 1:
            raise torch.OutOfMemoryError("too little")

    hook = transformer.register_forward_pre_hook(narrow, with_kwargs=True)
    try:
        pictures = engines["flux"].generate(order)
    finally:
        hook.remove()
    assert all(
        difference(*pair) <= 1
        for pair in zip((p.image for p in pictures), (p.image for p in expected), strict=True)
    )
    assert told(pictures[0]) == ["out of memory with 2 pictures at once: 1 at once from there on"]
    hook = transformer.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))
    )
    try:
        with pytest.raises(UserError, match="memory does not suffice") as error:
            engines["flux"].generate(order)
    finally:
        hook.remove()
    assert "smaller width" in error.value.fix
