"""Whole models folder -> file -> folder and file -> folder -> file, to the last bit, in every family and container."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2, save_sdxl, save_single_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.conversion import ConversionChoices, convert_model
from fastsd_lib.formats.model_source import open_folder
from fastsd_lib.formats.plans import single_file_plan

FAMILIES = ("sd1", "sd2", "sdxl", "inpaint", "refiner")
TEXT_2 = "cond_stage_model.model."
BARE = ConversionChoices(sha256=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pipeline) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("conversion")
    return {
        "sd1": tiny_pipeline.path,
        "sd2": save_sd2(folder / "sd2", prediction="v_prediction").path,
        "sdxl": save_sdxl(folder / "sdxl").path,
        "inpaint": save_sdxl(folder / "inpaint", in_channels=9).path,
        "refiner": save_sdxl(folder / "refiner", refines=True).path,
    }


@pytest.fixture(scope="module")
def files(models, tmp_path_factory) -> dict[str, Path]:
    """The folders as original checkpoints have them: spelled out tensor by tensor, with what diffusers leaves out."""
    folder, made = tmp_path_factory.mktemp("original"), {}
    extras = {
        "sd2": {
            f"{TEXT_2}text_projection": np.ones((64, 64), np.float32),
            f"{TEXT_2}transformer.resblocks.3.ln_1.weight": np.full(64, 3, np.float32),
            "betas": np.linspace(0, 1, 9, dtype=np.float32),
        },
        "sdxl": {
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": np.arange(77)[None]
        },
    }
    for name in ("sd2", "sdxl", "refiner"):
        family = "sd2" if name == "sd2" else "sdxl"
        model = ModelFiles(family, "diffusers", models[name])
        made[name] = save_single_file(model, folder / f"{name}.safetensors", extras.get(name))
    return made


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder, CLIP's in the spelling of today, which lacks `text_model.`."""
    found = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        for name, tensor in load_file(file).items():
            found[f"{file.parent.name}/{name.removeprefix('text_model.')}"] = tensor
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def state(path: Path) -> dict[str, torch.Tensor]:
    """A single file by a reader that is not ours."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("name", FAMILIES)
def test_folder_to_file_to_folder_keeps_every_bit(models, tmp_path, name, suffix):
    file = convert_model(models[name], tmp_path / f"m{suffix}", BARE)
    assert (file.layout, file.path) == ("single_file", tmp_path / f"m{suffix}")
    back = convert_model(file.path, tmp_path / "back")
    assert same(weights(back.path), weights(models[name]))
    for config in ("scheduler/scheduler_config.json", "unet/config.json", "model_index.json"):
        one, other = (json.loads((folder / config).read_text()) for folder in (back.path, models[name]))
        assert one == other | {key: one[key] for key in one if key == "_name_or_path"}
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {"back", f"m{suffix}"} | (
        {"m.yaml"} if name == "sd2" else set()
    )  # which predicts velocity


@pytest.mark.parametrize("name", ["sd2", "sdxl", "refiner"])
def test_a_folder_becomes_the_very_file_that_is_spelled_out_by_hand(models, files, tmp_path, name):
    made = state(convert_model(models[name], tmp_path / "m.safetensors", BARE).path)
    expected = state(files[name])
    left_out = ("logit_scale", "position_ids", "betas", f"{TEXT_2}text_projection", "resblocks.3.")
    assert same(
        made, {key: one for key, one in expected.items() if not any(word in key for word in left_out)}
    )


@pytest.mark.parametrize("name", ["sd2", "sdxl", "refiner"])
def test_file_to_folder_to_file_keeps_what_folders_have_no_place_for(
    files, models, tiny_pipeline, tmp_path, name
):
    """The last layer, projection and temperature of SD 2.x, schedules, ids: as they were in the file."""
    folder = convert_model(files[name], tmp_path / "folder", ConversionChoices(config_from=models[name]))
    assert same(weights(folder.path), weights(models[name]))
    back = convert_model(folder.path, tmp_path / "back.safetensors", BARE)
    assert same(state(back.path), state(files[name]))


@pytest.mark.parametrize("name", ["sd2", "sdxl"])
def test_diffusers_draws_the_same_from_our_file_as_from_the_folder(models, tmp_path, name):
    import diffusers

    kind = getattr(diffusers, f"StableDiffusion{'XL' if name == 'sdxl' else ''}Pipeline")
    file = convert_model(models[name], tmp_path / "m.safetensors", BARE).path
    back = convert_model(file, tmp_path / "back").path
    pictures = []
    for pipeline in (
        kind.from_pretrained(models[name]),
        kind.from_single_file(str(file), config=str(models[name]), local_files_only=True),
        kind.from_pretrained(back),
    ):
        pipeline.set_progress_bar_config(disable=True)
        for part in (one for one in pipeline.components.values() if isinstance(one, torch.nn.Module)):
            for (
                weight
            ) in part.parameters():  # mapped from files at other places, kernels round the last bit otherwise
                weight.data = weight.data.clone()
        noise = torch.Generator().manual_seed(1)
        drawn = pipeline(
            "a red star", num_inference_steps=2, generator=noise, output_type="np", width=32, height=32
        )
        pictures.append(drawn.images)
    assert np.array_equal(pictures[0], pictures[1]) and np.array_equal(pictures[0], pictures[2])


# ------------------------------------------------------------------ where other converters fail


def respelled(model: Path, to: Path, prefixed: bool) -> Path:
    """The same folder with CLIP's keys as before, or since, transformers 5.6."""
    shutil.copytree(model, to)
    for file in to.glob("text_encoder*/model.safetensors"):
        names = {name.removeprefix("text_model."): one for name, one in load_file(file).items()}
        with_it = {
            n if n.startswith("text_projection") else f"text_model.{n}": one for n, one in names.items()
        }
        save_file(with_it if prefixed else names, file)
    return to


