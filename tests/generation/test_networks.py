"""LoRA of every kind against diffusers, peft and closed forms; put in force and taken out to the last bit."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import save_sdxl

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import load_parts
from fastsd_lib.generation.denoising import denoise_together
from fastsd_lib.generation.engine import Engine, load_engine
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.passes import batch
from fastsd_lib.generation.plan import drawing_mode, make_plan
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.text_reader import EncodingCache
from fastsd_lib.models.registry import EXTRAS_FOLDER, base_model

ORDER = GenerationRequest("a red star", inference_steps=2, seed=3)
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"


@pytest.fixture(scope="module")
def pristine(tiny_pipeline):
    torch.set_num_threads(1)
    return load_parts(tiny_pipeline, torch.device("cpu"), torch.float32)


@pytest.fixture
def engine(pristine, tiny_pipeline, tmp_path):
    (tmp_path / "Lora").mkdir()
    library = Library.of(LibraryFolders(loras=(tmp_path / "Lora",)))
    return Engine(copy.deepcopy(pristine), tiny_pipeline, library=library)


def random(*shape, seed=0, size=0.1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * size


def kohya(parts, only=lambda path: "attn" in path or "conv1" in path, rank=3, alpha=1.5, text=True):
    """A LoRA under kohya's names, written here from the modules' paths."""
    tensors = {}
    for part, name in (("unet", "lora_unet"), ("text_encoder", "lora_te")):
        for path, module in getattr(parts, part).named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or weight.ndim not in (2, 4) or (part == "text_encoder" and not text):
                continue
            if part == "unet" and not only(path):
                continue
            if part == "text_encoder" and "_proj" not in path:
                continue
            path = path if part == "unet" or path.startswith("text_model") else f"text_model.{path}"
            key = f"{name}_{path.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = random(rank, *weight.shape[1:], seed=len(tensors))
            tensors[f"{key}.lora_up.weight"] = random(
                weight.shape[0], rank, *(1 for _ in weight.shape[2:]), seed=len(tensors)
            )
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def put(engine, name, tensors, metadata=None):
    path = engine.library.folders.loras[0] / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: one.contiguous() for key, one in tensors.items()}, path, metadata)
    return path


def in_force(engine, prompt):
    """The live weights with the prompt's networks in force."""
    networks = engine.library.networks.choose(replace(ORDER, prompt=prompt), engine.parts)
    networks.put_in_force(engine.parts, engine.texts)
    return weights(engine.parts)


