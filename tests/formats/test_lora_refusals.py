"""LoRA files that are not converted: one line each, with the tensor's name, and nothing is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lora_tensors import UNET, Tensors, pair
from safetensors.torch import save_file

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.lora_convert import convert_lora

KEY = f"{UNET}transformer_blocks_0_attn1_to_q"
GOOD = pair(KEY, 32, 32)
BAD: dict[str, tuple[Tensors, str]] = {
    "down without up": (
        {k: v for k, v in GOOD.items() if "lora_up" not in k},
        r"half a LoRA: .*to_q\.lora_down\.weight",
    ),
    "up without down": (
        {k: v for k, v in GOOD.items() if "lora_down" not in k},
        r"half a LoRA: .*to_q\.lora_up\.weight",
    ),
    "alpha alone": (
        GOOD | {"lora_unet_conv_in.alpha": torch.tensor(1.0)},
        r"lora_unet_conv_in\.alpha stands alone",
    ),
    "ranks": (
        GOOD | {f"{KEY}.lora_up.weight": torch.zeros(32, 5)},
        r"to_q\.lora_down\.weight has rank 4, .*rank 5",
    ),
    "one is flat": (GOOD | {f"{KEY}.lora_up.weight": torch.zeros(32)}, r"no pair of matrices"),
    "unknown layer": (
        GOOD | pair("lora_unet_warp_core_0_to_q", 4, 4),
        r"lora_unet_warp_core_0_to_q\.\w+.* no known",
    ),
    "unknown block": (
        pair("lora_unet_input_blocks_47_1_proj_in", 4, 4),
        r"does not have: lora_unet_input_blocks_47",
    ),
    "unknown tensor": (GOOD | {f"{KEY}.surprise": torch.zeros(2)}, r"to_q\.surprise is no tensor of a LoRA"),
    "alpha is many": (GOOD | {f"{KEY}.alpha": torch.zeros(3)}, r"no number for alpha in .*to_q\.alpha"),
    "alpha is NaN": (GOOD | {f"{KEY}.alpha": torch.tensor(float("nan"))}, r"to_q\.alpha is nan"),
    "a checkpoint": ({"first_stage_model.encoder.conv_in.weight": torch.zeros(2)}, r"no LoRA that is known"),
}


@pytest.mark.parametrize("naming", ["peft", "kohya"])
@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_by_the_tensor(tmp_path: Path, case: str, naming: str) -> None:
    tensors, line = BAD[case]
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=line) as refused:
        convert_lora(tmp_path / "bad.safetensors", tmp_path / "out.safetensors", naming)
    assert refused.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.safetensors"]


def test_one_layer_under_two_names_is_refused(tmp_path: Path) -> None:
    twin = pair(KEY.replace("down_blocks_0_attentions_0", "input_blocks_1_1"), 32, 32)
    save_file(GOOD | twin | pair("lora_unet_input_blocks_10_0_in_layers_2", 4, 4), tmp_path / "a.safetensors")
    for naming in ("peft", "kohya"):
        with pytest.raises(UserError, match=r"twice|two names"):
            convert_lora(tmp_path / "a.safetensors", tmp_path / "out.safetensors", naming)


def test_one_layer_under_two_prefixes_is_refused(tmp_path: Path) -> None:
    key = "transformer_blocks_0_attn_to_q"
    twins = pair(f"lora_unet_{key}", 3072, 3072) | pair(f"lora_transformer_{key}", 3072, 3072)
    save_file(twins, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"holds one layer twice: lora_transformer_.* and lora_unet_"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "out.safetensors", "peft")


def test_scales_that_one_layer_cannot_have_are_refused(tmp_path: Path) -> None:
    tensors = {
        f"transformer.transformer_blocks.0.attn.to_{letter}.lora_{side}.weight": torch.randn(shape)
        for letter in "qk"
        for side, shape in (("A", (4, 3072)), ("B", (3072, 4)))
    }
    settings = {
        "transformer.lora_alpha": 4,
        "transformer.alpha_pattern": {"transformer_blocks.0.attn.to_k": 8},
    }
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(UserError, match=r"to_q by 1 and .*to_k by 2") as refused:
        convert_lora(tmp_path / "a.safetensors", tmp_path / "out.safetensors", "kohya")
    assert "peft" in refused.value.fix


def test_a_file_of_two_possible_models_is_not_guessed(tmp_path: Path) -> None:
    path = "transformer.transformer_blocks.0.attn.to_q"
    weights = {f"{path}.lora_A.weight": torch.zeros(4, 999), f"{path}.lora_B.weight": torch.zeros(999, 4)}
    save_file(weights, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="Flux or for SD 3"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "out.safetensors", "kohya")


def test_target_and_naming_must_be_known(tmp_path: Path) -> None:
    save_file(GOOD, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"does not end in \.safetensors"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "out.ckpt", "peft")
    with pytest.raises(UserError, match="no names of the kind 'civitai'"):
        convert_lora(tmp_path / "a.safetensors", tmp_path / "out.safetensors", "civitai")  # type: ignore[arg-type]
