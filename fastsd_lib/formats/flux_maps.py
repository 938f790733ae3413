"""Flux.1: the tensors of Black Forest Labs' file (left) and of diffusers' FluxTransformer2DModel (right).

Source of the left names: model.py and layers.py of https://github.com/black-forest-labs/flux. Several names on the right:
their rows stand one after another in the tensor on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsd_lib.formats.row_tables import RowTable, both_kinds, linears, singles

ENDS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",  # shift and scale here, scale and shift in diffusers
}
GUIDANCE = {  # dev alone: schnell was distilled without a scale
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
DOUBLE_BLOCK = {
    "img_mod.lin": "norm1.linear",
    "img_attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "img_attn.proj": "attn.to_out.0",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mod.lin": "norm1_context.linear",
    "txt_attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "txt_attn.proj": "attn.to_add_out",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
DOUBLE_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
}
SINGLE_BLOCK = {
    "modulation.lin": "norm.linear",
    "linear1": "attn.to_q attn.to_k attn.to_v proj_mlp",
    "linear2": "proj_out",
}
SINGLE_NORMS = {"norm.query_norm.scale": "attn.norm_q.weight", "norm.key_norm.scale": "attn.norm_k.weight"}


def flux_table(config: Mapping[str, Any]) -> RowTable:
    """The table of the transformer with this config (transformer/config.json)."""
    rows = linears("", "", ENDS) | (linears("", "", GUIDANCE) if config["guidance_embeds"] else {})
    for number in range(config["num_layers"]):
        theirs, ours = f"double_blocks.{number}.", f"transformer_blocks.{number}."
        rows |= linears(theirs, ours, DOUBLE_BLOCK) | singles(theirs, ours, DOUBLE_NORMS)
    for number in range(config["num_single_layers"]):
        theirs, ours = f"single_blocks.{number}.", f"single_transformer_blocks.{number}."
        rows |= linears(theirs, ours, SINGLE_BLOCK) | singles(theirs, ours, SINGLE_NORMS)
    return RowTable(rows, both_kinds(["final_layer.adaLN_modulation.1"]))
