"""SD3 and Flux files and folders that are refused, each with its line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_folders import refused, weights, written

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.transformer_files import plan_export


def test_strange_and_missing_tensors_are_named(folders, tmp_path):
    file = written(folders("dev"), tmp_path / "whole.safetensors")
    given, path = load_file(file), tmp_path / "x.safetensors"
    body = "model.diffusion_model."
    line = refused(given | {f"{body}double_blocks.0.extra.weight": torch.ones(1)}, path)
    assert "1 tensors that no Flux.1 transformer" in line and "double_blocks.0.extra.weight" in line
    line = refused({k: v for k, v in given.items() if k != f"{body}single_blocks.1.linear1.bias"}, path)
    assert "lacks 1 of" in line and "single_blocks.1.linear1.bias" in line
    line = refused({k: v for k, v in given.items() if not k.startswith("vae.decoder.mid.attn_1.q")}, path)
    assert "tensors of the vae, first decoder.mid.attn_1.q.weight" in line
    line = refused({k: v for k, v in given.items() if "layers.1.mlp.fc1" not in k}, path)
    assert "text_encoder" in line and "layers.1.mlp.fc1" in line
    assert "text_encoders.clip_g" in refused(
        given | {"text_encoders.clip_g.transformer.x": torch.ones(1)}, path
    )
    line = refused(given | {"img_in.weight": torch.ones(1)}, path)
    assert "twice" in line and "img_in.weight" in line
    wrong = given | {f"{body}double_blocks.1.img_attn.qkv.weight": torch.ones(100, 128)}
    assert "100 rows" in refused(wrong, path)
    wrong = given | {f"{body}final_layer.adaLN_modulation.1.bias": torch.ones(3)}
    assert "no halves" in refused(wrong, path)
    assert "img_in.weight of shape [64]" in refused(given | {f"{body}img_in.weight": torch.ones(64)}, path)


def test_other_models_and_packed_numbers_are_refused(folders, tmp_path):
    path = tmp_path / "x.safetensors"
    folder = folders("schnell")
    given = load_file(written(folder, tmp_path / "whole.safetensors"))
    assert "no transformer of SD3 or Flux" in refused({"model.x": torch.ones(1)}, path)
    assert "diffusers' names" in refused(weights(folder, "transformer"), path)
    marks = ("model.diffusion_model.scaled_fp8", "text_encoders.t5xxl.transformer.scaled_fp8",
             "model.diffusion_model.double_blocks.0.img_attn.qkv.scale_weight",
             "double_blocks.0.img_attn.qkv.weight.absmax")  # fmt: skip
    for mark in marks:
        line = refused(given | {mark: torch.ones(1)}, path)
        assert "packed or scaled" in line and mark in line and "plain fp8" in line


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        "{}",
        '{"transformer/config.json": 5}',
        '{"transformer/config.json": {"_class_name": "UNet2DConditionModel"}}',
        '{"transformer/config.json": {"_class_name": ["FluxTransformer2DModel"]}}',
        '{"transformer/config.json": {"_class_name": "FluxTransformer2DModel", "num_layers": 1000000000}}',
        '{"transformer/config.json": {"num_layers": "two"}}',
        '{"vae/config.json": {"block_out_channels": 3}}',
        '{"vae/config.json": {"scaling_factor": []}}',
        '{"text_encoder/config.json": {"num_hidden_layers": null}}',
        '{"text_encoder_2/config.json": {"feed_forward_proj": 5}}',
        '{"model_index.json": []}',
    ],
)
def test_broken_configs_in_a_header_are_refused(folders, tmp_path, broken):
    file = written(folders("dev"), tmp_path / "whole.safetensors")
    given = read_tensor_file(file)
    if broken.count('"') > 2 and "UNet" not in broken:  # all the rest is sound
        own = json.loads(given.metadata[METADATA_KEY])
        ((name, wrong),) = json.loads(broken).items()
        broken = json.dumps(own | {name: own[name] | wrong if isinstance(wrong, dict) else wrong})
    line = refused(load_file(file), tmp_path / "x.safetensors", {METADATA_KEY: broken})
    assert "configs of" in line and "Flux.1" in line


def test_configs_of_the_other_family_are_refused(folders, tmp_path):
    other = read_tensor_file(written(folders("3 medium"), tmp_path / "sd3.safetensors")).metadata
    given = load_file(written(folders("dev"), tmp_path / "flux.safetensors"))
    assert "configs of" in refused(given, tmp_path / "x.safetensors", {METADATA_KEY: other[METADATA_KEY]})


def test_a_folder_that_is_not_whole_is_refused(folders, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(folders("schnell"), folder)
    (folder / "text_encoder_2/config.json").unlink()
    with pytest.raises(UserError, match=r"text_encoder_2/config\.json is missing") as told:
        plan_export(folder, None)
    assert "[null, null]" in told.value.fix
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"text_encoder_2": [None, None]}))
    tensors, _ = plan_export(folder, None)
    assert not any("t5xxl" in one.name for one in tensors)
    given = load_file(folder / "transformer/diffusion_pytorch_model.safetensors")
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    query = "transformer_blocks.0.attn.to_q.weight"
    save_file(given | {query: given[query].half()}, path)
    with pytest.raises(UserError, match="different number formats") as told:
        plan_export(folder, None)
    assert "--dtype" in told.value.fix
    assert plan_export(folder, "bf16")
    save_file({name: one for name, one in given.items() if name != query}, path)
    with pytest.raises(UserError, match=r"lacks 1 of .* transformer_blocks\.0\.attn\.to_q\.weight"):
        plan_export(folder, None)
    with pytest.raises(UserError, match="No part 'unet'"):
        plan_export(folder, None, parts=["unet"])
    (folder / "transformer/config.json").unlink()
    with pytest.raises(UserError, match="no Diffusers folder of SD3 or Flux"):
        plan_export(folder, None)