@pytest.mark.parametrize("prefixed", [True, False])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_both_spellings_of_text_encoders_give_the_same_file(models, tmp_path, name, prefixed):
    folder = respelled(models[name], tmp_path / "folder", prefixed)
    one = state(convert_model(folder, tmp_path / "m.safetensors", BARE).path)
    assert same(one, state(convert_model(models[name], tmp_path / "n.safetensors", BARE).path))
    first = "cond_stage_model.transformer." if name == "sd1" else "conditioner.embedders.0.transformer."
    assert all(key[len(first) :].startswith("text_model.") for key in one if key.startswith(first))


def test_a_file_with_flattened_text_encoder_keys_is_mended(models, tmp_path):
    """diffusers' script writes such files with current transformers, and no other program reads them."""
    good = state(convert_model(models["sd1"], tmp_path / "good.safetensors", BARE).path)
    with safe_open(tmp_path / "good.safetensors", "pt") as file:
        configs = {"fastsd.configs": file.metadata()["fastsd.configs"]}
    bad = {key.replace("transformer.text_model.", "transformer."): one for key, one in good.items()}
    save_file(bad, tmp_path / "bad.safetensors", configs)
    assert same(state(convert_model(tmp_path / "bad.safetensors", tmp_path / "m.ckpt").path), good)
    folder = convert_model(tmp_path / "bad.safetensors", tmp_path / "folder").path
    assert same(weights(folder), weights(models["sd1"]))


