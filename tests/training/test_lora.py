import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats import lora_file
from fastsd_lib.formats.parts import encode_prompts, load_parts
from fastsd_lib.generation import engine
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models.registry import EMBEDDED_FOLDER
from fastsd_lib.training.lora import Adapters

PROMPTS = ["a photo of a monster", "a star"]
EMBEDDED = ModelFiles("sd1", "diffusers", EMBEDDED_FOLDER)


@pytest.fixture(scope="module")
def embedded():
    torch.set_num_threads(1)
    return load_parts(EMBEDDED, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def adapted(embedded):
    """The embedded model with adapters that learned something, and their file."""
    parts = copy.deepcopy(embedded)
    both = [Adapters(part, getattr(parts, part), 4, 2.0, seed=1) for part in ("unet", "text_encoder")]
    torch.manual_seed(0)
    with torch.no_grad():
        for adapters in both:
            for one in adapters.parameters():
                one.add_(0.05 * torch.randn(one.shape))
    return parts, both


@pytest.fixture(scope="module")
def file(adapted, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file({name: one for adapters in adapted[1] for name, one in adapters.tensors().items()}, path)
    return path


@torch.no_grad()
def _answers(unet, states):
    torch.manual_seed(3)
    noisy = torch.randn(2, unet.config.in_channels, 16, 16)
    return unet(noisy, torch.tensor([5, 900]), states, return_dict=False)[0]


@torch.no_grad()
def _merge(parts, path, strength=1.0):
    """The file's corrections added to live modules; returns how many weights changed."""
    corrections = lora_file.read_lora(path)
    for part in lora_file.PREFIXES:
        for name, weight in getattr(parts, part).named_parameters():
            key = lora_file.module_key(part, name.removesuffix(".weight"))
            if name.endswith(".weight") and key in corrections:
                weight.copy_(corrections[key].added_to(weight, strength))
    return len(corrections)


@torch.no_grad()
def _ask(parts):
    return _answers(parts.unet, encode_prompts(parts, PROMPTS))


def test_adapters_change_nothing_before_they_are_trained_or_when_they_are_off(embedded, adapted):
    fresh = copy.deepcopy(embedded)
    wanted = _ask(embedded)
    for part in ("unet", "text_encoder"):
        Adapters(part, getattr(fresh, part), 4, 2.0, seed=1)
    assert torch.equal(_ask(fresh), wanted)
    parts, (unet, text) = adapted
    assert (_ask(parts) - wanted).abs().max() > 0.02
    with unet.off(), text.off():
        assert torch.equal(_ask(parts), wanted)


def test_diffusers_and_peft_read_our_file_and_give_the_same_answer_and_picture(adapted, file):
    """The second witness: another implementation, from our file alone."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    parts, _ = adapted
    pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, safety_checker=None)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    theirs = copy.copy(parts)
    theirs.unet, theirs.text_encoder, theirs.vae = pipe.unet, pipe.text_encoder, pipe.vae
    assert torch.allclose(_ask(theirs), _ask(parts), atol=1e-5)
    request = GenerationRequest(PROMPTS[0], seed=5, inference_steps=4, width_px=64, height_px=64)
    ours, other = (np.asarray(engine.draw(one, request)[0].image, dtype=int) for one in (parts, theirs))
    assert abs(ours - other).max() <= 1


def test_a_file_merged_into_fresh_modules_draws_as_the_live_adapters_do(embedded, adapted, file):
    parts = copy.deepcopy(embedded)
    assert _merge(parts, file) == 96
    torch.testing.assert_close(_ask(parts), _ask(adapted[0]), atol=1e-5, rtol=0)
    _merge(parts, file, strength=-1.0)
    torch.testing.assert_close(_ask(parts), _ask(embedded), atol=1e-5, rtol=0)


def test_merged_part_files_are_the_merged_modules(embedded, file, tmp_path):
    wanted = copy.deepcopy(embedded)
    _merge(wanted, file)
    written = lora_file.write_merged(EMBEDDED, file, tmp_path)
    assert [path.name for path in written] == ["unet.safetensors", "text_encoder.safetensors"]
    found = load_file(tmp_path / "unet.safetensors")
    stored = read_tensor_file(EMBEDDED_FOLDER / "unet/diffusion_pytorch_model.safetensors")
    for name, one in wanted.unet.state_dict().items():
        kept = found[name]
        assert kept.dtype == {"F16": torch.float16, "F32": torch.float32}[stored.tensors[name].dtype]
        torch.testing.assert_close(kept.float(), one, atol=2e-3, rtol=2e-3)


def test_the_file_that_is_shared_has_the_names_and_facts_that_others_look_for(file, tmp_path):
    header = lora_file.lora_metadata(title="sks", rank=4, alpha=2.0, side_px=64, facts={"fastsd.step": 7})
    out = lora_file.export_lora(file, tmp_path / "sks.safetensors", "fp16", header)
    made = read_tensor_file(out)
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in made.tensors
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight" in made.tensors
    assert made.metadata["ss_network_dim"] == "4" and made.metadata["ss_network_alpha"] == "2"
    assert made.metadata["ss_network_module"] == "networks.lora"
    assert made.metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert made.metadata["modelspec.hash_sha256"].startswith("0x") and made.metadata["fastsd.step"] == "7"
    exact, short = load_file(file), load_file(out)
    for name, one in exact.items():
        kept = one if name.endswith(".alpha") else one.half()
        assert short[name].dtype == kept.dtype and torch.equal(short[name], kept)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda held: held | {"lora_unet_conv_in.dora_scale": torch.ones(1)},
            "it holds lora_unet_conv_in.dora",
        ),
        (lambda held: held | {"encoder.weight": torch.ones(2, 2)}, "it holds encoder.weight"),
        (lambda held: {name: one for name, one in held.items() if "up" not in name}, "lacks half"),
        (lambda held: {}, "it is empty"),
        (
            lambda held: {
                name: one[:, :1].clone() if "down.weight" in name else one for name, one in held.items()
            },
            "of another shape",
        ),
        (
            lambda held: {name.replace("blocks", "block"): one for name, one in held.items()},
            "is unknown there",
        ),
    ],
)
def test_a_file_that_is_no_lora_of_this_model_is_refused_and_nothing_is_written(file, tmp_path, change, said):
    save_file(change(load_file(file)), tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        lora_file.write_merged(EMBEDDED, tmp_path / "odd.safetensors", tmp_path / "out")
    assert caught.value.fix
    assert not (tmp_path / "out").exists()


def test_training_with_lora_changes_no_weight_of_the_model_and_saves_adapters_alone(job):
    done, parts = job.run(method="lora", lora_rank=2, save_every_steps=0)
    for part in ("unet", "text_encoder", "vae"):
        before = getattr(job.parts, part).state_dict()
        assert all(torch.equal(before[name], one) for name, one in getattr(parts, part).state_dict().items())
    names = {path.name for path in done.path.iterdir()}
    assert names == {
        "begun.json",
        "lora.safetensors",
        "manifest.json",
        "optimizer.safetensors",
        "random.json",
    }
    held = lora_file.read_lora(done.path / "lora.safetensors")
    assert {key[:8] for key in held} == {"lora_une", "lora_te_"}
    assert all(one.up.abs().max() > 0 for key, one in held.items() if "attn1_to_v" in key or "_mlp_" in key)
    fresh = copy.deepcopy(job.parts)
    _merge(fresh, done.path / "lora.safetensors")
    with torch.no_grad():
        noisy = torch.randn(2, 4, 8, 8)
        live, merged = (
            one.unet(noisy, torch.tensor([5, 900]), encode_prompts(one, PROMPTS), return_dict=False)[0]
            for one in (parts, fresh)
        )
    torch.testing.assert_close(merged, live, atol=1e-4, rtol=0)


def test_lora_lowers_the_loss(job):
    import json

    job.run(method="lora", text_encoder_steps=0, unet_steps=60, unet_learning_rate=1e-2, save_every_steps=0)
    lines = (job.folder / "run/logs/metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
