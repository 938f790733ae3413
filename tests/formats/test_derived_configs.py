"""Configs read from the shapes of the published models, beside the configs that were published with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastsd_lib.core.tensor_file import Tensor, TensorFile
from fastsd_lib.formats.derived_configs import fit_configs
from fastsd_lib.formats.key_maps import TEXT_PREFIXES, open_clip_table, rename, unet_table, vae_table

# As in the unet/config.json of stabilityai/stable-diffusion-2-1 (768-v), -xl-base-1.0 and -xl-refiner-1.0.
UNETS = {
    "sd2": {
        "sample_size": 96,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl_refiner": {
        "sample_size": 128,
        "block_out_channels": [384, 768, 1536, 1536],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": [6, 12, 24, 24],
        "transformer_layers_per_block": 4,
        "cross_attention_dim": 1280,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560,
    },
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
# Text encoder by its prefix in the file: width, layers in the file, layers in the published config, activation.
TEXTS = {
    "cond_stage_model.model.": (1024, 24, 23, "gelu", 16),
    "conditioner.embedders.0.transformer.": (768, 12, 12, "quick_gelu", 12),
    "conditioner.embedders.1.model.": (1280, 32, 32, "gelu", 20),
    "conditioner.embedders.0.model.": (1280, 32, 32, "gelu", 20),
}


def file_of(kind: str) -> TensorFile:
    """The header that the published single file has, as far as it matters here."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**UNETS[kind]), AutoencoderKL(**VAE)
    shapes = {}
    for prefix, module, table in (
        ("model.diffusion_model.", unet, unet_table(UNETS[kind])),
        ("first_stage_model.", vae, vae_table(VAE)),
    ):
        for name, tensor in module.state_dict().items():
            shapes[prefix + str(rename(name, table))] = tuple(tensor.shape)
    for prefix in TEXT_PREFIXES[kind].values():
        width, layers, _, act, _ = TEXTS[prefix]
        if act == "gelu":
            shapes |= {f"{prefix}token_embedding.weight": (49408, width)}
            shapes |= {f"{prefix}text_projection": (width, width)}
            for layer in range(layers):
                shapes[f"{prefix}transformer.resblocks.{layer}.mlp.c_fc.weight"] = (4 * width, width)
        else:
            shapes |= {f"{prefix}text_model.embeddings.token_embedding.weight": (49408, width)}
            for layer in range(layers):
                shapes[f"{prefix}text_model.encoder.layers.{layer}.mlp.fc1.weight"] = (4 * width, width)
    return TensorFile(
        Path("m.safetensors"), {name: Tensor("F16", shape, 0, 0) for name, shape in shapes.items()}, {}
    )


@pytest.fixture(scope="module")
def words():
    """Stable Diffusion 1.5's small files, as far as they matter here."""
    vocabulary = {str(number): number for number in range(49408)}
    special = {"pad_token": "<|endoftext|>"}
    return {
        "unet/config.json": "{}",
        "tokenizer/vocab.json": json.dumps(vocabulary),
        "tokenizer/tokenizer_config.json": json.dumps(special),
    }


@pytest.mark.parametrize("kind", UNETS)
def test_the_shapes_of_published_models_give_their_published_configs(words, kind):
    file = file_of(kind)
    if (
        kind == "sd2"
    ):  # the numbers of one bias tell that it predicts velocity, and that it is the one for 768 px
        file.metadata["modelspec.prediction_type"] = "v"  # type: ignore[index]
    configs = {name: json.loads(text) for name, text in fit_configs(file, words, Path("sd15")).items()}
    unet, published = configs["unet/config.json"], UNETS[kind]
    depths = published.get("transformer_layers_per_block", 1)
    attending = [i for i, one in enumerate(published["down_block_types"]) if "Cross" in one]
    for key, value in published.items():
        if key != "transformer_layers_per_block":
            assert unet[key] == value, key
    for level in attending:
        expected = depths if isinstance(depths, int) else depths[level]
        assert unet["transformer_layers_per_block"][level] == expected
    last = depths if isinstance(depths, int) else depths[-1]
    assert unet["transformer_layers_per_block"][-1] == last  # the middle's
    for key, value in VAE.items():
        assert configs["vae/config.json"][key] == value, key
    assert configs["vae/config.json"]["scaling_factor"] == (0.18215 if kind == "sd2" else 0.13025)
    for part, prefix in TEXT_PREFIXES[kind].items():
        width, _, layers, act, heads = TEXTS[prefix]
        text = configs[f"{part}/config.json"]
        assert (text["hidden_size"], text["num_hidden_layers"], text["hidden_act"]) == (width, layers, act)
        assert (text["num_attention_heads"], text["intermediate_size"]) == (heads, 4 * width)
        assert (text["bos_token_id"], text["eos_token_id"]) == (49406, 49407)
        pad = configs[f"tokenizer{part.removeprefix('text_encoder')}/tokenizer_config.json"]["pad_token"]
        assert pad == ("!" if act == "gelu" else "<|endoftext|>")


def test_no_two_modules_of_an_open_clip_share_a_name():
    table = open_clip_table(32, projects=True)
    assert len(set(table.values())) == len(table)
    name = "text_model.encoder.layers.31.self_attn.out_proj.bias"
    assert rename(name, table) == "transformer.resblocks.31.attn.out_proj.bias"