def weights(parts):
    found = {f"unet.{name}": one.detach().clone() for name, one in parts.unet.named_parameters()}
    names = parts.text_encoder.named_parameters()
    return found | {f"text.{name}": one.detach().clone() for name, one in names}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def of_unet(tensors):
    return {name.removeprefix("unet."): one for name, one in tensors.items() if name.startswith("unet.")}


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, one in theirs.items():
        torch.testing.assert_close(
            ours[name], one, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def fused(pipeline):
    """The weights of diffusers' pipeline after fuse_lora, under plain names."""
    pipeline.fuse_lora(components=["unet", "text_encoder"])
    pipeline.unload_lora_weights()
    found = {f"unet.{name}": one.detach() for name, one in pipeline.unet.named_parameters()}
    return found | {f"text.{name}": one.detach() for name, one in pipeline.text_encoder.named_parameters()}


def witness(tiny_pipeline):
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(tiny_pipeline.path)


def test_a_file_of_kohyas_kind_changes_both_halves_as_diffusers_does(engine, tiny_pipeline):
    path = put(engine, "both", kohya(engine.parts))
    pipeline = witness(tiny_pipeline)
    pipeline.load_lora_weights(str(path), adapter_name="both")
    pipeline.set_adapters("both", {"unet": 0.5, "text_encoder": 0.9})
    ours = in_force(engine, "<lora:both:0.9:0.5>")
    before = weights(witness(tiny_pipeline))
    assert sum(not torch.equal(ours[name], before[name]) for name in before) > 40
    assert_close(ours, fused(pipeline))


@pytest.mark.parametrize("dora", [False, True])
def test_a_file_of_peft_with_its_settings_changes_the_unet_as_diffusers_does(engine, tiny_pipeline, dora):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(1)
    made = witness(tiny_pipeline)
    where = ["to_q", "to_out.0", "proj_in", "conv1"] if not dora else ["to_q", "to_out.0", "conv1"]
    made.unet.add_adapter(
        LoraConfig(r=4, lora_alpha=2, target_modules=where, init_lora_weights=False, use_dora=dora)
    )
    made.save_lora_weights(
        engine.library.folders.loras[0],
        unet_lora_layers=get_peft_model_state_dict(made.unet),
        unet_lora_adapter_metadata=made.unet.peft_config["default"].to_dict(),
        weight_name="peft.safetensors",
    )
    if dora:  # lengths that are not the base model's
        path = engine.library.folders.loras[0] / "peft.safetensors"
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = {k: v * 1.1 if "magnitude" in k else v for k, v in load_file(path).items()}
        assert any("magnitude" in name for name in tensors)
        save_file(tensors, path, metadata)
    pipeline = witness(tiny_pipeline)
    pipeline.load_lora_weights(str(engine.library.folders.loras[0]), weight_name="peft.safetensors")
    ours = in_force(engine, "<lora:peft:1>")
    assert not same(ours, weights(witness(tiny_pipeline)))
    assert_close(ours, fused(pipeline))


def test_the_alpha_of_peft_counts_as_in_its_settings(engine):
    tensors = {
        f"unet.{ATTENTION}.lora_A.weight": random(4, 128),
        f"unet.{ATTENTION}.lora_B.weight": random(64, 4),
    }
    plain = in_force(engine, "")
    settings = {"unet.r": 4, "unet.lora_alpha": 2}
    put(engine, "said", tensors, {"lora_adapter_metadata": json.dumps(settings)})
    put(engine, "unsaid", tensors)
    name = f"unet.{ATTENTION}.weight"
    half = in_force(engine, "<lora:said:1>")[name] - plain[name]
    torch.testing.assert_close(half * 2, in_force(engine, "<lora:unsaid:1>")[name] - plain[name])


def test_names_of_old_diffusers_files_are_read(engine):
    plain = in_force(engine, "")
    attention = ATTENTION.removesuffix(".to_k")
    put(
        engine,
        "old",
        {
            f"unet.{attention}.processor.to_k_lora.down.weight": random(2, 128),
            f"unet.{attention}.processor.to_k_lora.up.weight": random(64, 2),
            f"unet.{attention}.processor.to_out_lora.down.weight": random(2, 64),
            f"unet.{attention}.processor.to_out_lora.up.weight": random(64, 2),
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.down.weight": random(2, 128),
            "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight": random(128, 2),
        },
    )
    ours = in_force(engine, "<lora:old:1>")
    changed = {name for name in ours if not torch.equal(ours[name], plain[name])}
    assert {name for name in changed if name.startswith("unet")} == {
        f"unet.{attention}.to_k.weight",
        f"unet.{attention}.to_out.0.weight",
    }
    (text,) = (name for name in changed if name.startswith("text"))
    assert text.endswith("encoder.layers.0.self_attn.q_proj.weight")
    change = ours[f"unet.{attention}.to_k.weight"] - plain[f"unet.{attention}.to_k.weight"]
    torch.testing.assert_close(change, random(64, 2) @ random(2, 128), rtol=1e-3, atol=1e-5)


def n(*shape, seed=0):
    return random(*shape, seed=seed, size=0.3).double().numpy()


def closed_form(kind):
    """Tensors of one module, the module, and what they add, in numpy and double precision."""
    out, inside = 64, 128
    if kind == "loha":
        a, b, c, d = n(out, 2), n(2, inside), n(out, 2, seed=1), n(2, inside, seed=1)
        tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": np.array(1.0)}
        change = np.zeros((out, inside))
        for i in range(out):
            change[i] = (a[i] @ b) * (c[i] @ d) / 2
        return tensors, ATTENTION, change
    if kind == "loha conv":
        t, u = n(2, 2, 3, 3), n(2, 2, 3, 3, seed=1)
        a, b, c, d = n(2, 32), n(2, 32, seed=1), n(2, 32, seed=2), n(2, 32, seed=3)
        tensors = {"hada_t1": t, "hada_w1_a": a, "hada_w1_b": b, "hada_t2": u, "hada_w2_a": c, "hada_w2_b": d}
        change = np.zeros((32, 32, 3, 3))
        for x in range(3):
            for y in range(3):
                change[:, :, x, y] = (a.T @ t[:, :, x, y] @ b) * (c.T @ u[:, :, x, y] @ d)
        return tensors, CONVOLUTION, change
    if kind == "lokr":
        whole, a, b = n(4, 8), n(16, 2), n(2, 16)
        tensors = {"lokr_w1": whole, "lokr_w2_a": a, "lokr_w2_b": b, "alpha": np.array(1.0)}
        return tensors, ATTENTION, np.kron(whole, a @ b) / 2
    if kind == "lokr conv":
        first, second = n(4, 4), n(8, 8, 3, 3)
        change = np.zeros((32, 32, 3, 3))
        for x in range(3):
            for y in range(3):
                change[:, :, x, y] = np.kron(first, second[:, :, x, y])
        return (
            {"lokr_w1": first, "lokr_w2": second, "alpha": np.array(7.0)},
            CONVOLUTION,
            change,
        )  # whole: no alpha
    if kind == "tucker":
        mid, down, up = n(2, 2, 3, 3), n(2, 32), n(32, 2)
        tensors = {"lora_mid.weight": mid, "lora_down.weight": down[:, :, None, None]}
        tensors |= {"lora_up.weight": up[:, :, None, None], "alpha": np.array(4.0)}
        change = np.zeros((32, 32, 3, 3))
        for x in range(3):
            for y in range(3):
                change[:, :, x, y] = up @ mid[:, :, x, y] @ down * 2
        return tensors, CONVOLUTION, change
    change = n(out, inside)
    return {"diff": change}, ATTENTION, change


@pytest.mark.parametrize("kind", ["loha", "loha conv", "lokr", "lokr conv", "tucker", "diff"])
def test_other_kinds_follow_their_closed_form(engine, kind):
    tensors, path, change = closed_form(kind)
    plain = in_force(engine, "")[f"unet.{path}.weight"]
    key = f"lora_unet_{path.replace('.', '_')}"
    put(engine, "kind", {f"{key}.{name}": torch.tensor(one).float() for name, one in tensors.items()})
    ours = in_force(engine, "<lyco:kind:0.5>")[f"unet.{path}.weight"]
    expected = plain.double() + 0.5 * torch.tensor(change)
    assert not torch.equal(ours, plain)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 1), (1, 128)])
