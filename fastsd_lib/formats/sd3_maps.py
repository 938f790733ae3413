"""Stable Diffusion 3 and 3.5: the tensors of Stability's file (left) and of diffusers' SD3Transformer2DModel (right).

Source of the left names: mmdit.py and mmditx.py of https://github.com/Stability-AI/sd3.5. Several names on the right: their
rows stand one after another in the tensor on the left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastsd_lib.formats.row_tables import RowTable, both_kinds, linears, singles

ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",  # shift and scale here, scale and shift in diffusers
}
POSITIONS = {"pos_embed": "pos_embed.pos_embed"}
BLOCK = {
    "x_block.adaLN_modulation.1": "norm1.linear",
    "x_block.attn.qkv": "attn.to_q attn.to_k attn.to_v",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
    "context_block.attn.qkv": "attn.add_q_proj attn.add_k_proj attn.add_v_proj",
}
CONTEXT_GOES_ON = {  # the last block has none of these: nothing reads the text after it
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
}
NORMS = {  # 3.5
    "x_block.attn.ln_q.weight": "attn.norm_q.weight",
    "x_block.attn.ln_k.weight": "attn.norm_k.weight",
    "context_block.attn.ln_q.weight": "attn.norm_added_q.weight",
    "context_block.attn.ln_k.weight": "attn.norm_added_k.weight",
}
SECOND_ATTENTION = {  # the first blocks of 3.5 medium
    "x_block.attn2.qkv": "attn2.to_q attn2.to_k attn2.to_v",
    "x_block.attn2.proj": "attn2.to_out.0",
}
SECOND_NORMS = {
    "x_block.attn2.ln_q.weight": "attn2.norm_q.weight",
    "x_block.attn2.ln_k.weight": "attn2.norm_k.weight",
}


def sd3_table(config: Mapping[str, Any]) -> RowTable:
    """The table of the transformer with this config (transformer/config.json)."""
    rows = singles("", "", POSITIONS) | linears("", "", ENDS)
    blocks = config["num_layers"]
    for number in range(blocks):
        theirs, ours = f"joint_blocks.{number}.", f"transformer_blocks.{number}."
        rows |= linears(theirs, ours, BLOCK)
        if number < blocks - 1:
            rows |= linears(theirs, ours, CONTEXT_GOES_ON)
        if config.get("qk_norm"):
            rows |= singles(theirs, ours, NORMS)
        if number in (config.get("dual_attention_layers") or ()):
            rows |= linears(theirs, ours, SECOND_ATTENTION)
            rows |= singles(theirs, ours, SECOND_NORMS) if config.get("qk_norm") else {}
    # The last block's text is scaled and shifted once more, in the order of the final layer.
    swapped = [
        "final_layer.adaLN_modulation.1",
        f"joint_blocks.{blocks - 1}.context_block.adaLN_modulation.1",
    ]
    return RowTable(rows, both_kinds(swapped))
