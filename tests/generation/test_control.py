"""ControlNets against diffusers' pipeline, in company of other requests, from both layouts, and wrongly ordered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest, Hires, Inpaint

ORDER = GenerationRequest("a photo of a red star", negative_prompt="cat", inference_steps=4, seed=3)


def shape(fill: str = "white", size: tuple[int, int] = (64, 64)) -> Image.Image:
    picture = Image.new("RGB", size)
    ImageDraw.Draw(picture).ellipse((8, 16, 40, 60), fill=fill)
    return picture


def difference(one: Image.Image, other: Image.Image) -> int:
    """In levels of 255: 1 is rounding."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def random_net(unet: torch.nn.Module, seed: int, levels: tuple[int, ...] = (8, 16, 32)) -> torch.nn.Module:
    """A ControlNet that has an opinion: what begins at zero is random here."""
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=levels)
    for name, weight in net.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weight, std=0.15)
    return net.eval()


@pytest.fixture(scope="module")
def folder(tiny_pipeline, tmp_path_factory) -> Path:
    """One in a folder, one in a file without a config."""
    from diffusers import UNet2DConditionModel
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("controlnets")
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline.path / "unet")
    random_net(unet, 1).save_pretrained(root / "one")
    save_file(random_net(unet, 2).state_dict(), root / "two.safetensors")
    return root


@pytest.fixture(scope="module")
def engine(tiny_pipeline, folder):
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.resources import Library

    engine = load_engine(tiny_pipeline, device="cpu")
    engine.library = Library.of(LibraryFolders(controlnets=(folder,)))
    return engine


@pytest.fixture(scope="module")
def witness(tiny_pipeline, folder):
    from diffusers import ControlNetModel, MultiControlNetModel, StableDiffusionControlNetPipeline
    from safetensors.torch import load_file

    one = ControlNetModel.from_pretrained(folder / "one")
    two = ControlNetModel.from_config(one.config)
    two.load_state_dict(load_file(folder / "two.safetensors"))
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        tiny_pipeline.path, controlnet=MultiControlNetModel([one, two.eval()])
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by(pipeline, units: list[ControlUnit]) -> Image.Image:
    return pipeline(
        ORDER.prompt,
        negative_prompt=ORDER.negative_prompt,
        image=[unit.image for unit in units],
        num_inference_steps=ORDER.inference_steps,
        guidance_scale=7.5,
        controlnet_conditioning_scale=[unit.weight for unit in units],
        control_guidance_start=[unit.start for unit in units],
        control_guidance_end=[unit.end for unit in units],
        generator=torch.Generator().manual_seed(ORDER.seed),
    ).images[0]