def test_dora_gives_the_changed_weight_the_lengths_it_says(engine, shape):
    """Per output or per input, as LyCORIS writes it."""
    key = f"lora_unet_{ATTENTION.replace('.', '_')}"
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 0.5
    tensors = {"lora_down.weight": random(2, 128), "lora_up.weight": random(64, 2), "dora_scale": scale}
    put(engine, "dora", {f"{key}.{name}": one for name, one in tensors.items()})
    ours = in_force(engine, "<lora:dora:1>")[f"unet.{ATTENTION}.weight"]
    axis = 1 if shape[1] == 1 else 0
    torch.testing.assert_close(ours.norm(dim=axis, keepdim=True), scale, rtol=1e-4, atol=1e-5)


def test_a_bias_is_changed_and_restored_too(engine):
    plain = in_force(engine, "")
    key = f"lora_unet_{CONVOLUTION.replace('.', '_')}"
    put(engine, "bias", {f"{key}.diff": random(32, 32, 3, 3), f"{key}.diff_b": random(32)})
    ours = in_force(engine, "<lora:bias:2>")
    torch.testing.assert_close(
        ours[f"unet.{CONVOLUTION}.bias"], plain[f"unet.{CONVOLUTION}.bias"] + 2 * random(32)
    )
    assert same(in_force(engine, ""), plain)