@pytest.mark.parametrize("how", ["variant", "shards", "variant shards", "beside non_ema"])
def test_variants_and_shards_are_read(models, tmp_path, how):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    folder = tmp_path / "folder"
    shutil.copytree(models["sdxl"], folder)
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if "shards" in how:
        loaded = UNet2DConditionModel.from_pretrained(folder / "unet")
        unet.unlink()
        variant = "fp16" if how.startswith("variant") else None
        loaded.save_pretrained(folder / "unet", max_shard_size="500KB", variant=variant)
        assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 2
    elif how == "variant":
        for file in folder.glob("*/*.safetensors"):
            file.rename(file.with_suffix(".fp16.safetensors"))
    else:
        unet.rename(unet.with_suffix(".fp16.safetensors"))
        shutil.copy(unet.with_suffix(".fp16.safetensors"), unet.with_suffix(".non_ema.safetensors"))
    made = convert_model(folder, tmp_path / "m.safetensors", BARE).path
    assert same(state(made), state(convert_model(models["sdxl"], tmp_path / "n.safetensors", BARE).path))


@pytest.mark.parametrize(
    ("damage", "message", "fix"),
    [
        ("lost", r"lacks the shard .*00002-of", "under exactly this name"),
        ("outside", "names a shard outside its folder", "source that you trust"),
        ("other version", "lacks the tensor .* promises", "all of one version"),
        ("no map", "lists no shards", "download it again"),
    ],
)
def test_a_damaged_index_is_named(models, tmp_path, damage, message, fix):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    folder = tmp_path / "folder"
    shutil.copytree(models["sd2"], folder)
    loaded = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    loaded.save_pretrained(folder / "unet", max_shard_size="500KB")
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    value = json.loads(index.read_text())
    if damage == "lost":
        next((folder / "unet").glob("*-00002-of-*")).unlink()
    elif damage == "outside":
        value["weight_map"]["conv_in.weight"] = "../vae/diffusion_pytorch_model.safetensors"
    elif damage == "other version":
        value["weight_map"]["conv_in.scale"] = value["weight_map"]["conv_in.weight"]
    else:
        value = [value]
    index.write_text(json.dumps(value))
    with pytest.raises(UserError, match=message) as error:
        convert_model(folder, tmp_path / "m.safetensors")
    assert fix in error.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


# ------------------------------------------------------------------ how the bytes go


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_only_the_projection_is_computed_and_all_else_lies_in_a_few_ranges(models, name):
    source = open_folder(models[name])
    planned = single_file_plan(source.kind, source.configs, source.parts, source.extras, None)
    computed = [tensor.name for tensor in planned if not tensor.ranges]
    assert computed == (["conditioner.embedders.1.model.text_projection"] if name == "sdxl" else [])
    fused = [tensor for tensor in planned if tensor.name.endswith("attn.in_proj_weight")]
    assert all(len(tensor.ranges) == 3 for tensor in fused) and bool(fused) == (name != "sd1")
    assert all(sum(one.end - one.start for one in t.ranges) == t.size_bytes for t in planned if t.ranges)


