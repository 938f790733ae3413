"""Whether the weights of a part are all there, and as large as its config says: by names and shapes, nothing is read.

All names are those of a Diffusers folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastsd_lib.formats.key_maps import OPTIONAL, Table
from fastsd_lib.formats.shared_maps import clip_rows
from fastsd_lib.formats.stored_weight import Weights

BOTH = ("weight", "bias")
# Of diffusers' Transformer2DModel: modules with weight and bias, and those that have no bias.
_AROUND = ("norm", "proj_in", "proj_out")
_BLOCK = ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2", "attn1.to_out.0", "attn2.to_out.0")
_BLOCK_BARE = tuple(f"{attention}.to_{letter}" for attention in ("attn1", "attn2") for letter in "qkv")
_CLIP_LAYERS = 12  # what CLIPTextConfig takes where it says nothing


def missing_tensors(part: str, found: Weights, table: Table, config: Mapping[str, Any]) -> list[str]:
    """Tensors that every part of this shape has, but not this one.

    What models may lack (position ids, a temperature, attention in the middle) is not asked for. An empty `config`: as
    far as the names themselves tell.
    """
    if part.startswith("text_encoder"):
        rows = clip_rows(
            {"num_hidden_layers": _CLIP_LAYERS} | dict(config), projects="text_projection" in table
        )
        needed = [name for names in rows.rows.values() for name in names]
    else:
        needed = [name for module in table for name in _needed(part, module, found, config)]
    return [name for name in needed if name not in found]


def _needed(part: str, module: str, found: Weights, config: Mapping[str, Any]) -> Iterator[str]:
    """The tensors of one module of a U-Net or a VAE; none where a model may do without it and this one does."""
    whole = part == "unet" and ".attentions." in module
    if any(word in module for word in OPTIONAL) and not _asked_for(module, found):
        return
    if whole:
        yield from _attention(module, found, _depth(module, config))
    else:
        yield from (f"{module}.{kind}" for kind in BOTH)


def _asked_for(module: str, found: Weights) -> bool:
    """Whether something of an optional module is there, or a residual block cannot do without its shortcut."""
    if module.endswith(".conv_shortcut"):
        first = found.get(f"{module.removesuffix('conv_shortcut')}conv1.weight")
        if first and len(first.shape) == 4 and first.shape[0] != first.shape[1]:
            return True
    elif ".mid_block.attentions." in f".{module}":
        module = module[: module.index("attentions.0") + len("attentions.0")]  # all of it or none
    return any(name.startswith(f"{module}.") for name in found)


def _attention(module: str, found: Weights, depth: int) -> Iterator[str]:
    """A Transformer2DModel of `depth` blocks (0: as many as there are)."""
    yield from (f"{module}.{one}.{kind}" for one in _AROUND for kind in BOTH)
    start = f"{module}.transformer_blocks."
    numbers = [name[len(start) :].partition(".")[0] for name in found if name.startswith(start)]
    depth = depth or max((int(one) + 1 for one in numbers if one.isdecimal()), default=1)
    for number in range(depth):
        yield from (f"{start}{number}.{one}.{kind}" for one in _BLOCK for kind in BOTH)
        yield from (f"{start}{number}.{one}.weight" for one in _BLOCK_BARE)


def _depth(module: str, config: Mapping[str, Any]) -> int:
    """How many blocks the config gives this attention; 0 where it does not say it in one number per level."""
    depths = config.get("transformer_layers_per_block", 1 if config else 0)
    if isinstance(depths, int):
        return depths
    if not isinstance(depths, list) or config.get("reverse_transformer_layers_per_block"):
        return 0
    side, _, rest = module.partition(".")
    level = rest.partition(".")[0]
    number = -1 if side == "mid_block" else int(level) if side == "down_blocks" else -1 - int(level)
    depth = depths[number] if -len(depths) <= number < len(depths) else 0
    return depth if isinstance(depth, int) else 0


# ------------------------------------------------------------------ shapes


def wrong_shape(
    part: str, found: Weights, config: Mapping[str, Any]
) -> tuple[str, list[int], list[int]] | None:
    """The first weight of another size than the config says: its name, its first sides, and those of the config."""
    sizes = _text_sizes(config) if part.startswith("text_encoder") else _body_sizes(part, config)
    for name, wanted in sizes.items():
        sides = list(found[name].shape[:2]) if name in found else []
        if any(side != one for side, one in zip(sides, wanted, strict=False) if one is not None):
            return (
                name,
                sides,
                [side if one is None else one for side, one in zip(sides, wanted, strict=False)],
            )
    return None


def _body_sizes(part: str, config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both ends and the width of each level; None: whatever it is."""
    widths = config["block_out_channels"]
    if part == "vae":
        side, latents = "encoder.", config.get("latent_channels", 4)
        sizes = {
            "encoder.conv_in.weight": (widths[0], config.get("in_channels", 3)),
            "decoder.conv_in.weight": (widths[-1], latents),
            "decoder.conv_out.weight": (config.get("out_channels", 3), widths[0]),
        }
    else:
        side, reads = "", config.get("cross_attention_dim")
        sizes = {
            "conv_in.weight": (widths[0], config.get("in_channels", 4)),
            "conv_out.weight": (config.get("out_channels", 4), widths[0]),
        }
        if isinstance(reads, int):
            for level, width in enumerate(widths):
                block = f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn2.to_k.weight"
                sizes[block] = (width, reads)
    return sizes | {
        f"{side}down_blocks.{level}.resnets.0.conv2.weight": (width, width)
        for level, width in enumerate(widths)
    }


def _text_sizes(config: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    width = config.get("hidden_size")
    return {
        "text_model.embeddings.token_embedding.weight": (config.get("vocab_size"), width),
        "text_model.embeddings.position_embedding.weight": (config.get("max_position_embeddings"), width),
        "text_model.encoder.layers.0.mlp.fc1.weight": (config.get("intermediate_size"), width),
        "text_projection.weight": (config.get("projection_dim"), width),
    }