def test_dyn_takes_the_first_dimensions_alone(engine):
    key, down, up = f"lora_unet_{ATTENTION.replace('.', '_')}", random(4, 128), random(64, 4)
    plain = in_force(engine, "")[f"unet.{ATTENTION}.weight"]
    put(
        engine,
        "dyn",
        {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(2.0)},
    )
    ours = in_force(engine, "<lora:dyn:te=1:unet=1:dyn=2>")[f"unet.{ATTENTION}.weight"]
    torch.testing.assert_close(ours, plain + up[:, :2] @ down[:2] / 2)


def test_sdxls_names_reach_both_text_encoders_and_the_unet_by_ldms_names(tmp_path):
    """Witness: diffusers' own loader of the same file."""
    from diffusers import StableDiffusionXLPipeline

    model = save_sdxl(tmp_path / "sdxl")
    engine = load_engine(model, device="cpu", dtype="fp32")
    (tmp_path / "Lora").mkdir()
    engine.library = Library.of(LibraryFolders(loras=(tmp_path / "Lora",)))
    attention = "transformer_blocks_1_attn1_to_q"
    widths = {
        # the row of LDM's blocks, as openaimodel.py counts them: one residual block per level, one downsampler
        "lora_unet_output_blocks_0_1_"
        + attention: "up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_q",
        "lora_unet_middle_block_1_" + attention: "mid_block.attentions.0.transformer_blocks.1.attn1.to_q",
    }
    tensors, plain = {}, dict(engine.parts.unet.named_parameters())
    for key, path in widths.items():
        width = plain[f"{path}.weight"].shape[0]
        tensors |= {f"{key}.lora_down.weight": random(2, width), f"{key}.lora_up.weight": random(width, 2)}
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    for encoder, width in (("lora_te1", 64), ("lora_te2", 128)):
        for which in ("q_proj", "out_proj"):
            key = f"{encoder}_text_model_encoder_layers_0_self_attn_{which}"
            tensors |= {
                f"{key}.lora_down.weight": random(2, width),
                f"{key}.lora_up.weight": random(width, 2),
            }
            tensors[f"{key}.alpha"] = torch.tensor(1.0)
    path = put(engine, "xl", tensors)
    assert engine.library.networks.find_lora("xl").family == "sdxl"
    names = ("unet", "text_encoder", "text_encoder_2")
    pipeline = StableDiffusionXLPipeline.from_pretrained(model.path)
    pipeline.load_lora_weights(str(path))
    pipeline.fuse_lora(components=list(names))
    pipeline.unload_lora_weights()
    before = {
        name: {k: v.clone() for k, v in getattr(engine.parts, name).named_parameters()} for name in names
    }
    engine.library.networks.choose(replace(ORDER, prompt="<lora:xl:1>"), engine.parts).put_in_force(
        engine.parts, engine.texts
    )
    for name in names:
        ours = dict(getattr(engine.parts, name).named_parameters())
        assert sum(not torch.equal(ours[key], before[name][key]) for key in ours) == 2
        assert_close(ours, dict(getattr(pipeline, name).named_parameters()))