def test_a_ckpt_becomes_safetensors_as_ranges_of_its_own_bytes_and_no_copy_is_made(
    models, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tensors = state(convert_model(models["sd2"], tmp_path / "m.safetensors", BARE).path)
    torch.save({"state_dict": tensors}, tmp_path / "theirs.ckpt")
    file = open_weights(tmp_path / "theirs.ckpt")
    data = (tmp_path / "theirs.ckpt").read_bytes()
    for name, tensor in tensors.items():
        place = file.tensors[name]
        assert data[place.start : place.end] == tensor.numpy().tobytes(), name
    made = convert_model(tmp_path / "theirs.ckpt", tmp_path / "n.safetensors", BARE)
    assert same(state(made.path), tensors) and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("new", [True, False])
def test_views_of_shared_storages_arrive_as_they_read(models, tmp_path, new):
    tensors = state(convert_model(models["sd2"], tmp_path / "m.safetensors", BARE).path)
    turned = "model.diffusion_model.time_embed.0.weight"
    half = "model.diffusion_model.time_embed.0.bias"
    fused = f"{TEXT_2}transformer.resblocks.0.attn.in_proj_weight"
    given = dict(tensors)
    given[turned] = tensors[turned].T.contiguous().T  # the same numbers, columns first
    given[half] = torch.stack([tensors[half], tensors[half]], dim=1)[:, 1]  # every second of a storage
    given[fused] = tensors[fused].T.contiguous().T
    torch.save({"state_dict": given}, tmp_path / "views.ckpt", _use_new_zipfile_serialization=new)
    made = convert_model(tmp_path / "views.ckpt", tmp_path / "n.safetensors", BARE)
    assert same(state(made.path), tensors)
    folder = convert_model(
        tmp_path / "views.ckpt", tmp_path / "f", ConversionChoices(config_from=models["sd2"])
    )
    assert same(weights(folder.path), weights(models["sd2"]))


def test_neither_torch_nor_numpy_is_needed_to_copy(models, tmp_path):
    program = (
        "import sys; from pathlib import Path; from fastsd_lib.formats.conversion import *; "
        "convert_model(Path(sys.argv[1]), Path(sys.argv[2])); convert_model(Path(sys.argv[2]), Path(sys.argv[3])); "
        "convert_model(Path(sys.argv[3]), Path(sys.argv[4])); "
        "print(sorted({'torch', 'numpy', 'safetensors', 'diffusers'} & set(sys.modules)))"
    )
    places = [str(models["sd1"]), *(str(tmp_path / name) for name in ("m.ckpt", "m.safetensors", "folder"))]
    run = subprocess.run([sys.executable, "-c", program, *places], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_weights_are_cast_as_torch_casts_them_and_nothing_that_counts_is(files, tmp_path, dtype):
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    source = tmp_path / "source.safetensors"
    more = {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(7, dtype=torch.int32),
        "alphas_cumprod": torch.linspace(0, 1, 9, dtype=torch.float64),
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    save_file(state(files["sdxl"]) | more, source)
    made = state(convert_model(source, tmp_path / "m.ckpt", ConversionChoices(dtype, ema="keep")).path)
    for name, tensor in state(source).items():
        expected = tensor if name in more else tensor.to(wanted)
        assert made[name].dtype == expected.dtype and torch.equal(made[name], expected), name


def test_a_number_that_is_none_is_named_when_weights_are_cast_and_nothing_is_left(files, tmp_path):
    tensors = state(files["sd2"])
    tensors["first_stage_model.encoder.conv_in.bias"][3] = 1e30
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"first_stage_model\.encoder\.conv_in\.bias") as error:
        convert_model(tmp_path / "bad.safetensors", tmp_path / "m.safetensors", ConversionChoices("fp16"))
    assert "bf16" in error.value.fix and [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]
    made = convert_model(tmp_path / "bad.safetensors", tmp_path / "m.safetensors", ConversionChoices("bf16"))
    assert made.path.is_file()


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), float("inf")])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_what_is_no_number_is_named_on_a_cast_and_kept_by_a_copy(files, tmp_path, dtype, value):
    tensors = state(files["sd2"])
    tensors["model.diffusion_model.out.2.weight"].view(-1)[-1] = value
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"no numbers \(in model\.diffusion_model\.out\.2\.weight\)") as error:
        convert_model(tmp_path / "bad.safetensors", tmp_path / "m.safetensors", ConversionChoices(dtype))
    assert "without --dtype" in error.value.fix
    kept = state(convert_model(tmp_path / "bad.safetensors", tmp_path / "m.ckpt", BARE).path)
    found = kept["model.diffusion_model.out.2.weight"].view(-1)[-1]
    assert found.view(torch.int32) == torch.tensor(value).view(torch.int32)


def test_the_header_carries_a_hash_over_all_weights_in_their_order(models, tmp_path):
    import hashlib

    made = convert_model(models["sdxl"], tmp_path / "m.safetensors", ConversionChoices(sha256=True)).path
    file = read_tensor_file(made)
    first = min(tensor.start for tensor in file.tensors.values())
    assert (
        file.metadata["modelspec.hash_sha256"] == f"0x{hashlib.sha256(made.read_bytes()[first:]).hexdigest()}"
    )
