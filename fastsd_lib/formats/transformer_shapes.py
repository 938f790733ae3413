"""What the shapes of SD3's and Flux' tensors tell of their configs, a function for each part.

Entries that no shape tells are not among them: they are the family's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import Tensor
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.shapes import vae_config

Tensors = Mapping[str, Tensor]  # names without the prefix of their part
HEAD_WIDTH = 64  # of SD3 and both CLIPs
MOST_BLOCKS = 1000  # far beyond any model


class Shapes:
    """Shapes by name; UserError for one that is missing or of another rank, which only other models are."""

    def __init__(self, tensors: Tensors, origin: Path):
        self.tensors, self.origin = tensors, origin

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __call__(self, name: str, rank: int = 2) -> tuple[int, ...]:
        found = self.tensors.get(name)
        if found is None or len(found.shape) != rank or not all(found.shape):
            what = f"{name} of shape {list(found.shape)}" if found else f"no {name}"
            raise UserError(
                f"{self.origin} holds {what}, where every known model of its kind has one of {rank} sides.",
                fix="take the full file of the model, or its Diffusers folder.",
            )
        return found.shape

    def count(self, stem: str) -> int:
        """How many numbered blocks there are: 1 + the highest number after `stem`."""
        numbers = {name[len(stem) :].partition(".")[0] for name in self.tensors if name.startswith(stem)}
        known = [
            int(number) for number in numbers if number.isascii() and number.isdigit() and len(number) < 5
        ]
        if not known or max(known) >= MOST_BLOCKS:
            raise UserError(
                f"{self.origin} holds no numbered blocks {escaped(stem)}0 and so on.",
                fix="take the full file of the model, or its Diffusers folder.",
            )
        return max(known) + 1


def flux_sizes(shapes: Shapes) -> dict[str, Any]:
    width, channels = shapes("img_in.weight")
    head = shapes("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0]
    if head != 128:  # its turning angles are shared out among rows, columns and a third axis by no rule
        raise UserError(
            f"The attention heads of {shapes.origin} have {head} channels, those of Flux.1 128.",
            fix="take its Diffusers folder, or a file that carries its own configs.",
        )
    out = shapes("final_layer.linear.weight")[0]
    return {
        "_class_name": "FluxTransformer2DModel",
        "in_channels": channels,
        "out_channels": None if out == channels else out,
        "num_layers": shapes.count("double_blocks."),
        "num_single_layers": shapes.count("single_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes("txt_in.weight")[1],
        "pooled_projection_dim": shapes("vector_in.in_layer.weight")[1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def sd3_sizes(shapes: Shapes) -> dict[str, Any]:
    width, channels, patch, _ = shapes("x_embedder.proj.weight", 4)
    blocks = shapes.count("joint_blocks.")
    second = [n for n in range(blocks) if f"joint_blocks.{n}.x_block.attn2.qkv.weight" in shapes]
    return {
        "_class_name": "SD3Transformer2DModel",
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes("final_layer.linear.weight")[0] // patch**2,
        "num_layers": blocks,
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": width // HEAD_WIDTH,
        "joint_attention_dim": shapes("context_embedder.weight")[1],
        "caption_projection_dim": shapes("context_embedder.weight")[0],
        "pooled_projection_dim": shapes("y_embedder.mlp.0.weight")[1],
        "pos_embed_max_size": isqrt(shapes("pos_embed", 3)[1]),
        "dual_attention_layers": second,
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def clip_sizes(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes("text_model.embeddings.token_embedding.weight")
    projects = "text_projection.weight" in shapes
    return {
        "vocab_size": words,
        "hidden_size": width,
        "max_position_embeddings": shapes("text_model.embeddings.position_embedding.weight")[0],
        "num_hidden_layers": shapes.count("text_model.encoder.layers."),
        "num_attention_heads": width // HEAD_WIDTH,
        "intermediate_size": shapes("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "projection_dim": shapes("text_projection.weight")[0] if projects else width,
    }


def t5_sizes(shapes: Shapes) -> dict[str, Any]:
    words, width = shapes("shared.weight")
    attention = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = shapes(f"{attention}relative_attention_bias.weight")
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight" in shapes
    inner = shapes(f"encoder.block.0.layer.1.DenseReluDense.wi{'_0' if gated else ''}.weight")
    known = {} if gated else {"feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False}
    return known | {
        "vocab_size": words,
        "d_model": width,
        "d_kv": shapes(f"{attention}q.weight")[0] // heads,
        "d_ff": inner[0],
        "num_heads": heads,
        "num_layers": shapes.count("encoder.block."),
        "relative_attention_num_buckets": buckets,
    }


def vae_sizes(tensors: Tensors, origin: Path) -> dict[str, Any]:
    for end in ("encoder.conv_in.weight", "decoder.conv_in.weight"):
        Shapes(tensors, origin)(end, rank=4)
    return vae_config({name: one for name, one in tensors.items() if one.shape}, origin)