def test_weights_come_back_bit_by_bit_and_only_what_is_touched_is_kept_twice(engine):
    put(engine, "one", kohya(engine.parts))
    put(engine, "two", kohya(engine.parts, only=lambda path: "attn1.to_v" in path, text=False))
    plain = in_force(engine, "a star")
    both = in_force(engine, "<lora:one:0.7><lora:two:-0.3>")
    kept = vars(engine.parts.unet)["networks_in_force"].originals
    assert {f"{'text' if part != 'unet' else part}.{name}" for part, name in kept} == {
        name for name in plain if not torch.equal(plain[name], both[name])
    }
    version = engine.parts.weights_version
    in_force(engine, "<lora:one:0.7> other words <lora:two:-0.3>")
    assert engine.parts.weights_version == version, "the same set is not put in force again"
    two = in_force(engine, "<lora:two:-0.3>")
    assert engine.parts.weights_version > version
    assert same(in_force(engine, "<lora:two:-0.3><lora:one:0>"), two)
    assert same(in_force(engine, "<lora:one:0.7><lora:two:-0.3>"), both), "the way there does not matter"
    assert same(in_force(engine, "a star"), plain)
    assert not vars(engine.parts.unet)["networks_in_force"].originals


def test_several_add_up_and_the_same_one_twice_counts_twice(engine):
    put(engine, "one", kohya(engine.parts, only=lambda path: "attn2" in path))
    put(engine, "two", kohya(engine.parts, only=lambda path: "attn2" in path, rank=2))
    plain, name = in_force(engine, ""), f"unet.{ATTENTION}.weight"
    one = in_force(engine, "<lora:one:0.5>")[name] - plain[name]
    two = in_force(engine, "<lora:two:0.25>")[name] - plain[name]
    torch.testing.assert_close(
        in_force(engine, "<lora:one:0.5><lora:two:0.25>")[name], plain[name] + one + two
    )
    assert_close(in_force(engine, "<lora:one:0.5><lora:one:0.5>"), in_force(engine, "<lora:one:1>"))


def test_half_precision_is_rounded_once_and_restored_exactly(engine):
    engine.parts.unet.half()
    put(engine, "one", kohya(engine.parts, text=False))
    plain = in_force(engine, "")
    ours = in_force(engine, "<lora:one:0.5><lora:one:0.5>")[f"unet.{ATTENTION}.weight"]
    tensors = kohya(engine.parts, text=False)
    key = f"lora_unet_{ATTENTION.replace('.', '_')}"
    change = tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"] * 0.5
    torch.testing.assert_close(
        ours.float(), plain[f"unet.{ATTENTION}.weight"].float() + change, rtol=1e-3, atol=1e-4
    )
    assert same(in_force(engine, ""), plain)


def pictures_of(engine, prompt):
    return [np.asarray(one.image) for one in engine.generate(replace(ORDER, prompt=prompt))]


def test_texts_are_read_anew_when_the_text_encoder_changes(engine):
    put(engine, "text", {k: v * 5 for k, v in kohya(engine.parts, only=lambda path: False).items()})
    plain = pictures_of(engine, "a red star")
    changed = pictures_of(engine, "a red star<lora:text:1>")
    assert not np.array_equal(plain, changed)
    assert np.array_equal(pictures_of(engine, "a red star"), plain)
    assert np.array_equal(pictures_of(engine, "a red star<lora:text:1>"), changed)
    assert np.array_equal(pictures_of(engine, "a red star<lora:text:0:1>"), plain), (
        "no U-Net part in the file"
    )
    other = replace(engine, texts=EncodingCache())
    assert np.array_equal(pictures_of(other, "a red star"), plain)
    assert np.array_equal(pictures_of(engine, "a red star"), plain), "a cache that slept is not stale"


