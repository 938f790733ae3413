"""AutoencoderKL's config from the shapes of its tensors, whether they are named by latent-diffusion or by diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import Tensor


def vae_config(tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Any]:
    """The config but for the scale of the latents, which no tensor tells. UserError for what is no such VAE."""
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
