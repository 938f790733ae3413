"""SD 2.x and SDXL as single files: the same pictures as from the folder, with diffusers' loader as second witness."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_families import save_sd2, save_sdxl, save_single_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import load_parts
from fastsd_lib.formats.single_file import export_single_file, import_single_file
from fastsd_lib.formats.vae_file import load_vae
from fastsd_lib.models.identify import identify

CPU, FULL = torch.device("cpu"), torch.float32
TELLING_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    return {
        "sd2": save_sd2(folder / "sd2", prediction="v_prediction"),
        "sdxl": save_sdxl(folder / "sdxl"),
        "inpaint": save_sdxl(folder / "inpaint", in_channels=9),
        "refiner": save_sdxl(folder / "refiner", refines=True),
    }


@pytest.fixture(scope="module")
def files(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: save_single_file(model, folder / f"{name}.safetensors") for name, model in models.items()}


def weights(parts) -> dict[str, torch.Tensor]:
    named = {"unet": parts.unet, "vae": parts.vae, "one": parts.text_encoder, "two": parts.text_encoder_2}
    return {
        f"{part}.{name}": tensor
        for part, module in named.items()
        for name, tensor in (module.state_dict() if module else {}).items()
    }


def same(one, other) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["sd2", "sdxl", "inpaint", "refiner"])
def test_a_single_file_holds_the_weights_of_its_folder(models, files, name):
    found = identify(files[name])
    assert found.family == models[name].family == identify(models[name].path).family
    assert found.use == ("inpainting" if name == "inpaint" else "text to image")
    folder = load_parts(models[name], CPU, FULL)
    file = load_parts(found.model_files, CPU, FULL, config_from=models[name].path)
    assert same(folder, file)
    assert file.scheduler_config["prediction_type"] == folder.scheduler_config["prediction_type"]


@pytest.mark.parametrize("name", ["sd2", "sdxl", "inpaint", "refiner"])
def test_configs_follow_from_the_shapes_when_only_the_words_are_lent(models, files, tiny_pipeline, name):
    folder = load_parts(models[name], CPU, FULL)
    file = load_parts(identify(files[name]).model_files, CPU, FULL, config_from=tiny_pipeline.path)
    assert same(folder, file)
    for part in ("unet", "vae"):
        ours, theirs = getattr(file, part).config, getattr(folder, part).config
        told = {"_name_or_path", "_use_default_values", "sample_size", "force_upcast", "_diffusers_version"}
        differing = {key for key in theirs if key not in told and listed(ours[key]) != listed(theirs[key])}
        assert not differing
    for ours, theirs in zip(file.text_parts, folder.text_parts, strict=True):
        for key in ("hidden_act", "num_attention_heads", "num_hidden_layers", "eos_token_id"):
            assert getattr(ours.encoder.config, key) == getattr(theirs.encoder.config, key)
        assert ours.tokenizer.pad_token_id == theirs.tokenizer.pad_token_id
        assert ours.tokenizer("a red star").input_ids == theirs.tokenizer("a red star").input_ids
    assert file.asks_for_score == folder.asks_for_score
    assert file.zero_empty_negative == folder.zero_empty_negative


def listed(value):
    """JSON gives lists where diffusers' defaults are tuples; one number stands for every level."""
    value = list(value) if isinstance(value, tuple) else value
    return value[0] if isinstance(value, list) and len(set(map(str, value))) == 1 else value


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_diffusers_loads_the_same_weights_from_the_file(models, files, name):
    import diffusers

    kind = {"sd2": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[name]
    theirs = getattr(diffusers, kind).from_single_file(
        str(files[name]), config=str(models[name].path), local_files_only=True
    )
    ours = load_parts(identify(files[name]).model_files, CPU, FULL, config_from=models[name].path)
    pairs = [(ours.unet, theirs.unet), (ours.vae, theirs.vae), (ours.text_encoder, theirs.text_encoder)]
    pairs += [(ours.text_encoder_2, theirs.text_encoder_2)] if name == "sdxl" else []
    for mine, other in pairs:
        state, expected = mine.state_dict(), other.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_a_file_becomes_a_folder_that_diffusers_opens(models, files, tiny_pipeline, tmp_path, name):
    import diffusers

    made = import_single_file(files[name], tmp_path / "out", config_from=tiny_pipeline.path)
    assert made.family == name
    assert same(load_parts(made, CPU, FULL), load_parts(models[name], CPU, FULL))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(made.path)
    assert type(pipeline).__name__ == (
        "StableDiffusionPipeline" if name == "sd2" else "StableDiffusionXLPipeline"
    )


def test_the_last_of_24_layers_of_sd2_is_left_out_and_other_leftovers_are_ignored(models, tmp_path):
    model = models["sd2"]
    prefix = "cond_stage_model.model."
    more = {
        f"{prefix}transformer.resblocks.3.ln_1.weight": np.ones(64, np.float32),
        f"{prefix}text_projection": np.ones((64, 64), np.float32),
        f"{prefix}attn_mask": np.zeros((77, 77), np.float32),
        "model_ema.decay": np.zeros(1, np.float32),
        "alphas_cumprod": np.zeros(9, np.float32),
    }
    file = save_single_file(model, tmp_path / "long.safetensors", more)
    loaded = load_parts(identify(file).model_files, CPU, FULL, config_from=model.path)
    assert same(loaded, load_parts(model, CPU, FULL))
    more = {"model.diffusion_model.adapter.gate": np.zeros(1, np.float32)}
    strange = save_single_file(model, tmp_path / "strange.safetensors", more)
    with pytest.raises(UserError, match=r"1 tensors that no SD 2\.x model .* first .*adapter\.gate"):
        load_parts(identify(strange).model_files, CPU, FULL, config_from=model.path)


@pytest.mark.parametrize(
    ("more", "metadata", "yaml", "expected"),
    [
        ({}, {}, "", ("epsilon", False, True)),
        ({TELLING_BIAS: np.tile([-1.0, 1.0], 32).astype(np.float32)}, {}, "", ("v_prediction", False, True)),
        ({TELLING_BIAS: np.zeros(64, np.float16)}, {}, "", ("epsilon", False, True)),
        ({}, {"modelspec.prediction_type": "v"}, "", ("v_prediction", False, False)),
        ({}, {}, 'model:\n  params:\n    parameterization: "v"\n', ("v_prediction", False, False)),
        ({"v_pred": np.zeros(0, np.float32)}, {}, "", ("v_prediction", False, False)),
        (
            {"v_pred": np.zeros(0, np.float32), "ztsnr": np.zeros(0, np.float32)},
            {},
            "",
            ("v_prediction", True, False),
        ),
    ],
)
def test_what_the_model_predicts_is_taken_from_what_says_it(
    models, tiny_pipeline, tmp_path, more, metadata, yaml, expected
):
    from fastsd_lib.core.tensor_file import read_tensor_file
    from fastsd_lib.formats.single_file import single_file_configs

    file = save_single_file(models["sd2"], tmp_path / "m.safetensors", more, metadata)
    if yaml:
        file.with_suffix(".yaml").write_text(yaml)
    configs = single_file_configs(read_tensor_file(file), tiny_pipeline.path)
    schedule = json.loads(configs["scheduler/scheduler_config.json"])
    found = (schedule["prediction_type"], "rescale_betas_zero_snr" in schedule, "fastsd_guessed" in schedule)
    assert found == expected


def test_a_yaml_beside_a_ckpt_is_read_though_its_weights_are_copied(
    models, files, tiny_pipeline, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors = {name: torch.from_numpy(array) for name, array in load_file(files["sd2"]).items()}
    torch.save({"state_dict": tensors}, tmp_path / "m.ckpt")
    (tmp_path / "m.yaml").write_text("    parameterization: v\n")
    parts = load_parts(identify(tmp_path / "m.ckpt").model_files, CPU, FULL, config_from=tiny_pipeline.path)
    assert parts.family == "sd2" and parts.scheduler_config["prediction_type"] == "v_prediction"
    assert same(parts, load_parts(models["sd2"], CPU, FULL))


def test_a_guess_is_told_with_every_picture(files, tiny_pipeline):
    parts = load_parts(identify(files["sd2"]).model_files, CPU, FULL, config_from=tiny_pipeline.path)
    assert parts.notes == (
        "the file does not say what the model predicts: epsilon is taken, by the look of its weights",
    )


def test_other_words_and_other_families_are_refused(files, tiny_pipeline, narrow_sd15, tmp_path):
    words = tmp_path / "words"
    shutil.copytree(tiny_pipeline.path, words)
    vocabulary = json.loads((words / "tokenizer" / "vocab.json").read_text("utf-8"))
    (words / "tokenizer" / "vocab.json").write_text(
        json.dumps(vocabulary | {"more": len(vocabulary)}), "utf-8"
    )
    with pytest.raises(UserError, match=r"vocabulary of .* has \d+ entries, the model's \d+") as error:
        load_parts(identify(files["sdxl"]).model_files, CPU, FULL, config_from=words)
    assert "Stable Diffusion 1.5" in error.value.fix
    with pytest.raises(UserError, match="holds weights only, no configs") as error:
        load_parts(identify(files["sdxl"]).model_files, CPU, FULL)
    assert "name a Diffusers folder" in error.value.fix
    # The configs follow from its shapes: a folder of the tokenizer alone is enough.
    parts = load_parts(
        identify(files["sdxl"]).model_files, CPU, FULL, config_from=tiny_pipeline.path / "tokenizer"
    )
    assert parts.tokenizer_2 is not None


def test_an_inpainting_file_takes_the_configs_of_a_plain_model_and_keeps_its_own_channels(
    tiny_pipeline, tmp_path
):
    tensors = load_file(export_single_file(tiny_pipeline, tmp_path / "m.safetensors", dtype=None).path)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = np.repeat(tensors[first], 3, axis=1)[:, :9].copy()
    save_file(tensors, tmp_path / "inpainting.safetensors")
    model = identify(tmp_path / "inpainting.safetensors")
    parts = load_parts(model.model_files, CPU, FULL, config_from=tiny_pipeline.path)
    assert model.use == "inpainting" and parts.unet.config.in_channels == 9
    assert torch.equal(parts.unet.conv_in.weight, torch.from_numpy(tensors[first]))


# ------------------------------------------------------------------ VAE


@pytest.mark.parametrize(
    "how", ["folder", "pipeline", "diffusers file", "ldm file", "ldm pickle", "whole model"]
)
def test_a_vae_is_read_from_every_layout(models, files, tmp_path, monkeypatch, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    like = load_parts(models["sd2"], CPU, torch.float16)
    chosen = load_parts(models["sdxl"], CPU, torch.float16).vae
    folder = models["sdxl"].path / "vae"
    whole = load_file(files["sdxl"])
    ldm = {
        name.removeprefix("first_stage_model."): array
        for name, array in whole.items()
        if name.startswith("first_stage_model.")
    }
    save_file(ldm | {"loss.logvar": np.zeros(1, np.float32)}, tmp_path / "ldm.safetensors")
    torch.save(
        {"state_dict": {name: torch.from_numpy(array) for name, array in ldm.items()}}, tmp_path / "v.vae.pt"
    )
    path = {
        "folder": folder,
        "ldm pickle": tmp_path / "v.vae.pt",
        "pipeline": models["sdxl"].path,
        "diffusers file": folder / "diffusion_pytorch_model.safetensors",
        "ldm file": tmp_path / "ldm.safetensors",
        "whole model": files["sdxl"],
    }[how]
    vae = load_vae(path, like)
    state, expected = vae.state_dict(), chosen.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)
    assert vae.dtype == torch.float16 and not vae.training
    assert vae.config.scaling_factor == like.vae.config.scaling_factor == 0.18215


def test_a_vae_of_other_latents_or_none_at_all_is_refused_in_one_line(models, files, tiny_pipeline, tmp_path):
    like = load_parts(models["sdxl"], CPU, FULL)
    wide = load_file(models["sdxl"].path / "vae" / "diffusion_pytorch_model.safetensors")
    wide["decoder.conv_in.weight"] = np.zeros((64, 16, 3, 3), np.float32)
    save_file(wide, tmp_path / "wide.safetensors")
    (tmp_path / "empty").mkdir()
    unet = models["sdxl"].path / "unet" / "diffusion_pytorch_model.safetensors"
    broken = {k: v for k, v in load_file(models["sdxl"].path / "vae" / "diffusion_pytorch_model.safetensors").items()
              if not k.startswith("decoder.mid_block")}  # fmt: skip
    save_file(broken, tmp_path / "broken.safetensors")
    for path, message, fix in (
        (tmp_path / "wide.safetensors", "VAE of 16 latent channels; sdxl draws in 4", "made for sdxl models"),
        (tiny_pipeline.path, "VAE of 4 pixels per latent; sdxl draws with 2", "made for sdxl models"),
        (tmp_path / "empty", "no folder of a VAE: config.json is missing", "name the folder"),
        (unet, "is no VAE known here", "take a VAE of the model's family"),
        (tmp_path / "broken.safetensors", "lacks 8 modules that a vae", "incomplete"),
        (tmp_path / "none.safetensors", "There is no file", "check the path"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_vae(path, like)
        assert fix in error.value.fix and "\n" not in error.value.message
