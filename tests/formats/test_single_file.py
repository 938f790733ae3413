"""Folder -> file -> folder, with diffusers' own loader as the second witness."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.single_file import export_single_file, import_single_file

PARTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def weights(folder: Path, part: str) -> dict[str, np.ndarray]:
    """By current names: transformers 5.6 and later save CLIP without `text_model.`, we write it with."""
    return {
        name.removeprefix("text_model."): array
        for name, array in load_file(folder / part / PARTS[part]).items()
    }


def copy_of(model: ModelFiles, to: Path) -> ModelFiles:
    shutil.copytree(model.path, to)
    return ModelFiles("sd1", "diffusers", to)


@pytest.mark.parametrize("shape", ["tiny_pipeline", "narrow_sd15"])
def test_folder_to_file_to_folder_keeps_every_bit(shape, request, tmp_path):
    model = request.getfixturevalue(shape)
    exported = export_single_file(model, tmp_path / "m.safetensors", dtype=None)
    back = import_single_file(exported.path, tmp_path / "back")
    for part in PARTS:
        before, after = weights(model.path, part), weights(back.path, part)
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[name], after[name]) for name in before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "m.safetensors"]
    index = json.loads((back.path / "model_index.json").read_text())
    assert index == json.loads((model.path / "model_index.json").read_text())


@pytest.mark.parametrize("shape", ["tiny_pipeline", "narrow_sd15"])
def test_diffusers_draws_the_same_from_the_file_as_from_the_folder(shape, request, tmp_path):
    import torch
    from diffusers import StableDiffusionPipeline

    model = request.getfixturevalue(shape)
    file = export_single_file(model, tmp_path / "m.safetensors", dtype=None).path
    unpacked = import_single_file(file, tmp_path / "unpacked").path
    loaded = [
        StableDiffusionPipeline.from_pretrained(model.path),
        StableDiffusionPipeline.from_single_file(str(file), config=str(model.path), local_files_only=True),
        StableDiffusionPipeline.from_pretrained(unpacked),
    ]
    pictures = []
    for pipeline in loaded:
        pipeline.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(1)
        drawn = pipeline("a photo of a red star", num_inference_steps=2, generator=noise, output_type="np")
        pictures.append(drawn.images)
    assert np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_a_cast_file_holds_exactly_what_torch_would_have_cast(tiny_pipeline, tmp_path, dtype):
    import torch

    file = export_single_file(tiny_pipeline, tmp_path / "m.safetensors", dtype=dtype).path
    width = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    source = weights(tiny_pipeline.path, "unet")["conv_in.weight"]
    with safe_open(file, framework="pt") as opened:
        ours = opened.get_tensor("model.diffusion_model.input_blocks.0.0.weight")
        names = opened.keys()
        assert {opened.get_tensor(name).dtype for name in names} == {width}
    assert torch.equal(ours, torch.from_numpy(source).to(width))


def test_metadata_says_what_it_is_and_carries_the_recipe(tiny_pipeline, tmp_path):
    out = tmp_path / "my-cat.safetensors"
    export_single_file(tiny_pipeline, out, metadata={"fastsd.recipe": {"unet_steps": 5}, "note": "hello"})
    metadata = read_tensor_file(out).metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.title"] == "my-cat"
    assert metadata["modelspec.resolution"] == "64x64"
    assert len(metadata["modelspec.hash_sha256"]) == 66
    assert json.loads(metadata["fastsd.recipe"]) == {"unet_steps": 5}
    assert metadata["note"] == "hello"


def test_text_encoder_keys_with_and_without_their_prefix_give_the_same_file(tiny_pipeline, tmp_path):
    other = copy_of(tiny_pipeline, tmp_path / "other")
    path = other.path / "text_encoder" / "model.safetensors"
    arrays = load_file(path)
    old = any(name.startswith("text_model.") for name in arrays)
    save_file(
        {name.removeprefix("text_model.") if old else f"text_model.{name}": a for name, a in arrays.items()},
        path,
    )
    one = export_single_file(tiny_pipeline, tmp_path / "one.safetensors", dtype=None).path
    two = export_single_file(other, tmp_path / "two.safetensors", dtype=None).path
    assert set(read_tensor_file(one).tensors) == set(read_tensor_file(two).tensors)
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in read_tensor_file(one).tensors


def test_shards_and_a_lone_variant_are_read(tiny_pipeline, tmp_path):
    other = copy_of(tiny_pipeline, tmp_path / "other")
    whole = other.path / "unet" / PARTS["unet"]
    arrays = load_file(whole)
    names = sorted(arrays)
    places = {}
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        shard = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        save_file({name: arrays[name] for name in some}, whole.with_name(shard))
        places |= dict.fromkeys(some, shard)
    whole.unlink()
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps({"weight_map": places}))
    vae = other.path / "vae" / PARTS["vae"]
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    one = export_single_file(tiny_pipeline, tmp_path / "one.safetensors", dtype=None).path
    two = export_single_file(other, tmp_path / "two.safetensors", dtype=None).path
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_bare_file_takes_its_configs_from_a_folder_and_asks_for_one(tiny_pipeline, tmp_path):
    file = export_single_file(tiny_pipeline, tmp_path / "m.safetensors", dtype=None).path
    bare = tmp_path / "bare.safetensors"
    leftovers = {"alphas_cumprod": np.zeros(4, np.float32), "model_ema.decay": np.zeros(1, np.float32)}
    save_file(load_file(file) | leftovers, bare)
    with pytest.raises(UserError, match="holds weights only, no configs") as error:
        import_single_file(bare, tmp_path / "out")
    assert "name a Diffusers folder" in error.value.fix
    back = import_single_file(bare, tmp_path / "out", config_from=tiny_pipeline.path)
    assert weights(back.path, "vae").keys() == weights(tiny_pipeline.path, "vae").keys()


def test_a_model_of_another_shape_is_refused_and_leaves_nothing(tiny_pipeline, narrow_sd15, tmp_path):
    file = export_single_file(tiny_pipeline, tmp_path / "m.safetensors").path
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(file), bare)
    with pytest.raises(UserError, match=r"lacks .* modules that a unet of this shape has") as error:
        import_single_file(bare, tmp_path / "out", config_from=narrow_sd15.path)
    assert "take its own configs" in error.value.fix
    assert not (tmp_path / "out").exists()


def test_foreign_tensors_are_named(tiny_pipeline, tmp_path):
    other = copy_of(tiny_pipeline, tmp_path / "other")
    path = other.path / "unet" / PARTS["unet"]
    save_file(load_file(path) | {"adapter.gate": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match=r"holds 1 tensors that no SD 1.x model .* first adapter.gate"):
        export_single_file(other, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_weights_too_large_for_fp16_are_named_and_nothing_is_left(tiny_pipeline, tmp_path):
    other = copy_of(tiny_pipeline, tmp_path / "other")
    path = other.path / "vae" / PARTS["vae"]
    arrays = load_file(path)
    arrays["quant_conv.bias"] = np.full_like(arrays["quant_conv.bias"], 1e6)
    save_file(arrays, path)
    with pytest.raises(UserError, match=r"quant_conv\.bias holds values beyond 65504") as error:
        export_single_file(other, tmp_path / "m.safetensors", dtype="fp16")
    assert "bf16 or fp32" in error.value.fix
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]


def test_an_existing_folder_is_never_filled_over(tiny_pipeline, tmp_path):
    file = export_single_file(tiny_pipeline, tmp_path / "m.safetensors").path
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        import_single_file(file, tmp_path / "out")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_folder_without_its_parts_and_a_wrong_ending_say_so(tiny_pipeline, tmp_path):
    with pytest.raises(UserError, match=r"unet/config.json is missing"):
        export_single_file(ModelFiles("sd1", "diffusers", tmp_path), tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"ends neither in .safetensors nor in .ckpt") as error:
        export_single_file(tiny_pipeline, tmp_path / "m.bin")
    assert error.value.fix == "write to m.safetensors."
