"""A model is converted when every weight is there and of its size, and refused with one line when not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_layouts import read_layout, sparse_file
from safetensors.torch import load_file, save_file
from tiny_families import save_sd2, save_sdxl

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.formats.conversion import convert_model
from fastsd_lib.formats.model_source import open_file

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
UNET, CLIP = "model.diffusion_model.", "cond_stage_model.transformer.text_model."
PUBLISHED = (
    "sd15", "sd15-inpainting", "instruct-pix2pix", "sd2-base", "sd2-768-v", "sd2-depth", "sd2-inpainting",
    "sdxl-base", "sdxl-inpainting", "sdxl-refiner",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_pipeline) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        "sd1": tiny_pipeline.path,
        "sd2": save_sd2(folder / "sd2").path,
        "sdxl": save_sdxl(folder / "sdxl").path,
    }


def without(model: Path, to: Path, part: str, *ends: str, only: str = "") -> Path:
    """A copy of the folder that lacks the tensors of `part` that end so, or has none but `only`."""
    shutil.copytree(model, to)
    path = to / part / f"{STEMS.get(part, 'model')}.safetensors"
    tensors = load_file(path)
    kept = {name: one for name, one in tensors.items() if not (ends and name.endswith(ends))}
    kept = {name: one for name, one in kept.items() if name.endswith(only)}
    assert 0 < len(kept) < len(tensors)
    save_file(kept, path)
    return to


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_are_whole(tmp_path, name):
    file = read_tensor_file(sparse_file(tmp_path / "m.safetensors", read_layout(name)))
    assert open_file(file, None, "drop").parts.keys() >= {"unet", "vae"}


@pytest.mark.parametrize(
    ("family", "part", "ends", "first"),
    [
        ("sd1", "unet", ("down_blocks.0.resnets.0.conv1.bias",), "down_blocks.0.resnets.0.conv1.bias"),
        ("sd1", "unet", ("transformer_blocks.0.attn1.to_k.weight",), "transformer_blocks.0.attn1.to_k.weight"),
        ("sd1", "unet", ("conv_shortcut.weight", "conv_shortcut.bias"), "conv_shortcut.weight"),
        ("sd1", "vae", ("mid_block.attentions.0.group_norm.weight",), "attentions.0.group_norm.weight"),
        ("sd2", "vae", ("decoder.conv_out.bias",), "decoder.conv_out.bias"),
        ("sd1", "text_encoder", ("layers.1.mlp.fc2.weight",), "layers.1.mlp.fc2.weight"),
        ("sd2", "text_encoder", ("layers.2.layer_norm1.bias",), "layers.2.layer_norm1.bias"),
        ("sdxl", "text_encoder_2", ("final_layer_norm.bias",), "final_layer_norm.bias"),
        ("sdxl", "unet", ("attentions.0.transformer_blocks.1.ff.net.2.bias",), "transformer_blocks.1.ff.net.2.bias"),
    ],
)  # fmt: skip
def test_a_folder_that_lacks_single_tensors_is_refused(models, tmp_path, family, part, ends, first):
    broken = without(models[family], tmp_path / "broken", part, *ends)
    message = rf"broken.{part} lacks \d+ tensors that a {part} of this shape has, first .*{first}\."
    with pytest.raises(UserError, match=message) as error:
        convert_model(broken, tmp_path / "m.safetensors")
    assert "incomplete" in error.value.fix and not (tmp_path / "m.safetensors").exists()


def test_a_text_encoder_that_is_one_tensor_is_refused(models, tmp_path):
    broken = without(models["sd1"], tmp_path / "broken", "text_encoder", only="token_embedding.weight")
    with pytest.raises(UserError, match=r"lacks .* tensors that a text_encoder of this shape has"):
        convert_model(broken, tmp_path / "m.ckpt")


@pytest.mark.parametrize(
    "lost", [f"{UNET}input_blocks.1.0.in_layers.2.bias", f"{CLIP}encoder.layers.1.mlp.fc1.weight"]
)
def test_a_file_that_lacks_one_tensor_becomes_no_folder(models, tmp_path, lost):
    good = convert_model(models["sd1"], tmp_path / "m.safetensors").path
    tensors, header = load_file(good), read_tensor_file(good).metadata
    del tensors[lost]
    save_file(tensors, tmp_path / "broken.safetensors", dict(header))
    with pytest.raises(UserError, match=r"broken\.safetensors lacks 1 tensors"):
        convert_model(tmp_path / "broken.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("part", "entries", "name"),
    [
        ("unet", {"in_channels": 9}, r"conv_in\.weight is \[\d+, 4\], which its config says is \[\d+, 9\]"),
        ("unet", {"cross_attention_dim": 999}, r"attn2\.to_k\.weight"),
        ("vae", {"latent_channels": 16}, r"decoder\.conv_in\.weight"),
        ("text_encoder", {"vocab_size": 49408}, r"token_embedding\.weight"),
        ("text_encoder", {"intermediate_size": 4096}, r"mlp\.fc1\.weight"),
    ],
)
def test_weights_of_other_sizes_than_the_config_says_are_refused(models, tmp_path, part, entries, name):
    folder = tmp_path / "folder"
    shutil.copytree(models["sd1"], folder)
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(UserError, match=rf"{part}: .*{name}"):
        convert_model(folder, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_what_a_model_may_lack_is_not_asked_for(models, tmp_path):
    """A VAE without attention in its middle and without quant_conv; position ids more or less."""
    folder = without(models["sd1"], tmp_path / "folder", "vae", "quant_conv.weight", "quant_conv.bias")
    path = folder / "vae" / f"{STEMS['vae']}.safetensors"
    save_file(
        {name: one for name, one in load_file(path).items() if ".mid_block.attentions." not in name}, path
    )
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    save_file(tensors | {f"{prefix}embeddings.position_ids": torch.arange(77)[None]}, path)
    assert convert_model(folder, tmp_path / "m.safetensors").path.is_file()
