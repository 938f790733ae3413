"""Configs of a U-Net, a VAE and text encoders from the shapes of their tensors, the names' prefixes cut off.

Heads are taken to have 64 channels, as in SD 2.x, SDXL and their text encoders. What no shape tells is the caller's: the
scale of the latents, the size trained for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import Tensor

HEAD_WIDTH = 64  # of SD 2.x, SDXL and their text encoders


@dataclass
class _Level:
    width: int = 0
    layers: int = 0
    depth: int = 0  # transformer blocks of each attention, 0 = no attention


def unet_config(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Any]:
    """UNet2DConditionModel's config; `input_blocks` is one row of residual blocks and downsamplers."""
    levels = [_Level()]
    row = 1
    while any(name in tensors for name in (_res(row), _down(row))):
        if _down(row) in tensors:
            levels.append(_Level())
        else:
            levels[-1].width = tensors[_res(row)].shape[0]
            levels[-1].layers += 1
            levels[-1].depth = _depth(tensors, f"input_blocks.{row}.1.")
        row += 1
    middle = _depth(tensors, "middle_block.1.")
    reads = next((t.shape[1] for name, t in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
    layers = {level.layers for level in levels}
    if len(layers) != 1 or not reads or any(level.width % HEAD_WIDTH for level in levels):
        raise UserError(
            f"The shapes of {origin} are not those of a known model.",
            fix="name a Diffusers folder of the same kind to take its configs from.",
        )
    config: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": [level.width for level in levels],
        "layers_per_block": layers.pop(),
        "down_block_types": ["CrossAttnDownBlock2D" if level.depth else "DownBlock2D" for level in levels],
        "up_block_types": [
            "CrossAttnUpBlock2D" if level.depth else "UpBlock2D" for level in reversed(levels)
        ],
        "transformer_layers_per_block": [
            *(level.depth or 1 for level in levels[:-1]),
            levels[-1].depth or middle,
        ],
        "cross_attention_dim": reads,
        "attention_head_dim": [level.width // HEAD_WIDTH for level in levels],
        "use_linear_projection": True,
    }
    ids = tensors.get("label_emb.0.0.weight")
    if ids:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": ids.shape[1],
        }
    return config


def text_config(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Any]:
    """CLIPTextConfig of OpenAI's CLIP (names of transformers) or of an OpenCLIP."""
    open_clip = "token_embedding.weight" in tensors
    words = tensors.get(
        "token_embedding.weight" if open_clip else "text_model.embeddings.token_embedding.weight"
    )
    layer = re.compile(r"(?:transformer\.resblocks|text_model\.encoder\.layers)\.(\d+)\.")
    numbers = {int(found[1]) for name in tensors if (found := layer.match(name))}
    inner = next(
        (t for name, t in tensors.items() if name.endswith(("mlp.c_fc.weight", "mlp.fc1.weight"))), None
    )
    if not words or not numbers or not inner or words.shape[1] % HEAD_WIDTH:
        raise UserError(
            f"The shapes of the text encoder in {origin} are not those of a known model.",
            fix="name a Diffusers folder of the same kind to take its configs from.",
        )
    projection = tensors.get("text_projection")
    vocabulary, width = words.shape
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection and open_clip else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": inner.shape[0],
        "num_hidden_layers": max(numbers) + 1,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": 77,
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "projection_dim": projection.shape[1] if projection and open_clip else width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0 if open_clip else vocabulary - 1,
    }


def vae_config(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Any]:
    """AutoencoderKL's, with latent-diffusion's or diffusers' names, but for the scale of the latents.

    UserError for what is no such VAE.
    """
    ours = any(name.startswith("encoder.down_blocks.") for name in tensors)
    pattern = (
        "encoder.down_blocks.{}.resnets.{}.conv2.weight" if ours else "encoder.down.{}.block.{}.conv2.weight"
    )
    widths: list[int] = []
    while pattern.format(len(widths), 0) in tensors:
        widths.append(tensors[pattern.format(len(widths), 0)].shape[0])
    layers = 0
    while pattern.format(0, layers) in tensors:
        layers += 1
    first, last = tensors.get("encoder.conv_in.weight"), tensors.get("decoder.conv_in.weight")
    if not widths or not first or not last:
        raise UserError(
            f"{origin} is no VAE known here: it lacks an encoder or a decoder of the usual names.",
            fix="take a VAE of the model's family (.safetensors, or a Diffusers folder).",
        )
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": first.shape[1],
        "out_channels": first.shape[1],
        "latent_channels": last.shape[1],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "use_quant_conv": "quant_conv.weight" in tensors,
        "use_post_quant_conv": "post_quant_conv.weight" in tensors,
    }


def _res(row: int) -> str:
    return f"input_blocks.{row}.0.out_layers.3.weight"


def _down(row: int) -> str:
    return f"input_blocks.{row}.0.op.weight"


def _depth(tensors: Mapping[str, Tensor], attention: str) -> int:
    blocks = re.compile(re.escape(attention) + r"transformer_blocks\.(\d+)\.")
    return max((int(found[1]) + 1 for name in tensors if (found := blocks.match(name))), default=0)