def test_requests_with_and_without_share_calls_only_with_their_like_and_draw_what_they_draw_alone(engine):
    put(engine, "one", {k: v * 3 for k, v in kohya(engine.parts).items()})
    prompts = [
        "a red star<lora:one:1>",
        "blue cat",
        "<lora:one:1>blue cat",
        "a red star",
        "a red star<lora:one:0.5>",
    ]
    alone = [pictures_of(engine, prompt)[0] for prompt in prompts]
    assert len({picture.tobytes() for picture in alone}) == len(prompts)
    plans = [
        make_plan(engine.parts, replace(ORDER, prompt=one), engine.texts, engine.library) for one in prompts
    ]
    companies = {plan.company: [] for plan in plans}
    for number, plan in enumerate(plans):
        companies[plan.company].append(number)
    assert sorted(companies.values()) == [[0, 2], [1, 3], [4]]
    drawn, passes, waiting = {}, {}, {}
    for number, plan in enumerate(plans):
        with drawing_mode(plan):
            passes[number] = batch(plan, range(1))
            waiting[number] = next(passes[number])
    while len(drawn) < len(plans):  # one step of each company in turn
        for members in companies.values():
            left = [number for number in members if number not in drawn]
            if not left:
                continue
            with drawing_mode(plans[left[0]]):
                denoise_together(engine.parts, plans[left[0]].levels, [waiting[number] for number in left])
                for number in left:
                    if waiting[number].ask is None:
                        try:
                            waiting[number] = passes[number].send(None)
                        except StopIteration as end:
                            drawn[number] = np.asarray(end.value[0])
    for number, picture in enumerate(alone):
        assert np.abs(drawn[number].astype(int) - picture).max() <= 1, prompts[number]


def test_networks_are_found_by_file_name_subfolder_and_their_makers_name(engine):
    tensors = kohya(engine.parts, text=False)
    put(engine, "people/anna_v2", tensors, {"ss_output_name": "Anna", "ss_tag_frequency": '{"a": 1}'})
    library = engine.library.networks
    for name in ("anna_v2", "people/anna_v2", "Anna", "anna", "ANNA_V2", "anna_v2.safetensors"):
        assert library.find_lora(name).name == "anna_v2", name
    (info,) = library.loras()
    assert (info.alias, info.metadata["ss_tag_frequency"]) == ("Anna", {"a": 1})
    put(engine, "bert", tensors)
    assert [one.name for one in library.loras()] == ["anna_v2", "bert"], "new files are seen at once"
    for name in ("../../etc/passwd", "/etc/passwd", "people/../people/anna_v2", "a\0/b"):
        with pytest.raises(UserError, match="no LoRA"):
            library.find_lora(name)


def test_a_file_from_elsewhere_is_listed_found_and_forgotten_when_it_is_gone(engine, pristine, tmp_path):
    library = engine.library.networks
    put(engine, "star", kohya(pristine))
    trained = put(engine, "../session/my-cat-lora", kohya(pristine))
    assert [one.name for one in library.loras()] == ["star"]
    assert library.add_lora(trained) == "my-cat-lora"
    assert [one.name for one in library.loras()] == ["my-cat-lora", "star"]
    assert library.find_lora("my-cat-lora").path == trained
    trained.unlink()
    with pytest.raises(UserError, match="no LoRA 'my-cat-lora'"):
        library.find_lora("my-cat-lora")


def test_unknown_names_name_the_nearest_ones(engine):
    put(engine, "moonlight", kohya(engine.parts, text=False))
    with pytest.raises(UserError) as refused:
        engine.generate(replace(ORDER, prompt="a star <lora:monlight:0.5>"))
    assert str(refused.value) == (
        "<lora:monlight:0.5>: there is no LoRA 'monlight' (nearest: moonlight).\n"
        "  -> take one of these names, or put the file into models/Lora."
    )


def test_hypernetworks_are_refused_in_one_line(engine):
    with pytest.raises(UserError) as refused:
        engine.generate(replace(ORDER, prompt="<hypernet:anime:1>"))
    assert str(refused.value) == (
        "<hypernet:anime:1>: hypernetworks are not supported.\n  -> leave the tag out; a LoRA does the same."
    )


