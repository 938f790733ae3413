"""What can be chosen when a model is converted: averaged weights, another VAE, metadata; and what it says of itself."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2, save_sdxl, save_single_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.conversion import ConversionChoices, convert_model

UNET, VAE = "model.diffusion_model.", "first_stage_model."
BARE = ConversionChoices(sha256=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pipeline) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("choices")
    return {
        "sd1": tiny_pipeline.path,
        "sd2": save_sd2(folder / "sd2", prediction="v_prediction").path,
        "sdxl": save_sdxl(folder / "sdxl").path,
        "other sdxl": save_sdxl(folder / "other", seed=11).path,
    }


@pytest.fixture(scope="module")
def files(models, tmp_path_factory) -> dict[str, Path]:
    """Bare original checkpoints: weights only."""
    folder = tmp_path_factory.mktemp("original")
    return {
        name: save_single_file(
            ModelFiles("sd2" if name == "sd2" else "sdxl", "diffusers", models[name]),
            folder / f"{name}.safetensors",
        )
        for name in ("sd2", "sdxl", "other sdxl")
    }


@pytest.fixture
def averaged(files, tmp_path) -> Path:
    """A training checkpoint: beside each weight of the U-Net its average, under its name without dots."""
    tensors = load_file(files["sd2"])
    for name in [one for one in tensors if one.startswith(UNET)]:
        tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = tensors[name] + 1
    tensors |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5)}
    torch.save({"state_dict": tensors, "global_step": 9}, tmp_path / "training.ckpt")
    return tmp_path / "training.ckpt"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def unet_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


# ------------------------------------------------------------------ averaged weights


def test_averaged_weights_are_dropped_taken_or_kept(averaged, files, models, tmp_path):
    plain = load_file(files["sd2"])
    dropped = convert_model(averaged, tmp_path / "dropped.safetensors")
    made = load_file(dropped.path)
    assert made.keys() == plain.keys() and all(torch.equal(made[name], plain[name]) for name in plain)
    assert any(
        "averaged (EMA) weights are left out" in note and "--ema use" in note for note in dropped.notes
    )
    used = load_file(
        convert_model(averaged, tmp_path / "used.safetensors", ConversionChoices(ema="use")).path
    )
    assert used.keys() == plain.keys()
    assert all(torch.equal(used[name], plain[name] + name.startswith(UNET)) for name in plain)
    kept = load_file(
        convert_model(averaged, tmp_path / "kept.safetensors", ConversionChoices(ema="keep")).path
    )
    original = torch.load(averaged, weights_only=True)["state_dict"]
    assert kept.keys() == original.keys() and all(
        torch.equal(kept[name], original[name]) for name in original
    )


def test_averaged_weights_can_become_a_folder(averaged, models, tmp_path):
    choices = ConversionChoices(ema="use", config_from=models["sd2"])
    used = unet_of(convert_model(averaged, tmp_path / "used", choices).path)
    assert all(torch.equal(used[name], one + 1) for name, one in unet_of(models["sd2"]).items())


def test_averaged_weights_that_are_not_there_or_not_whole_are_refused(averaged, files, models, tmp_path):
    with pytest.raises(UserError, match=r"holds no averaged") as error:
        convert_model(files["sd2"], tmp_path / "m.safetensors", ConversionChoices(ema="use"))
    assert "leave --ema out" in error.value.fix
    with pytest.raises(UserError, match="has no averaged") as error:
        convert_model(models["sd2"], tmp_path / "m.safetensors", ConversionChoices(ema="use"))
    assert "leave --ema out" in error.value.fix
    with pytest.raises(UserError, match=r"one place for the U-Net's weights") as error:
        convert_model(averaged, tmp_path / "folder", ConversionChoices(ema="keep"))
    assert "--ema use" in error.value.fix
    tensors = torch.load(averaged, weights_only=True)["state_dict"]
    del tensors["model_ema.diffusion_modelout2bias"]
    torch.save(tensors, averaged)
    with pytest.raises(
        UserError, match=r"for some of its U-Net only; model\.diffusion_model\.out\.2\.bias has none"
    ):
        convert_model(averaged, tmp_path / "m.safetensors", ConversionChoices(ema="use"))
    assert [path.name for path in tmp_path.iterdir()] == ["training.ckpt"]


# ------------------------------------------------------------------ another VAE


@pytest.mark.parametrize("form", ["folder", "pipeline", "whole file", "ldm file", "ldm pickle"])
@pytest.mark.parametrize("source", ["file", "folder"])
def test_a_vae_of_any_layout_takes_the_place_of_the_models_own(models, files, tmp_path, form, source):
    theirs = {k: one for k, one in load_file(files["other sdxl"]).items() if k.startswith(VAE)}
    inner = {name.removeprefix(VAE): one for name, one in theirs.items()}
    save_file(inner | {"loss.logvar": torch.zeros(1)}, tmp_path / "vae.safetensors")
    torch.save({"state_dict": inner}, tmp_path / "vae.vae.pt")
    vae = {
        "folder": models["other sdxl"] / "vae", "pipeline": models["other sdxl"], "whole file": files["other sdxl"],
        "ldm file": tmp_path / "vae.safetensors", "ldm pickle": tmp_path / "vae.vae.pt",
    }[form]  # fmt: skip
    given = {"file": files["sdxl"], "folder": models["sdxl"]}[source]
    made = convert_model(given, tmp_path / "m.safetensors", ConversionChoices(vae=vae))
    found = load_file(made.path)
    for name, one in load_file(convert_model(given, tmp_path / "plain.safetensors").path).items():
        assert torch.equal(found.pop(name), theirs.get(name, one)), name
    assert not found
    assert any("does not say whose VAE" in note for note in made.notes) == form.startswith("ldm")


def test_a_vae_of_another_family_or_shape_is_refused_before_anything_is_written(models, files, tmp_path):
    wide = {k.removeprefix(VAE): one for k, one in load_file(files["sdxl"]).items() if k.startswith(VAE)}
    wide["decoder.conv_in.weight"] = torch.zeros(64, 16, 3, 3)
    save_file(wide, tmp_path / "wide.safetensors")
    for given, vae, message, fix in (
        (files["sdxl"], models["sd2"], "another family's VAE: it scales latents by 0.18215", "made for SDXL"),
        (
            models["sd2"],
            files["sdxl"],
            "another family's VAE: it scales latents by 0.13025",
            r"made for SD 2\.x",
        ),
        (files["sdxl"], tmp_path / "wide.safetensors", "VAE of another shape", "made for SDXL"),
        (models["sdxl"], models["sdxl"] / "unet", "no folder of a VAE|is no VAE|lacks|no diffusion", ""),
        (files["sdxl"], tmp_path / "none.safetensors", "There is no file", "check the path"),
    ):
        with pytest.raises(UserError, match=message) as error:
            convert_model(given, tmp_path / "m.safetensors", ConversionChoices(vae=vae))
        assert re.search(fix, error.value.fix)
    assert [path.name for path in tmp_path.iterdir()] == ["wide.safetensors"]


# ------------------------------------------------------------------ what it predicts


@pytest.mark.parametrize("source", ["folder", "file"])
def test_an_sd2_model_that_predicts_velocity_gets_the_yaml_that_a1111_needs(models, tmp_path, source):
    made = convert_model(models["sd2"], tmp_path / "m.safetensors", BARE)
    if source == "file":
        shutil.move(made.path, tmp_path / "moved.safetensors")  # its header still says what it predicts
        (tmp_path / "m.yaml").unlink()
        made = convert_model(tmp_path / "moved.safetensors", tmp_path / "m.ckpt", BARE)
    config = yaml.safe_load((tmp_path / "m.yaml").read_text())["model"]["params"]
    unet = json.loads((models["sd2"] / "unet" / "config.json").read_text())
    asked = config["unet_config"]["params"]
    assert (config["parameterization"], config["scale_factor"]) == ("v", 0.18215)
    assert (asked["context_dim"], asked["model_channels"]) == (unet["cross_attention_dim"], 64)
    assert [asked["model_channels"] * times for times in asked["channel_mult"]] == unet["block_out_channels"]
    assert config["cond_stage_config"]["params"]["layer"] == "penultimate"
    assert any("m.yaml beside it" in note for note in made.notes)
    choices = ConversionChoices(config_from=models["sd1"])
    bare = load_file(tmp_path / "moved.safetensors") if source == "file" else load_file(made.path)
    save_file(bare, tmp_path / "bare.safetensors")
    shutil.copy(tmp_path / "m.yaml", tmp_path / "bare.yaml")  # nothing but the .yaml says it now
    back = convert_model(tmp_path / "bare.safetensors", tmp_path / "back", choices).path
    assert (
        json.loads((back / "scheduler" / "scheduler_config.json").read_text())["prediction_type"]
        == "v_prediction"
    )


def test_the_yaml_of_the_published_sd2_768_says_what_the_original_said():
    """The values of v2-inference-v.yaml, which models of this kind came with."""
    from fastsd_lib.formats.known_configs import bundled
    from fastsd_lib.formats.modelspec import velocity_yaml

    text = velocity_yaml("sd2", {path: json.dumps(one) for path, one in bundled("sd2-768-v").items()})
    params = yaml.safe_load(text)["model"]["params"]
    unet, vae = params["unet_config"]["params"], params["first_stage_config"]["params"]
    assert unet["attention_resolutions"] == [4, 2, 1] and unet["channel_mult"] == [1, 2, 4, 4]
    assert (unet["model_channels"], unet["num_res_blocks"], unet["num_head_channels"]) == (320, 2, 64)
    assert (unet["context_dim"], unet["use_linear_in_transformer"], unet["in_channels"]) == (1024, True, 4)
    assert (vae["embed_dim"], vae["ddconfig"]["ch_mult"], vae["ddconfig"]["ch"]) == (4, [1, 2, 4, 4], 128)
    assert (params["linear_start"], params["linear_end"], params["conditioning_key"]) == (
        0.00085,
        0.012,
        "crossattn",
    )


@pytest.mark.parametrize("zero_snr", [True, False])
def test_an_sdxl_model_that_predicts_velocity_carries_the_marks_that_say_so(models, tmp_path, zero_snr):
    folder = tmp_path / "folder"
    shutil.copytree(models["sdxl"], folder)
    schedule = folder / "scheduler" / "scheduler_config.json"
    said = {"prediction_type": "v_prediction"} | ({"rescale_betas_zero_snr": True} if zero_snr else {})
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | said))
    made = convert_model(folder, tmp_path / "m.safetensors", BARE)
    marks = {name: one.shape for name, one in load_file(made.path).items() if "." not in name}
    assert marks == {name: (0,) for name in ("v_pred", "ztsnr")[: 1 + zero_snr]}
    assert metadata(made.path)["modelspec.prediction_type"] == "v" and not (tmp_path / "m.yaml").exists()
    bare = convert_model(made.path, tmp_path / "bare.ckpt", BARE).path
    assert all(not torch.load(bare, weights_only=True)["state_dict"][name].numel() for name in marks)
    torch.save(load_file(made.path), bare)  # weights only: no header tells it now
    back = convert_model(bare, tmp_path / "back", ConversionChoices(config_from=models["sd1"])).path
    found = json.loads((back / "scheduler" / "scheduler_config.json").read_text())
    assert found["prediction_type"] == "v_prediction"
    assert found.get("rescale_betas_zero_snr", False) == zero_snr
    assert not (back / "single_file_extras.safetensors").exists() or "v_pred" not in load_file(
        back / "single_file_extras.safetensors"
    )


# ------------------------------------------------------------------ what a file says of itself


@pytest.mark.parametrize(
    ("name", "architecture", "prediction"),
    [
        ("sd1", "stable-diffusion-v1", "epsilon"),
        ("sd2", "stable-diffusion-v2-768-v", "v"),
        ("sdxl", "stable-diffusion-xl-v1-base", "epsilon"),
    ],
)
def test_the_header_says_what_the_model_is_and_keeps_what_was_said(
    models, tmp_path, name, architecture, prediction
):
    recipe = {"unet_steps": 5}
    choices = ConversionChoices(
        metadata={"fastsd.recipe": recipe, "modelspec.author": "Ann", "note": "hello"}, sha256=True
    )
    made = convert_model(models[name], tmp_path / "my-cat.safetensors", choices)
    said = metadata(made.path)
    assert said["modelspec.sai_model_spec"] == "1.0.1" and said["modelspec.title"] == "my-cat"
    assert (said["modelspec.architecture"], said["modelspec.prediction_type"]) == (architecture, prediction)
    assert re.fullmatch(r"\d+x\d+", said["modelspec.resolution"]) and said["modelspec.implementation"]
    assert re.fullmatch(r"0x[0-9a-f]{64}", said["modelspec.hash_sha256"])
    again = convert_model(made.path, tmp_path / "again.safetensors", ConversionChoices("fp16", sha256=True))
    kept = metadata(again.path)
    changed = {key for key in said if kept[key] != said[key]}
    assert changed == {"modelspec.hash_sha256"} and json.loads(kept["fastsd.recipe"]) == recipe
    unhashed = metadata(convert_model(again.path, tmp_path / "third.safetensors", BARE).path)
    assert "modelspec.hash_sha256" not in unhashed and unhashed["modelspec.author"] == "Ann"
    through_ckpt = convert_model(made.path, tmp_path / "m.ckpt", BARE).path
    assert metadata(convert_model(through_ckpt, tmp_path / "n.safetensors", BARE).path)["note"] == "hello"


def test_a_guess_is_noted_and_not_written_down(models, tmp_path):
    file = save_single_file(ModelFiles("sd2", "diffusers", models["sd2"]), tmp_path / "bare.safetensors")
    made = convert_model(file, tmp_path / "folder", ConversionChoices(config_from=models["sd1"]))
    assert any("does not say what the model predicts: epsilon" in note for note in made.notes)
    again = convert_model(file, tmp_path / "m.safetensors")
    assert "modelspec.prediction_type" not in metadata(again.path)


# ------------------------------------------------------------------ what a bare file lacks


def test_a_missing_tokenizer_is_one_note_and_one_found_on_the_machine_is_taken(
    files, models, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    made = convert_model(files["sdxl"], tmp_path / "first")
    (note,) = made.notes
    assert "lacks tokenizer/ and tokenizer_2/" in note and "--config-from FOLDER" in note
    assert (made.path / "model_index.json").is_file() and (made.path / "unet" / "config.json").is_file()
    cached = tmp_path / "hub home" / "hub" / "models--org--some" / "snapshots" / "abc"
    shutil.copytree(models["sd1"] / "tokenizer", cached / "tokenizer")
    found = convert_model(files["sdxl"], tmp_path / "second")
    assert found.notes == ()
    for folder in ("tokenizer", "tokenizer_2"):
        theirs, ours = models["sdxl"] / folder / "vocab.json", found.path / folder / "vocab.json"
        assert json.loads(ours.read_text("utf-8")) == json.loads(theirs.read_text("utf-8"))
    import diffusers

    diffusers.StableDiffusionXLPipeline.from_pretrained(found.path)
    words = convert_model(
        files["sdxl"], tmp_path / "third", ConversionChoices(config_from=models["sd1"] / "tokenizer")
    )
    assert words.notes == ()


def test_a_folder_names_no_part_that_it_does_not_hold(models, tmp_path):
    """A safety checker, for one: no single file holds it, and diffusers would look for its folder in vain."""
    import diffusers

    folder = tmp_path / "folder"
    shutil.copytree(models["sd1"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    file = convert_model(folder, tmp_path / "m.safetensors", BARE)
    back = convert_model(file.path, tmp_path / "back").path
    assert json.loads((back / "model_index.json").read_text())["safety_checker"] == [None, None]
    diffusers.StableDiffusionPipeline.from_pretrained(back)


def test_nothing_is_begun_where_it_would_not_fit(models, files, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    for source, target in (
        (models["sd1"], "m.safetensors"),
        (files["sdxl"], "folder"),
        (files["sdxl"], "m.ckpt"),
    ):
        with pytest.raises(UserError, match=r"needs 0\.0 GB in .*; 0\.0 GB are free") as error:
            convert_model(source, tmp_path / "new" / target)
        assert "free some space" in error.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["m.safetensors", "m.ckpt", "folder"])
def test_an_error_halfway_leaves_the_old_file_and_nothing_else(models, tmp_path, target):
    old = tmp_path / target
    if old.suffix:
        old.write_bytes(b"old")

    def fail(event):
        if event.done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_model(models["sdxl"], old, ConversionChoices("fp16"), fail)
    assert [path.name for path in tmp_path.iterdir()] == ([target] if old.suffix else [])
    assert not old.suffix or old.read_bytes() == b"old"


def test_numbers_survive_a_folder_in_another_dtype(models, tmp_path):
    made = convert_model(models["sdxl"], tmp_path / "half", ConversionChoices("fp16")).path
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = (next((folder / part).glob("*.safetensors")) for folder in (made, models["sdxl"]))
        expected = {name.removeprefix("text_model."): one.half() for name, one in load_file(theirs).items()}
        found = {name.removeprefix("text_model."): one for name, one in load_file(ours).items()}
        assert found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in found)


@pytest.mark.parametrize(
    ("config", "entries"),
    [
        ("unet/config.json", {"block_out_channels": "wide"}),
        ("unet/config.json", {"block_out_channels": [0, 64]}),
        ("unet/config.json", {"down_block_types": None}),
        ("unet/config.json", {"layers_per_block": 10**12}),
        ("unet/config.json", {"in_channels": [4]}),
        ("unet/config.json", {"layers_per_block": None}),
        ("vae/config.json", {"block_out_channels": list(range(1, 99))}),
        ("vae/config.json", {"scaling_factor": "large"}),
        ("vae/config.json", {"scaling_factor": None}),
        ("vae/config.json", {"layers_per_block": None}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**12}),
        ("scheduler/scheduler_config.json", {"prediction_type": 7}),
        ("text_encoder/config.json", None),
        ("model_index.json", []),
        ("model_index.json", {"tokenizer": {"a": 1}}),
        ("model_index.json", {"depth_estimator": ["transformers"]}),
    ],
)
def test_configs_that_are_none_are_named_wherever_they_come_from(models, tmp_path, config, entries):
    folder = tmp_path / "folder"
    shutil.copytree(models["sd1"], folder)
    good = convert_model(folder, tmp_path / "good.safetensors", BARE).path
    carried = json.loads(metadata(good)["fastsd.configs"])
    # None: a config without any entry
    carried[config] = (
        carried[config] | entries if isinstance(entries, dict) else {} if entries is None else entries
    )
    (folder / config).write_text(json.dumps(carried[config]))
    save_file(load_file(good), tmp_path / "bad.safetensors", {"fastsd.configs": json.dumps(carried)})
    with pytest.raises(UserError, match=config) as error:
        convert_model(folder, tmp_path / "m.safetensors")
    assert "own config file" in error.value.fix
    for target in ("m.ckpt", "out"):
        with pytest.raises(UserError, match=r"The configs inside .*bad\.safetensors are damaged"):
            convert_model(tmp_path / "bad.safetensors", tmp_path / target)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "good.safetensors", "bad.safetensors"}


# ------------------------------------------------------------------ what else the U-Net is shown


@pytest.mark.parametrize(
    ("name", "channels", "architecture", "pipeline"),
    [
        ("sd1", 9, "stable-diffusion-v1-inpainting", "StableDiffusionInpaintPipeline"),
        ("sd1", 8, "stable-diffusion-v1-edit", "StableDiffusionInstructPix2PixPipeline"),
        ("sd2", 9, "stable-diffusion-v2-inpainting", "StableDiffusionInpaintPipeline"),
        ("sd2", 5, "stable-diffusion-v2-depth", "StableDiffusionDepth2ImgPipeline"),
        ("sdxl", 9, "stable-diffusion-xl-v1-inpainting", "StableDiffusionXLInpaintPipeline"),
    ],
)
def test_models_that_see_more_than_latents_come_through(
    models, tmp_path, name, channels, architecture, pipeline
):
    folder = tmp_path / "folder"
    shutil.copytree(models[name], folder)
    config, file = folder / "unet" / "config.json", folder / "unet" / "diffusion_pytorch_model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": channels}))
    tensors = load_file(file)
    tensors["conv_in.weight"] = torch.randn(tensors["conv_in.weight"].shape[0], channels, 3, 3)
    save_file(tensors, file)
    schedule = folder / "scheduler" / "scheduler_config.json"
    schedule.write_text(json.dumps(json.loads(schedule.read_text()) | {"prediction_type": "epsilon"}))
    made = convert_model(folder, tmp_path / "m.safetensors", BARE)
    assert metadata(made.path)["modelspec.architecture"] == architecture
    bare = load_file(made.path) | {"depth_model.model.pretrained.cls_token": torch.ones(1, 1, 8)}
    save_file(bare, tmp_path / "bare.safetensors")
    back = convert_model(
        tmp_path / "bare.safetensors", tmp_path / "back", ConversionChoices(config_from=models[name])
    )
    found = unet_of(back.path)
    assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
    index = json.loads((back.path / "model_index.json").read_text())
    assert index["_class_name"] == pipeline
    assert any("lacks depth_estimator/" in note for note in back.notes) == (channels == 5)
    again = load_file(convert_model(back.path, tmp_path / "again.safetensors", BARE).path)
    assert again.keys() == bare.keys() and all(torch.equal(again[key], bare[key]) for key in bare)