@pytest.mark.parametrize(
    "units",
    [
        (("one", 1.0, 0.0, 1.0), ("two", 0.0, 0.0, 1.0)),
        (("one", 0.7, 0.0, 1.0), ("two", 1.3, 0.0, 1.0)),
        (("one", 1.0, 0.0, 0.5), ("two", 1.0, 0.25, 1.0)),
    ],
    ids=["one", "both", "over a part of the steps"],
)
def test_units_draw_what_diffusers_pipeline_draws(engine, witness, units):
    pictures = {"one": shape(), "two": shape("orange").transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    asked = [ControlUnit(pictures[name], name, weight=w, start=a, end=b) for name, w, a, b in units]
    ours = engine.generate(replace(ORDER, control=tuple(asked)))[0].image
    assert difference(ours, drawn_by(witness, asked)) <= 1
    assert difference(ours, engine.generate(ORDER)[0].image) > 10


@pytest.mark.parametrize("kind", ["sd2", "sdxl"])
def test_other_families_draw_what_diffusers_pipelines_draw(kind, tmp_path):
    import diffusers
    import tiny_families

    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.resources import Library

    model = getattr(tiny_families, f"save_{kind}")(tmp_path / kind)
    engine = load_engine(model, device="cpu")
    factor = engine.parts.vae_factor
    net = random_net(engine.parts.unet, 4, (8, 16, 16, 32)[-factor.bit_length() :])
    net.save_pretrained(tmp_path / "nets" / "canny")
    engine.library = Library.of(LibraryFolders(controlnets=(tmp_path / "nets",)))
    name = "StableDiffusionXLControlNetPipeline" if kind == "sdxl" else "StableDiffusionControlNetPipeline"
    pipeline = getattr(diffusers, name).from_pretrained(model.path, controlnet=net)
    pipeline.set_progress_bar_config(disable=True)
    picture = shape().resize((48, 48))
    theirs = pipeline(
        ORDER.prompt,
        negative_prompt=ORDER.negative_prompt,
        image=picture,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(ORDER.seed),
    ).images[0]
    order = replace(ORDER, inference_steps=3, width_px=48, height_px=48)
    ours = engine.generate(replace(order, control=(ControlUnit(picture, "canny"),)))[0].image
    assert difference(ours, theirs) <= 1
    assert difference(ours, engine.generate(order)[0].image) > 10


def drawn_together(engine, requests: list[GenerationRequest]) -> list[Image.Image]:
    """All requests step by step in shared U-Net calls."""
    from contextlib import ExitStack

    from fastsd_lib.generation.denoising import denoise_together
    from fastsd_lib.generation.passes import batch
    from fastsd_lib.generation.plan import drawing_mode, make_plan

    plans = [make_plan(engine.parts, request, library=engine.library) for request in requests]
    pictures: list[Image.Image | None] = [None] * len(plans)
    with ExitStack() as modes:
        for plan in plans:
            modes.enter_context(drawing_mode(plan))
        passes = [batch(plan, range(plan.request.count)) for plan in plans]
        waiting = {place: next(one) for place, one in enumerate(passes)}
        while waiting:
            denoise_together(engine.parts, plans[0].levels, list(waiting.values()))
            for place in [place for place, one in waiting.items() if one.ask is None]:
                with pytest.raises(StopIteration) as end:
                    next(passes[place])
                pictures[place] = end.value.value[0]
                del waiting[place]
    return pictures


def test_in_company_each_picture_is_the_one_drawn_alone(engine):
    """With and without units, different ones, longer prompts, fewer steps, no guidance, and a reference."""
    long = "a photo of a red star " * 30  # more than one chunk of the text encoder
    requests = [
        ORDER,
        replace(ORDER, control=(ControlUnit(shape(), "one"),)),
        replace(ORDER, control=(ControlUnit(shape("red"), "two", mode="control", weight=1.5),), prompt=long),
        replace(ORDER, control=(ControlUnit(shape(), "one", end=0.5), ControlUnit(shape(), "two")), seed=9),
        replace(ORDER, control=(ControlUnit(shape(), "two"),), guidance_scale=1, inference_steps=3),
        replace(ORDER, control=(ControlUnit(shape("red"), preprocessor="reference_only"),)),
    ]
    together = drawn_together(engine, requests)
    alone = [engine.generate(request)[0].image for request in requests]
    assert [difference(*pair) for pair in zip(together, alone, strict=True)] == pytest.approx([0] * 6, abs=1)
    apart = [difference(a, b) for n, a in enumerate(alone) for b in alone[:n]]
    assert min(apart) > 5


def latents_of(engine, request: GenerationRequest) -> torch.Tensor:
    """What a request's first pass ends with."""
    from fastsd_lib.generation.denoising import denoise_together
    from fastsd_lib.generation.passes import batch
    from fastsd_lib.generation.plan import drawing_mode, make_plan

    plan = make_plan(engine.parts, request, library=engine.library)
    with drawing_mode(plan):
        denoising = next(batch(plan, range(1)))
        while denoising.ask is not None:
            denoise_together(engine.parts, plan.levels, [denoising])
    return denoising.latents


def test_weight_0_is_off_and_a_mask_confines_a_unit(engine):
    plain = engine.generate(ORDER)[0].image
    off = engine.generate(replace(ORDER, control=(ControlUnit(shape(), "one", weight=0),)))[0].image
    assert difference(plain, off) == 0
    nowhere = ControlUnit(shape(), "one", mask=Image.new("L", (64, 64)))
    assert difference(engine.generate(replace(ORDER, control=(nowhere,)))[0].image, plain) == 0
    everywhere = replace(nowhere, mask=Image.new("L", (64, 64), 255))
    whole = engine.generate(replace(ORDER, control=(replace(nowhere, mask=None),)))[0].image
    assert difference(engine.generate(replace(ORDER, control=(everywhere,)))[0].image, whole) <= 1


def test_the_modes_weigh_the_residuals_as_a1111s_extension_does(engine):
    from fastsd_lib.generation.seen_text import SeenText
    from fastsd_lib.generation.steering import Seen, Steering, residuals

    net = engine.library.controlnets.load("one", engine.parts)
    hint = torch.rand(1, 3, 64, 64)
    text, x = SeenText(torch.randn(77, 128)), torch.randn(1, 4, 16, 16)

    def added(mode: str, region: torch.Tensor | None = None) -> list[torch.Tensor]:
        steering = [Steering(net, hint, 0.8, mode=mode, region=region)]
        rows = [Seen(x, 500.0, text, prompted, steering) for prompted in (False, True)]
        with torch.inference_mode():
            found = residuals(rows)
        return [*found["down_block_additional_residuals"], found["mid_block_additional_residual"]]

    balanced, prompt, control = added("balanced"), added("prompt"), added("control")
    count = len(balanced)
    for place, (even, soft, cond) in enumerate(zip(balanced, prompt, control, strict=True)):
        softness = 0.825 ** (count - 1 - place)
        assert torch.allclose(soft, even * softness, atol=1e-4)
        assert torch.allclose(cond[1], soft[1], atol=1e-4)
        assert not cond[0].any()  # nothing for the negative prompt
    left = torch.zeros(1, 1, 16, 16)
    left[..., :8] = 1
    half = added("balanced", left)[0]
    assert torch.allclose(half[..., :7], balanced[0][..., :7], atol=1e-4)
    assert not half[..., 9:].any()


def test_a_unit_acts_in_the_pass_it_is_for(engine):
    request = replace(ORDER, inference_steps=3, hires=Hires(scale=1.5, strength=0.7))

    def drawn(hires_pass: str, weight: float = 1.0) -> Image.Image:
        unit = ControlUnit(shape(), "one", hires_pass=hires_pass, weight=weight)
        return engine.generate(replace(request, control=(unit,)))[0].image

    off, both, first, second = drawn("both", 0), drawn("both"), drawn("first"), drawn("hires")
    assert off.size == (96, 96)
    assert min(difference(a, b) for a, b in ((off, first), (off, second), (first, both), (second, both))) > 5


def test_without_a_picture_of_its_own_a_unit_sees_what_is_drawn_over(engine):
    over = shape("red")
    given = replace(ORDER, init=over, strength=0.8, control=(ControlUnit(over, "one", preprocessor="canny"),))
    implied = replace(given, control=(ControlUnit(None, "one", preprocessor="canny"),))
    ours, same = engine.generate(given)[0], engine.generate(implied)[0]
    assert difference(ours.image, same.image) == 0
    assert difference(ours.control_maps[0], same.control_maps[0]) == 0
    assert set(np.unique(np.asarray(ours.control_maps[0]))) == {0, 255}


def test_an_inpainting_unit_hides_what_is_drawn_anew_and_keeps_the_rest(engine):
    from fastsd_lib.generation.plan import make_plan
    from fastsd_lib.generation.vae import encode

    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    unit = ControlUnit(shape("red"), "one", preprocessor="inpaint_only", mask=mask)
    request = replace(ORDER, control=(unit,))
    prepared = make_plan(engine.parts, request, library=engine.library).control[0]
    hint = prepared.steering(hires=False)[0].hint
    assert (hint[..., :32] == -1).all() and hint[..., 32:].min() >= 0
    latents = {}
    for name in ("inpaint_only", "inpaint_global_harmonious"):
        asked = replace(ORDER, control=(replace(unit, preprocessor=name),))
        latents[name] = latents_of(engine, asked)[..., 8:]
    with torch.inference_mode():
        known = encode(engine.parts, [unit.image], print)[..., 8:]
    assert torch.allclose(latents["inpaint_only"], known, atol=1e-4)
    assert (latents["inpaint_global_harmonious"] - known).abs().mean() > 0.1
    free = replace(unit, preprocessor="inpaint_global_harmonious")
    masked = replace(
        ORDER, init=unit.image, inpaint=Inpaint(mask), control=(replace(free, image=None, mask=None),)
    )
    again = make_plan(engine.parts, masked, library=engine.library).control[0].steering(hires=False)[0].hint
    assert (again[..., :32] == -1).all() and again[..., 32:].min() >= 0


def test_the_record_says_each_unit_as_a1111s_extension_does(engine):
    title = engine.library.controlnets.find("two").title
    units = (ControlUnit(shape(), "one", preprocessor="canny", weight=0.5, end=0.75),
             ControlUnit(shape(), title, mode="control", resize_mode="fill"))  # fmt: skip
    picture = engine.generate(replace(ORDER, control=units))[0]
    said = picture.record["extra_parameters"]
    assert said["ControlNet 0"] == (
        f"Module: canny, Model: {engine.library.controlnets.find('one').title}, Weight: 0.5, "
        "Resize Mode: Crop and Resize, Processor Res: 64, Threshold A: 100, Threshold B: 200, "
        "Guidance Start: 0.0, Guidance End: 0.75, Pixel Perfect: True, Control Mode: Balanced, Hr Option: Both"
    )
    assert f"Model: {title}" in said["ControlNet 1"]
    assert "Control Mode: ControlNet is more important" in said["ControlNet 1"]
    assert picture.record["control"][0]["image"] == "64x64"
    assert len(picture.control_maps) == 2


def test_files_with_their_inventors_names_are_the_same_network(narrow_sd15, tmp_path):
    """The names in between are diffusers' own conversion's to judge."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
    from safetensors.torch import save_file

    from fastsd_lib.formats.control_file import load_control_net, open_control_file
    from fastsd_lib.formats.key_maps import rename, unet_table

    unet = UNet2DConditionModel.from_pretrained(narrow_sd15.path / "unet")
    net = random_net(unet, 3, (8, 16, 16, 32))
    rows = {"conv_in": 0, "conv_out": 2 * len(net.controlnet_cond_embedding.blocks) + 2}
    rows |= {f"blocks.{n}": 2 * n + 2 for n in range(len(net.controlnet_cond_embedding.blocks))}
    table = unet_table(unet.config)
    table |= {f"controlnet_cond_embedding.{ours}": f"input_hint_block.{row}" for ours, row in rows.items()}
    table |= {f"controlnet_down_blocks.{n}": f"zero_convs.{n}.0" for n in range(12)}
    table |= {"controlnet_mid_block": "middle_block_out.0"}
    theirs = {rename(name, table): weight.contiguous() for name, weight in net.state_dict().items()}
    judged = convert_controlnet_checkpoint(
        dict(theirs), {**net.config, "class_embed_type": None, "addition_embed_type": None}
    )
    assert judged.keys() == net.state_dict().keys()
    for prefix in ("control_model.", ""):
        save_file({prefix + name: weight for name, weight in theirs.items()}, tmp_path / "old.safetensors")
        control = open_control_file(tmp_path / "old.safetensors")
        loaded = load_control_net(control, unet).state_dict()
        assert loaded.keys() == net.state_dict().keys()
        assert all(torch.equal(loaded[name], weight) for name, weight in net.state_dict().items())


def test_networks_are_kept_while_there_is_room(engine, folder, tmp_path):
    from fastsd_lib.generation.control_nets import ControlLibrary

    library = ControlLibrary(LibraryFolders(controlnets=(folder,)), budget_bytes=1)
    one = library.load("one", engine.parts)
    assert library.load("one", engine.parts) is one
    library.load("two", engine.parts)
    assert library.load("one", engine.parts) is not one
    roomy = ControlLibrary(LibraryFolders(controlnets=(folder,)))
    one = roomy.load("one", engine.parts)
    roomy.load("two", engine.parts)
    assert roomy.load("one", engine.parts) is one
    assert [info.name for info in roomy.models()] == ["one", "two"]
    (tmp_path / "three.safetensors").write_bytes((folder / "two.safetensors").read_bytes())
    size = sum(weight.nbytes for weight in one.parameters())
    tight = ControlLibrary(LibraryFolders(controlnets=(folder, tmp_path)), budget_bytes=2 * size)
    one, two = tight.load("one", engine.parts), tight.load("two", engine.parts)
    tight.load("one", engine.parts)
    tight.load("three", engine.parts)
    assert tight.load("one", engine.parts) is one  # asked for last
    assert tight.load("two", engine.parts) is not two
    title = roomy.models()[1].title
    assert title.startswith("two [") and roomy.find(title).name == "two"
    assert roomy.find(title[5:-1]).name == "two"  # by the hash alone


def save_stranger(path: Path, *names: str) -> None:
    from safetensors.torch import save_file

    save_file({name: torch.zeros(4, 4) for name in names}, path)


@pytest.mark.parametrize(
    ("unit", "said", "fix"),
    [
        (ControlUnit(shape(), "tow"), "There is no ControlNet 'tow'", "take one of: two"),
        (ControlUnit(shape()), "names no ControlNet", "give its model: one, two"),
        (ControlUnit(None, "one"), "has no picture", "give its image, or a picture to be drawn over"),
        (ControlUnit(shape(), "one", weight=3), "weight of a control unit is 3", "take 0 to 2; 1 is usual"),
        (ControlUnit(shape(), "one", start=0.8, end=0.2), "starts at 0.8 and ends at 0.2", "a start that is not after"),
        (ControlUnit(shape(), "one", mode="loud"), "'loud'", "take one of: balanced, prompt, control"),
        (ControlUnit(shape(), "one", preprocessor="cany"), "no preprocessor 'cany'", "nearest: canny"),
        (ControlUnit(shape(), "one", preprocessor="inpaint_only"), "has no mask", "give the unit's mask"),
        (ControlUnit(shape(), preprocessor="reference_only", threshold_a=2), "is 2", "take 0 to 1; 0.5 is usual"),
        (ControlUnit(shape(), "wide"), "text width 768", "take one that fits: one, two"),
        (ControlUnit(shape(), "adapter"), "a T2I-Adapter", "take a ControlNet of the same kind"),
        (ControlUnit(shape(), "pickled"), "is a pickle", "download pickled.safetensors"),
        (ControlUnit(shape(), "broken"), "does not fit this model", "download it again"),
    ],
)  # fmt: skip
def test_wrong_units_are_refused_before_anything_is_drawn(
    tiny_pipeline, folder, tmp_path, engine, unit, said, fix
):
    from safetensors.torch import load_file, save_file

    from fastsd_lib.generation.plan import make_plan
    from fastsd_lib.generation.resources import Library

    weights = load_file(folder / "two.safetensors")
    if unit.model == "wide":
        weights = {"controlnet_cond_embedding.conv_in.weight": torch.zeros(8, 3, 3, 3),
                   "conv_in.weight": torch.zeros(320, 4, 3, 3),
                   "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, 768)}  # fmt: skip
        save_file(weights, tmp_path / "wide.safetensors")
    if unit.model == "broken":
        del weights["controlnet_mid_block.weight"]
        save_file(weights, tmp_path / "broken.safetensors")
    save_stranger(tmp_path / "adapter.safetensors", "body.0.in_conv.weight")
    (tmp_path / "pickled.pth").write_bytes(b"\x80\x02}q\x00.")
    library = Library.of(LibraryFolders(controlnets=(folder, tmp_path)))
    with pytest.raises(UserError) as refused:
        make_plan(engine.parts, replace(ORDER, control=(unit,)), library=library)
    assert said in refused.value.message
    assert fix in refused.value.fix