def test_tags_that_are_switched_off_do_nothing(engine):
    put(engine, "one", kohya(engine.parts))
    plain = pictures_of(engine, "a star")
    off = engine.generate(replace(ORDER, prompt="a star<lora:one:1><lora:missing:1>", networks_off=True))[0]
    assert np.array_equal(np.asarray(off.image), plain[0])
    assert "Lora hashes" not in off.record["extra_parameters"]


FAMILIES = {
    # what only a LoRA for that family holds: (module, what it reads, the file's metadata, family)
    "width": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 2048, {}, "SDXL"),
    "width 2": ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", 1024, {}, "SD 2.x"),
    "second text encoder": ("lora_te2_text_model_encoder_layers_0_mlp_fc1", 128, {}, "SDXL"),
    "deeper blocks": ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k", 128, {}, "SDXL"),
    "kohya says": ("lora_unet_conv_in", 9, {"ss_base_model_version": "sdxl_base_v1-0"}, "SDXL"),
    "flux": ("lora_unet_double_blocks_0_img_attn_proj", 128, {}, "Flux"),
    "flux of diffusers": ("transformer.single_transformer_blocks.0.attn.to_q", 128, {}, "Flux"),
    "sd3": ("transformer.transformer_blocks.0.attn.to_q", 128, {}, "SD 3"),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_lora_for_another_family_is_refused_by_name(engine, kind):
    key, width, metadata, family = FAMILIES[kind]
    tensors = {f"{key}.lora_down.weight": random(2, width), f"{key}.lora_up.weight": random(64, 2)}
    put(engine, "other", tensors, metadata)
    with pytest.raises(UserError) as refused:
        in_force(engine, "<lora:other:1>")
    assert f"the LoRA is made for {family}, and the model tiny is SD 1.x." in refused.value.message
    assert refused.value.fix == f"take a model of {family}, or a LoRA for SD 1.x."


def test_a_lora_of_another_shape_is_refused_and_a_few_foreign_modules_are_a_warning(engine):
    tensors = kohya(engine.parts)
    foreign = {
        "lora_unet_extra_attn.lora_down.weight": random(2, 9),
        "lora_unet_extra_attn.lora_up.weight": random(9, 2),
    }
    put(engine, "some", tensors | foreign)
    warnings = engine.generate(replace(ORDER, prompt="<lora:some:1>"))[0].record["warnings"]
    assert len(warnings) == 1
    assert "do not fit this model; lora_unet_extra_attn is unknown there" in warnings[0]
    put(engine, "most", foreign)
    with pytest.raises(UserError, match="does not fit the model tiny: of its 1 modules 1 do not") as refused:
        in_force(engine, "<lora:most:1>")
    assert (
        refused.value.fix == "take it with the base model that it was trained on, or one of the same shape."
    )
    wrong = {k: torch.zeros(3, 999) if k.endswith("down.weight") else v for k, v in tensors.items()}
    put(engine, "wrong", wrong)
    with pytest.raises(UserError, match="is of another shape there"):
        in_force(engine, "<lora:wrong:1>")


