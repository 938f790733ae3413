"""The parts that SD3 and Flux share: a VAE of 16 channels, OpenAI's and OpenCLIP's text encoders, and T5.

Text encoders keep the names of transformers in single files; the VAE has latent-diffusion's there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsd_lib.formats.key_maps import open_clip_table, vae_table
from fastsd_lib.formats.row_tables import RowTable, linears, singles

T5_BLOCK = (
    "layer.0.SelfAttention.q",
    "layer.0.SelfAttention.k",
    "layer.0.SelfAttention.v",
    "layer.0.SelfAttention.o",
    "layer.0.layer_norm",
    "layer.1.layer_norm",
    "layer.1.DenseReluDense.wo",
)
T5_GATED = ("layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1")
T5_PLAIN = ("layer.1.DenseReluDense.wi",)


def vae_rows(config: Mapping[str, Any]) -> RowTable:
    """AutoencoderKL: every tensor that a VAE with this config has."""
    modules = {theirs: ours for ours, theirs in vae_table(config).items() if _is_in_vae(ours, config)}
    return RowTable(linears("", "", modules))


def _is_in_vae(module: str, config: Mapping[str, Any]) -> bool:
    if module in ("quant_conv", "post_quant_conv"):
        return config.get(f"use_{module}", True)
    if ".mid_block.attentions." in module:
        return config.get("mid_block_add_attention", True)
    side, _, rest = module.partition("_blocks.")
    if not module.endswith("conv_shortcut"):
        return True
    if ".mid_block." in module or ".resnets.0." not in module:
        return False  # as many channels come out as go in
    widths = config["block_out_channels"]
    widths = list(widths) if side == "encoder.down" else list(reversed(widths))
    level = int(rest.partition(".")[0])
    return level > 0 and widths[level] != widths[level - 1]


def clip_rows(config: Mapping[str, Any], projects: bool) -> RowTable:
    """CLIPTextModel, or with a projection CLIPTextModelWithProjection; names begin with `text_model.`."""
    modules = list(open_clip_table(config["num_hidden_layers"], projects))
    bare = [name for name in modules if "embedding" in name or name == "text_projection"]  # have no bias
    rows = singles("", "", {f"{name}.weight": f"{name}.weight" for name in bare})
    return RowTable(rows | linears("", "", {name: name for name in modules if name not in bare}))


def t5_rows(config: Mapping[str, Any]) -> RowTable:
    """T5EncoderModel; no layer has a bias, and all blocks share the positions of the first."""
    inner = T5_GATED if "gated" in config.get("feed_forward_proj", "") else T5_PLAIN
    names = [
        "shared.weight",
        "encoder.final_layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    ]
    for number in range(config["num_layers"]):
        names += [f"encoder.block.{number}.{module}.weight" for module in (*T5_BLOCK, *inner)]
    return RowTable(singles("", "", {name: name for name in names}))
