"""LoRA files between kohya's and peft's names. Witnesses: diffusers, which loads both, and products by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_tensors import CLIP, UNET, Tensors, change, fused, metadata, pair, same, there_and_back
from safetensors.torch import load_file, save_file
from tiny_families import save_sdxl

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.known_configs import BUNDLED
from fastsd_lib.formats.lora_convert import convert_lora
from fastsd_lib.formats.lora_names import (
    TRANSFORMERS,
    dotted,
    is_original,
    template,
    underscored,
    unet_renamed,
)


@pytest.fixture(scope="module")
def sd1_lora() -> Tensors:
    """Attention, a wide convolution, CLIP; ranks and alphas that differ."""
    return (
        pair(f"{UNET}transformer_blocks_0_attn1_to_q", 32, 32)
        | pair(f"{UNET}transformer_blocks_0_attn2_to_k", 32, 128, rank=8, alpha=1.0)
        | pair(f"{UNET}transformer_blocks_0_attn1_to_out_0", 32, 32, alpha=3.0)
        | pair(f"{UNET}proj_in", 32, 32, kernel=1)
        | pair("lora_unet_down_blocks_0_resnets_0_conv1", 32, 32, kernel=3)
        | pair("lora_unet_conv_in", 32, 4, alpha=7.0, kernel=3)
        | pair(f"{CLIP}0_self_attn_q_proj", 128, 128)
        | pair(f"{CLIP}1_mlp_fc1", 256, 128, rank=2, alpha=0.5)
    )


def test_there_and_back_is_the_same_file(tmp_path: Path, sd1_lora: Tensors) -> None:
    said = {
        "ss_tag_frequency": '{"a": {"zwx": 3}}',
        "modelspec.title": "Zwx",
        "sshs_model_hash": "of the old file",
    }
    peft, back = there_and_back(tmp_path, sd1_lora, said)
    assert same(load_file(back), sd1_lora)
    for path in (peft, back):
        kept = metadata(path)
        assert (kept["ss_tag_frequency"], kept["modelspec.title"]) == (said["ss_tag_frequency"], "Zwx")
        assert "sshs_model_hash" not in kept
        assert kept["modelspec.hash_sha256"].startswith("0x")
    assert metadata(peft)["fastsd.conversion"].startswith("kohya -> peft")
    # diffusers refuses a kohya file with peft's settings in it.
    assert "lora_adapter_metadata" not in metadata(back)


@pytest.mark.parametrize("naming", ["peft", "kohya"])
def test_diffusers_merges_what_the_numbers_say(
    tmp_path: Path, sd1_lora: Tensors, tiny_pipeline: ModelFiles, naming: str
) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    if naming == "kohya":  # diffusers 0.42 loses CLIP's attention and alphas that differ under these names
        usual = {name.rpartition(".lora_")[0] for name, one in sd1_lora.items() if one.shape[:1] == (4,)}
        usual -= {
            f"{CLIP}0_self_attn_q_proj",
            f"{UNET}transformer_blocks_0_attn1_to_out_0",
            "lora_unet_conv_in",
        }
        sd1_lora = {n: v for n, v in sd1_lora.items() if n.partition(".")[0] in usual} | pair(
            f"{CLIP}1_mlp_fc1", 256, 128
        )
    peft, back = there_and_back(tmp_path, sd1_lora)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline.path, safety_checker=None)
    before = {
        part: {name: one.clone() for name, one in getattr(pipe, part).state_dict().items()}
        for part in ("unet", "text_encoder")
    }
    pipe.load_lora_weights(str(peft if naming == "peft" else back))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    changed = set()
    for part, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        for name, now in getattr(pipe, part).state_dict().items():
            path = name.removesuffix(".weight")
            if part == "text_encoder":
                path = f"text_model.{path.removeprefix('text_model.')}"
            key = prefix + underscored(path)
            wanted = before[part][name]
            if f"{key}.lora_up.weight" in sd1_lora:
                wanted = wanted + change(sd1_lora, key)
                changed.add(key)
            assert torch.allclose(now, wanted, atol=1e-4), name
    assert changed == {name.partition(".")[0] for name in sd1_lora}


def test_the_engine_finds_every_alpha(tmp_path: Path, sd1_lora: Tensors) -> None:
    """What draws here reads both namings to the same scales."""
    from fastsd_lib.generation.network_files import read_network

    peft, back = there_and_back(tmp_path, sd1_lora)
    found = {key: module.alpha for key, module in read_network(peft).modules.items()}
    assert found == {
        name.removesuffix(".alpha"): float(sd1_lora[name]) for name in sd1_lora if ".alpha" in name
    }
    assert read_network(back).modules.keys() == found.keys()


def test_peft_alone_makes_the_adapter_of_the_files_own_settings(tmp_path: Path, sd1_lora: Tensors) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    unet = UNet2DConditionModel(
        block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=128, norm_num_groups=8,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
    )  # fmt: skip
    peft, _ = there_and_back(tmp_path, sd1_lora)
    said = json.loads(metadata(peft)["lora_adapter_metadata"])
    config = LoraConfig(**{k.removeprefix("unet."): v for k, v in said.items() if k.startswith("unet.")})
    inject_adapter_in_model(config, unet)
    weights = {
        k.removeprefix("unet."): v.float() for k, v in load_file(peft).items() if k.startswith("unet.")
    }
    assert not set_peft_model_state_dict(unet, weights).unexpected_keys
    layers = {name: one for name, one in unet.named_modules() if hasattr(one, "lora_A") and len(one.lora_A)}
    assert len(layers) == 6
    for name, one in layers.items():
        key = f"lora_unet_{underscored(name)}"
        assert torch.allclose(one.get_delta_weight("default"), change(sd1_lora, key), atol=1e-4), name


def test_sdxl_goes_by_the_original_blocks_and_by_diffusers(tmp_path: Path) -> None:
    from diffusers.loaders.lora_pipeline import StableDiffusionXLLoraLoaderMixin
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    keys = [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_middle_block_1_proj_in",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_output_blocks_5_2_conv",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0",
        "lora_unet_output_blocks_8_0_in_layers_2",
        "lora_te1_text_model_encoder_layers_0_self_attn_k_proj",
        "lora_te2_text_model_encoder_layers_31_mlp_fc2",
    ]
    tensors: Tensors = {}
    for key in keys:
        tensors |= pair(key, 64, 64)
    peft, back = there_and_back(tmp_path, tensors)
    assert same(load_file(back), tensors)

    class Config:
        layers_per_block = 2

    witness, _ = StableDiffusionXLLoraLoaderMixin.lora_state_dict(str(back), unet_config=Config())
    unet = convert_unet_state_dict_to_peft({k: v for k, v in witness.items() if k.startswith("unet.")})
    assert len(unet) == 16
    assert unet.keys() <= load_file(peft).keys()
    assert all(torch.equal(load_file(peft)[name], one) for name, one in unet.items())
    named = {name.removesuffix(".lora_A.weight") for name in load_file(peft) if "lora_A" in name}
    assert {
        "unet.down_blocks.0.downsamplers.0.conv",
        "unet.up_blocks.0.upsamplers.0.conv",
        "unet.up_blocks.1.upsamplers.0.conv",
        "unet.up_blocks.2.resnets.2.conv1",
        "text_encoder_2.text_model.encoder.layers.31.mlp.fc2",
    } <= named
    # Kohya's names with diffusers' blocks: read, and written on demand.
    other = convert_lora(back, tmp_path / "other.safetensors", "kohya", blocks="diffusers")
    assert "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.alpha" in load_file(other)
    assert same(load_file(convert_lora(other, tmp_path / "again.safetensors", "kohya")), tensors)
    assert same(load_file(convert_lora(other, tmp_path / "peft2.safetensors", "peft")), load_file(peft))


def test_sdxl_pipelines_read_both_text_encoders(tmp_path: Path) -> None:
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    model = save_sdxl(tmp_path / "sdxl")
    tensors = (
        pair(
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_v",
            128,
            192,
            rank=8,
            alpha=5.0,
        )
        | pair("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 64, 64, alpha=1.0)
        | pair("lora_te1_text_model_encoder_layers_2_mlp_fc2", 64, 128)
        | pair("lora_te2_text_model_encoder_layers_1_self_attn_out_proj", 128, 128, rank=2)
    )
    peft, back = there_and_back(tmp_path, tensors)
    assert same(load_file(back), tensors)
    pipe = StableDiffusionXLPipeline.from_pretrained(model.path)
    parts = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    before = {part: {n: one.clone() for n, one in getattr(pipe, part).state_dict().items()} for part in parts}
    pipe.load_lora_weights(str(peft))
    pipe.fuse_lora(components=list(parts))
    pipe.unload_lora_weights()
    changed = set()
    for part, prefix in parts.items():
        for name, now in getattr(pipe, part).state_dict().items():
            path = name.removesuffix(".weight").removeprefix("text_model.")
            key = prefix + underscored(path if part == "unet" else f"text_model.{path}")
            moved = now - before[part][name]
            if f"{key}.alpha" in tensors:
                changed.add(key)
                assert torch.allclose(moved, change(tensors, key), atol=1e-4), name
            else:
                assert not moved.any(), name
    assert len(changed) == 4


PUBLISHED = {
    "sd15/unet": "sd",
    "sdxl-base/unet": "sdxl",
    "flux-dev/transformer": "flux",
    "sd35-medium/transformer": "sd3",
}


@pytest.mark.parametrize(("folder", "kind"), PUBLISHED.items())
def test_every_layer_of_the_published_models_is_spelled_and_read_back(folder: str, kind: str) -> None:
    """Full size, on no memory: kohya's key of each linear layer and convolution, by both sides' paths."""
    import diffusers

    config = json.loads((BUNDLED / folder / "config.json").read_text())
    with torch.device("meta"):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    layers = [
        name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear | torch.nn.Conv2d)
    ]
    assert len(layers) > 280
    known = {ours for paths in TRANSFORMERS.get(kind, {}).values() for ours in paths}
    for path in layers:
        assert dotted(underscored(path)) == path
        if known:
            assert template(path)[0] in known
            continue
        original = unet_renamed(path, kind, original=True)
        assert original and is_original(original)
        assert dotted(underscored(original)) == original
        assert unet_renamed(original, kind, original=False) == path
    for pattern in TRANSFORMERS.get(kind, {}):
        original = pattern.replace("{}", "7")
        assert dotted(underscored(original)) == original


# ------------------------------------------------------------------ other kinds, numbers


def test_dora_has_the_lengths_that_diffusers_wants(tmp_path: Path, tiny_pipeline: ModelFiles) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    keys = {f"{UNET}transformer_blocks_0_attn1_to_q": 0, "lora_unet_down_blocks_0_resnets_0_conv1": 3}
    tensors: Tensors = {}
    for key, kernel in keys.items():
        tensors |= pair(key, 32, 32, kernel=kernel)
        tensors[f"{key}.dora_scale"] = torch.rand(32, 1, *[1] * 2 * bool(kernel)).half() + 1
    peft, back = there_and_back(tmp_path, tensors)
    assert same(load_file(back), tensors)
    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline.path / "unet")
    before = {name: one.clone() for name, one in unet.state_dict().items()}
    unet.load_lora_adapter(str(peft), prefix="unet", use_safetensors=True)
    unet.fuse_lora()
    unet.unload_lora()
    for key in keys:
        name = f"{dotted(key.removeprefix('lora_unet_'))}.weight"
        whole = before[name] + change(tensors, key)
        lengths = whole.flatten(1).norm(dim=1).reshape(-1, *[1] * (whole.ndim - 1))
        wanted = whole / lengths * tensors[f"{key}.dora_scale"].float().reshape(lengths.shape)
        assert torch.allclose(unet.state_dict()[name], wanted, atol=1e-3), name


def test_lycoris_kinds_stay_under_kohyas_names(tmp_path: Path) -> None:
    key = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    loha = {f"{key}.hada_w{n}_{side}": torch.randn(8, 4) for n in (1, 2) for side in "ab"}
    loha |= {f"{key}.alpha": torch.tensor(1.0)}
    save_file(loha, tmp_path / "loha.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    with pytest.raises(UserError, match=r"more than a LoRA .*hada_w1_a.*peft") as refused:
        convert_lora(tmp_path / "loha.safetensors", tmp_path / "out.safetensors", "peft")
    assert "--naming kohya" in refused.value.fix
    renamed = convert_lora(
        tmp_path / "loha.safetensors", tmp_path / "out.safetensors", "kohya", blocks="diffusers"
    )
    new = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    assert same(load_file(renamed), {name.replace(key, new): one for name, one in loha.items()})


def test_dtype_changes_weights_and_never_alpha(tmp_path: Path, sd1_lora: Tensors) -> None:
    wide = {name: one.float() for name, one in sd1_lora.items()}
    save_file(wide, tmp_path / "kohya.safetensors")
    half = load_file(
        convert_lora(tmp_path / "kohya.safetensors", tmp_path / "half.safetensors", "kohya", dtype="fp16")
    )
    assert same(half, {n: one if n.endswith(".alpha") else one.half() for n, one in wide.items()})


@pytest.mark.parametrize(
    ("alpha", "dtype"), [(1.0, torch.float16), (0.3, torch.float32), (70000.0, torch.float32)]
)
def test_alpha_from_peft_is_a_tensor_that_holds_it(tmp_path: Path, alpha: float, dtype: torch.dtype) -> None:
    path = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    weights = {
        f"{path}.lora_A.weight": torch.randn(4, 32).half(),
        f"{path}.lora_B.weight": torch.randn(32, 4).half(),
    }
    settings = {"unet.r": 4, "unet.lora_alpha": alpha}
    save_file(weights, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    found = load_file(convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya"))
    tensor = found[f"{UNET}transformer_blocks_0_attn1_to_q.alpha"]
    assert tensor.dtype == dtype
    assert float(tensor) == float(torch.tensor(alpha))
    facts = metadata(tmp_path / "b.safetensors")
    assert (facts["ss_network_dim"], facts["ss_network_module"]) == ("4", "networks.lora")


def test_rank_stabilised_alphas_become_kohyas(tmp_path: Path) -> None:
    path = "unet.mid_block.attentions.0.proj_in"
    weights = {f"{path}.lora_A.weight": torch.randn(16, 8), f"{path}.lora_B.weight": torch.randn(8, 16)}
    settings = {"unet.lora_alpha": 2, "unet.use_rslora": True}
    save_file(weights, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    found = load_file(convert_lora(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "kohya"))
    # peft: 2 / sqrt(16) = 0.5; kohya: alpha / 16
    assert float(found["lora_unet_mid_block_attentions_0_proj_in.alpha"]) / 16 == 0.5


def test_older_spellings_are_read(tmp_path: Path) -> None:
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    names = {
        f"{block}.attn1.processor.to_out_lora": "attn1_to_out_0",
        f"{block}.attn2.processor.to_k_lora": "attn2_to_k",
    }
    old = {f"{name}.{side}.weight": torch.randn(4, 4) for name in names for side in ("down", "up")}
    old |= {f"text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.{side}.weight": torch.randn(4, 4)
            for side in ("down", "up")}  # fmt: skip
    torch.save(old, tmp_path / "pytorch_lora_weights.bin")
    found = load_file(
        convert_lora(tmp_path / "pytorch_lora_weights.bin", tmp_path / "new.safetensors", "kohya")
    )
    for name, key in names.items():
        assert torch.equal(
            found[f"{UNET}transformer_blocks_0_{key}.lora_up.weight"], old[f"{name}.up.weight"]
        )
    assert f"{CLIP}0_self_attn_q_proj.lora_down.weight" in found


def test_text_encoders_get_back_the_word_that_transformers_lost(tmp_path: Path) -> None:
    """Trained with transformers 5.6: no program finds the layers without `text_model`."""
    layer = pair("lora_te_encoder_layers_0_mlp_fc1", 8, 8)
    save_file(layer, tmp_path / "lost.safetensors")
    for naming, name in (
        ("kohya", f"{CLIP}0_mlp_fc1.lora_up.weight"),
        ("peft", "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_B.weight"),
    ):
        found = load_file(
            convert_lora(tmp_path / "lost.safetensors", tmp_path / f"{naming}.safetensors", naming)
        )
        assert torch.equal(found[name], layer["lora_te_encoder_layers_0_mlp_fc1.lora_up.weight"])


def test_pickles_and_their_scattered_tensors_are_read_in_place(tmp_path: Path) -> None:
    """A transposed view in a .pt has no bytes in a row: its numbers come all the same, through a cut of its rows."""
    tensors = fused("lora_unet_double_blocks_0_img_attn_qkv", 96, 32) | pair(
        "lora_unet_single_blocks_0_linear2", 32, 160
    )
    kept = dict(tensors)
    up = "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"
    tensors[up] = tensors[up].T.contiguous().T
    torch.save(tensors, tmp_path / "kohya.pt")
    peft = convert_lora(tmp_path / "kohya.pt", tmp_path / "peft.safetensors", "peft")
    assert same(load_file(convert_lora(peft, tmp_path / "back.safetensors", "kohya")), kept)


def test_a_folder_of_pefts_brings_its_alpha(tmp_path: Path, tiny_pipeline: ModelFiles) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model

    unet = UNet2DConditionModel.from_pretrained(tiny_pipeline.path / "unet")
    model = get_peft_model(
        unet, LoraConfig(r=4, lora_alpha=6, target_modules=["to_q"], init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "folder")
    found = load_file(convert_lora(tmp_path / "folder", tmp_path / "kohya.safetensors", "kohya"))
    deltas = {
        name: one.get_delta_weight("default") for name, one in unet.named_modules() if hasattr(one, "lora_A")
    }
    assert len(deltas) == len(found) / 3 > 8
    for name, delta in deltas.items():
        assert torch.allclose(change(found, f"lora_unet_{underscored(name)}"), delta, atol=1e-5)