def hostile(name, folder, good):
    path = folder / "bad.safetensors"
    if name == "cut short":
        save_file(good, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "web page":
        path.write_bytes(b"<!DOCTYPE html><html>log in</html>")
    elif name == "something else":
        save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, path)
    elif name == "pickled":
        torch.save({"a": torch.zeros(1)}, folder / "bad.pt")
    elif name == "halves":
        save_file({k: v for k, v in good.items() if "lora_up" not in k}, path)
    elif name == "alpha of many":
        save_file({k: torch.ones(3) if k.endswith("alpha") else v for k, v in good.items()}, path)
    elif name == "no numbers":
        save_file({k: v * torch.nan if "lora_up" in k else v for k, v in good.items()}, path)
    elif name == "huge":
        save_file({k: v * 1e38 if "lora_" in k else v for k, v in good.items()}, path)
    elif name == "huge claims":
        header = {
            "lora_unet_x.lora_down.weight": {
                "dtype": "F32",
                "shape": [1, 10**12],
                "data_offsets": [0, 4 * 10**12],
            }
        }
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "message", "fix"),
    [
        ("cut short", "not a whole .safetensors file", "download or copy it again."),
        ("web page", "is a web page", "open the link in a browser"),
        ("something else", "no LoRA that is known here: it holds model.diffusion_model", "as .safetensors."),
        ("pickled", "bad.pt is a pickled LoRA, which can run code", "take it as .safetensors."),
        ("halves", "does not fit the model", "take it with the base model"),
        ("alpha of many", "does not fit the model", "take it with the base model"),
        ("no numbers", "bad.safetensors in force, weights are no numbers (NaN)", "download it again"),
        ("huge", "too large", "take a smaller weight in the tag"),
        ("huge claims", "not a whole .safetensors file", "download or copy it again."),
        ("empty", "not a whole .safetensors file", "download or copy it again."),
    ],
)
def test_bad_files_are_refused_in_words_and_change_nothing(engine, name, message, fix):
    plain = weights(engine.parts)
    put(engine, "good", kohya(engine.parts))
    hostile(name, engine.library.folders.loras[0], kohya(engine.parts))
    with pytest.raises(UserError) as refused:
        in_force(engine, "<lora:good:1><lora:bad:1>")
    assert message in refused.value.message
    assert fix in refused.value.fix
    assert same(weights(engine.parts), plain)
    assert [one.name for one in engine.library.networks.loras() if one.name != "bad"] == ["good"]


def test_too_many_networks_are_refused(engine):
    with pytest.raises(UserError, match="names 33 LoRA") as refused:
        in_force(engine, "<lora:x:1>" * 33)
    assert refused.value.fix == "take at most 32."


def test_a_file_that_changed_is_read_anew_and_one_that_changed_midway_is_refused(engine):
    path = put(engine, "one", kohya(engine.parts))
    first = in_force(engine, "<lora:one:1>")
    late = engine.library.networks.choose(replace(ORDER, prompt="<lora:one:0.5>"), engine.parts)
    put(engine, "one", kohya(engine.parts, rank=5))
    assert not same(in_force(engine, "<lora:one:1>"), first)
    with pytest.raises(UserError, match=f"{path.name} changed while the picture waited"):
        late.put_in_force(engine.parts, engine.texts)
    assert same(in_force(engine, "<lora:one:1>"), in_force(engine, "<lora:one:1>"))


def test_the_picture_says_the_hashes_as_a1111_does(engine):
    path = put(engine, "one:x".replace(":", "_"), kohya(engine.parts))
    data = path.read_bytes()
    sha = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    put(engine, "two", kohya(engine.parts), {"sshs_model_hash": "ab" * 32})
    record = engine.generate(replace(ORDER, prompt="a <lora:one_x:0.1><lora:two:0>"))[0].record
    assert record["extra_parameters"]["Lora hashes"] == f"one_x: {sha[:12]}, two: {'ab' * 6}"
    assert record["warnings"] == []


def test_the_lora_that_comes_along_turns_day_into_night():
    engine = load_engine(base_model("embedded"), device="cpu", dtype="fp32")
    engine.library = Library.of(LibraryFolders(loras=(EXTRAS_FOLDER / "Lora",)))
    brightness = []
    for weight in (0, 0.5, 1):
        prompt = f"a photo of a red star on a yellow background <lora:tiny_night:{weight}>"
        request = GenerationRequest(prompt, count=4, inference_steps=8)
        brightness.append(np.mean([np.asarray(one.image).mean() for one in engine.generate(request)]))
    assert brightness[0] - 10 > brightness[1] > brightness[2] + 20, brightness
    assert brightness[2] < 0.65 * brightness[0], brightness
