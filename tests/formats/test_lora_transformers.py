"""LoRA files of Flux and SD 3 between kohya's and peft's names. Witnesses: diffusers, and products by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_tensors import Tensors, change, fused, metadata, pair, same, there_and_back
from safetensors.torch import load_file, save_file

from fastsd_lib.formats.lora_convert import convert_lora


@pytest.mark.parametrize(
    ("key", "ours"),
    [("img_attn_qkv", "to_q to_k to_v"), ("txt_attn_qkv", "add_q_proj add_k_proj add_v_proj")],
)
def test_a_joined_layer_of_flux_comes_apart_as_diffusers_takes_it(
    tmp_path: Path, key: str, ours: str
) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    key = f"lora_unet_double_blocks_1_{key}"
    tensors = fused(key, 96, 32) | pair("lora_unet_double_blocks_1_img_mlp_0", 128, 32)
    peft, back = there_and_back(tmp_path, tensors)
    assert same(load_file(back), tensors)
    theirs = _convert_kohya_flux_lora_to_diffusers({k: v.float() for k, v in tensors.items()})
    found, said = load_file(peft), json.loads(metadata(peft)["lora_adapter_metadata"])
    whole = change(tensors, key)
    paths = [f"transformer_blocks.1.attn.{one}" for one in ours.split()]
    for number, path in enumerate([*paths, "transformer_blocks.1.ff.net.0.proj"]):
        down, up = found[f"transformer.{path}.lora_A.weight"], found[f"transformer.{path}.lora_B.weight"]
        alpha = said["transformer.alpha_pattern"].get(path, said["transformer.lora_alpha"])
        ours_change = up.float() @ down.float() * (alpha / down.shape[0])
        witness = theirs[f"transformer.{path}.lora_B.weight"] @ theirs[f"transformer.{path}.lora_A.weight"]
        assert torch.allclose(ours_change, witness, atol=1e-4)
        if number < 3:
            assert torch.allclose(ours_change, whole[32 * number : 32 * number + 32], atol=1e-5)


def test_flux_diffusers_loads_the_converted_file(tmp_path: Path) -> None:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    width = 32
    tensors = (
        fused("lora_unet_double_blocks_0_img_attn_qkv", 3 * width, width)
        | fused("lora_unet_single_blocks_0_linear1", 7 * width, width)
        | pair("lora_unet_single_blocks_0_linear2", width, 5 * width)
        | pair("lora_unet_final_layer_adaLN_modulation_1", 2 * width, width)
        | pair("lora_unet_final_layer_linear", 4, width, rank=2)
        | pair("lora_unet_guidance_in_in_layer", width, 256)
    )
    peft, back = there_and_back(tmp_path, tensors)
    assert same(load_file(back), tensors)
    torch.manual_seed(1)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    before = {name: one.clone() for name, one in model.state_dict().items()}
    model.load_lora_adapter(str(peft), prefix="transformer", use_safetensors=True)
    model.fuse_lora()
    model.unload_lora()
    after = {name: one - before[name] for name, one in model.state_dict().items()}
    single = "single_transformer_blocks.0."
    turned = change(tensors, "lora_unet_final_layer_adaLN_modulation_1")
    for paths, wanted in (
        ([f"transformer_blocks.0.attn.to_{one}" for one in "qkv"],
         change(tensors, "lora_unet_double_blocks_0_img_attn_qkv")),
        ([*(f"{single}attn.to_{one}" for one in "qkv"), f"{single}proj_mlp"],
         change(tensors, "lora_unet_single_blocks_0_linear1")),
        ([f"{single}proj_out"], change(tensors, "lora_unet_single_blocks_0_linear2")),
        (["norm_out.linear"], torch.cat([turned[width:], turned[:width]])),
        (["proj_out"], change(tensors, "lora_unet_final_layer_linear")),
        (["time_text_embed.guidance_embedder.linear_1"], change(tensors, "lora_unet_guidance_in_in_layer")),
    ):  # fmt: skip
        found = torch.cat([after.pop(f"{path}.weight") for path in paths])
        assert torch.allclose(found, wanted, atol=1e-4), paths
    assert all(not one.any() for one in after.values())


@pytest.mark.parametrize("ranks", [(2, 2, 2), (4, 0, 2)])
def test_separate_adapters_stand_on_the_diagonal_and_come_back(
    tmp_path: Path, ranks: tuple[int, ...]
) -> None:
    """to_q, to_k, to_v with their own `lora_A`: one layer of all ranks; a layer that is not changed has none."""
    tensors: Tensors = {}
    for letter, rank in zip("qkv", ranks, strict=True):
        if rank:
            own = pair(f"x{letter}", 32, 32, rank)
            path = f"transformer.transformer_blocks.0.attn.to_{letter}"
            tensors[f"{path}.lora_A.weight"] = own[f"x{letter}.lora_down.weight"]
            tensors[f"{path}.lora_B.weight"] = own[f"x{letter}.lora_up.weight"]
    tensors |= {
        f"transformer.single_transformer_blocks.0.proj_out.lora_{side}.weight": torch.randn(shape).half()
        for side, shape in (("A", (4, 160)), ("B", (32, 4)))
    }
    save_file(tensors, tmp_path / "peft.safetensors")
    kohya = convert_lora(tmp_path / "peft.safetensors", tmp_path / "kohya.safetensors", "kohya")
    found = load_file(kohya)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    assert found[f"{key}.lora_down.weight"].shape == (6, 32)
    assert "1 of them with the ranks of all parts together" in metadata(kohya)["fastsd.conversion"]
    whole = change(found, key)
    for number, letter in enumerate("qkv"):
        path = f"transformer.transformer_blocks.0.attn.to_{letter}"
        wanted = torch.zeros(32, 32)
        if f"{path}.lora_A.weight" in tensors:
            wanted = tensors[f"{path}.lora_B.weight"].float() @ tensors[f"{path}.lora_A.weight"].float()
        assert torch.allclose(whole[32 * number : 32 * number + 32], wanted, atol=1e-5)
    back = convert_lora(kohya, tmp_path / "back.safetensors", "peft")
    assert same(load_file(back), tensors)
    said = json.loads(metadata(back)["lora_adapter_metadata"])  # the scale is still 1 everywhere
    for letter, rank in zip("qkv", ranks, strict=True):
        path = f"transformer_blocks.0.attn.to_{letter}"
        if rank:
            assert said["transformer.alpha_pattern"].get(path, said["transformer.lora_alpha"]) == rank


@pytest.mark.parametrize("side", ["above", "below"])
def test_zeros_on_one_side_of_the_diagonal_are_not_enough(tmp_path: Path, side: str) -> None:
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = fused(key, 96, 32) | pair("lora_unet_single_blocks_0_linear2", 32, 160)
    blocks = torch.ones(3, 3).tril() if side == "above" else torch.ones(3, 3).triu()
    beside = blocks.repeat_interleave(32, 0).repeat_interleave(2, 1) == 0
    tensors[f"{key}.lora_up.weight"].masked_fill_(beside, 0.0)
    peft, back = there_and_back(tmp_path, tensors)
    assert same(load_file(back), tensors)
    found = load_file(peft)
    for number, letter in enumerate("qkv"):
        path = f"transformer.transformer_blocks.0.attn.to_{letter}"
        product = found[f"{path}.lora_B.weight"].float() @ found[f"{path}.lora_A.weight"].float()
        assert torch.allclose(product * 0.5, change(tensors, key)[32 * number : 32 * number + 32], atol=1e-5)


def test_sd3_layers_have_their_names_and_the_last_text_block_its_order(tmp_path: Path) -> None:
    width = 32
    tensors = (
        fused("lora_unet_joint_blocks_0_x_block_attn_qkv", 3 * width, width)
        | fused("lora_unet_joint_blocks_0_context_block_attn_qkv", 3 * width, width)
        | pair("lora_unet_joint_blocks_0_context_block_adaLN_modulation_1", 6 * width, width)
        | pair("lora_unet_joint_blocks_1_context_block_adaLN_modulation_1", 2 * width, width)
        | pair("lora_unet_joint_blocks_0_x_block_mlp_fc1", 4 * width, width)
        | pair("lora_te1_text_model_encoder_layers_0_self_attn_k_proj", 16, 16)
        | pair("lora_te3_encoder_block_0_layer_0_SelfAttention_q", 16, 16)
        | pair("lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0", 16, 16)
    )
    peft, back = there_and_back(tmp_path, tensors)
    assert same(load_file(back), tensors)
    found = load_file(peft)
    for number, last in ((0, False), (1, True)):
        path = f"transformer.transformer_blocks.{number}.norm1_context.linear.lora_B.weight"
        up = tensors[f"lora_unet_joint_blocks_{number}_context_block_adaLN_modulation_1.lora_up.weight"]
        assert torch.equal(found[path], torch.cat([up[width:], up[:width]]) if last else up)
    up = tensors["lora_unet_joint_blocks_0_context_block_attn_qkv.lora_up.weight"]
    assert torch.equal(
        found["transformer.transformer_blocks.0.attn.add_k_proj.lora_B.weight"], up[width : 2 * width]
    )
    assert "text_encoder_3.encoder.block.0.layer.1.DenseReluDense.wi_0.lora_A.weight" in found
