"""Names and shapes of ControlNets and T2I-Adapters: their inventors' and diffusers'.

A ControlNet is the first half of a U-Net with layers of its own beside it, so its table is the U-Net's and a few lines
more. Sources: cldm.py of lllyasviel/ControlNet; adapter.py of TencentARC/T2I-Adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import Tensor
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.key_maps import Table, unet_table

Tensors = Mapping[str, Tensor]
HINT = "controlnet_cond_embedding"
HEADS_SD1 = 8  # at every level; SD 2.x and SDXL have heads of 64 channels
HEAD_WIDTH = 64
MOST_LEVELS = 12  # of a U-Net, and of layers at each
# How many sides the shape of a layer has that a config is read from.
_SIDES = {
    "attn2.to_k.weight": (2,), "proj_in.weight": (2, 4), "out_layers.3.weight": (4,), "conv2.weight": (4,),
    "input_blocks.0.0.weight": (4,), "conv_in.weight": (4,), "label_emb.0.0.weight": (2,), "linear_1.weight": (2,),
}  # fmt: skip
_NOT_THERE = ("up_blocks.", "conv_norm_out", "conv_out")  # what a U-Net has and a ControlNet has not


def control_table(config: Mapping[str, Any], hints: int) -> Table:
    """Diffusers' module -> the inventors'. `hints`: convolutions of the control picture, the first and last included.

    `config`: of a U-Net or a ControlNet.
    """
    layout = {"up_block_types": (), **config}
    table = {ours: theirs for ours, theirs in unet_table(layout).items() if not ours.startswith(_NOT_THERE)}
    rows = [
        0,
        *(int(theirs.split(".")[1]) for theirs in table.values() if theirs.startswith("input_blocks.")),
    ]
    table |= {f"controlnet_down_blocks.{row}": f"zero_convs.{row}.0" for row in range(max(rows) + 1)}
    table |= {"controlnet_mid_block": "middle_block_out.0"}
    names = ["conv_in", *(f"blocks.{number}" for number in range(hints - 2)), "conv_out"]
    return table | {f"{HINT}.{name}": f"input_hint_block.{2 * row}" for row, name in enumerate(names)}


def count_hints(names: Iterable[str]) -> int:
    """How many convolutions read the control picture, under either naming."""
    own = re.compile(rf"(?:input_hint_block|{HINT}(?:\.blocks)?)\.(\w+)\.weight$")
    return sum(1 for name in names if own.match(name))


def control_config(tensors: Tensors, original: bool, origin: Path) -> dict[str, Any]:
    """ControlNetModel's config from the shapes, for names without a prefix; UserError where they do not say it."""
    _check_shapes(tensors, origin)
    levels = _original_levels(tensors) if original else _levels(tensors)
    reads = next((one.shape[1] for name, one in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
    projection = next((one for name, one in tensors.items() if name.endswith("proj_in.weight")), None)
    first = tensors.get("input_blocks.0.0.weight" if original else "conv_in.weight")
    layers = {len(level) for level in levels}
    if len(layers) != 1 or 0 in layers or not reads or projection is None or first is None:
        raise _unknown(origin)
    widths = [level[0][0] for level in levels]
    depths = [level[0][1] for level in levels]
    middle = _depth(tensors, "middle_block.1." if original else "mid_block.attentions.0.")
    linear = len(projection.shape) == 2
    config: dict[str, Any] = {
        "_class_name": "ControlNetModel",
        "block_out_channels": widths,
        "layers_per_block": layers.pop(),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "transformer_layers_per_block": [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle],
        "cross_attention_dim": reads,
        "attention_head_dim": [width // HEAD_WIDTH for width in widths] if linear else HEADS_SD1,
        "use_linear_projection": linear,
        "in_channels": first.shape[1],
    }
    ids = tensors.get("label_emb.0.0.weight" if original else "add_embedding.linear_1.weight")
    if ids:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": ids.shape[1],
        }
    return config | _hint_config(tensors, original, origin)


def layout_is_sound(config: Mapping[str, Any]) -> bool:
    """Whether the part of a config that names follow from is what diffusers would have written."""
    widths, kinds, layers = (
        config.get(key) for key in ("block_out_channels", "down_block_types", "layers_per_block")
    )
    return (
        isinstance(widths, list)
        and isinstance(kinds, list)
        and len(widths) == len(kinds) <= MOST_LEVELS
        and all(isinstance(kind, str) for kind in kinds)
        and type(layers) is int
        and 1 <= layers <= MOST_LEVELS
    )


def _check_shapes(tensors: Tensors, origin: Path) -> None:
    """UserError naming a tensor that has not the dimensions that its layer must have."""
    for name, one in tensors.items():
        found = next((sides for end, sides in _SIDES.items() if name.endswith(end)), None)
        if HINT in name or name.startswith("input_hint_block."):
            found = (4,) if name.endswith(".weight") else None
        if found and (len(one.shape) not in found or 0 in one.shape):
            raise UserError(
                f"{origin} is a damaged ControlNet: {escaped(name)[:100]} has the shape {list(one.shape)}.",
                fix="download it again.",
            )


def _hint_config(tensors: Tensors, original: bool, origin: Path) -> dict[str, Any]:
    last = count_hints(tensors) - 1
    names = [f"input_hint_block.{2 * row}" for row in range(last + 1)]
    if not original:
        inner = [f"blocks.{number}" for number in range(last - 1)]
        names = [f"{HINT}.{name}" for name in ("conv_in", *inner, "conv_out")]
    if missing := next((name for name in names if f"{name}.weight" not in tensors), "" if last > 0 else HINT):
        raise UserError(f"{origin} is a damaged ControlNet: {missing} is missing.", fix="download it again.")
    widths = [tensors[f"{name}.weight"].shape[1] for name in names]
    return {
        "conditioning_channels": widths[0],
        # Every second convolution, and the last one, goes on at the width before it.
        "conditioning_embedding_out_channels": [*widths[1:-1:2], widths[-1]],
    }


def _unknown(origin: Path) -> UserError:
    return UserError(
        f"The shapes of {origin} are not those of a known ControlNet.",
        fix="put the config.json of its Diffusers folder beside it, named as the file is.",
    )


def _original_levels(tensors: Tensors) -> list[list[tuple[int, int]]]:
    """(width, transformer blocks) of each residual block, level by level."""
    levels: list[list[tuple[int, int]]] = [[]]
    row = 1
    while True:
        one = tensors.get(f"input_blocks.{row}.0.out_layers.3.weight")
        if one:
            levels[-1].append((one.shape[0], _depth(tensors, f"input_blocks.{row}.1.")))
        elif f"input_blocks.{row}.0.op.weight" in tensors:
            levels.append([])
        else:
            return levels
        row += 1


def _levels(tensors: Tensors) -> list[list[tuple[int, int]]]:
    levels: list[list[tuple[int, int]]] = []
    while f"down_blocks.{len(levels)}.resnets.0.conv2.weight" in tensors:
        block, rows = f"down_blocks.{len(levels)}.", []
        while one := tensors.get(f"{block}resnets.{len(rows)}.conv2.weight"):
            rows.append((one.shape[0], _depth(tensors, f"{block}attentions.{len(rows)}.")))
        levels.append(rows)
    return levels or [[]]


def _depth(tensors: Tensors, attention: str) -> int:
    blocks = re.compile(re.escape(attention) + r"transformer_blocks\.(\d+)\.")
    return max((int(found[1]) + 1 for name in tensors if (found := blocks.match(name))), default=0)


# ------------------------------------------------------------------ T2I-Adapter

# The inventors count all residual blocks in a row, two at each level; the light one has levels of its own.
_FULL = re.compile(r"body\.(\d+)\.(in_conv|block1|block2)\.")
_LIGHT = re.compile(r"body\.(\d+)\.body\.(\d+)\.")
_OURS = re.compile(r"adapter\.body\.(\d+)\.(?:resnets\.(\d+)\.)?")
_ADAPTER = re.compile(
    r"adapter\.(?:conv_in|body\.\d+\.(?:in_conv|out_conv|resnets\.\d+\.block[12]))\.(?:weight|bias)$"
)
_PER_LEVEL = 2


def adapter_table(names: Iterable[str], origin: Path) -> dict[str, str]:
    """Tensor -> its name on the other side: the inventors' become diffusers', and the other way round."""
    names = list(names)
    light = any(name.endswith(".out_conv.weight") for name in names)
    table = {name: _adapter_name(name, light) for name in names}
    for name, other in table.items():
        if not (_ADAPTER.match(name) or _ADAPTER.match(other)):
            raise UserError(
                f"{origin} is no T2I-Adapter known here: it holds {escaped(name)[:100]}.",
                fix="take a T2I-Adapter of TencentARC's for SD 1.x or SDXL.",
            )
    return table


def _adapter_name(name: str, light: bool) -> str:
    ours = _OURS.match(name)
    if ours and light:
        return f"body.{ours[1]}." + (f"body.{ours[2]}." if ours[2] else "") + name[ours.end() :]
    if ours:
        return f"body.{_PER_LEVEL * int(ours[1]) + int(ours[2] or 0)}.{name[ours.end() :]}"
    if name.startswith("adapter."):
        return name.removeprefix("adapter.")
    if found := _LIGHT.match(name):
        return f"adapter.body.{found[1]}.resnets.{found[2]}.{name[found.end() :]}"
    found = _FULL.match(name)
    if found and not light:
        level, number = divmod(int(found[1]), _PER_LEVEL)
        inner = name[found.start(2) :]
        return f"adapter.body.{level}." + (inner if found[2] == "in_conv" else f"resnets.{number}.{inner}")
    return f"adapter.{name}"


def adapter_config(tensors: Tensors, origin: Path) -> dict[str, Any]:
    """T2IAdapter's config from the shapes, under diffusers' names."""
    light = "adapter.body.0.out_conv.weight" in tensors
    first = tensors.get("adapter.body.0.in_conv.weight" if light else "adapter.conv_in.weight")
    if odd := next(
        (name for name, one in tensors.items() if name.endswith(".weight") and len(one.shape) != 4), ""
    ):
        raise UserError(
            f"{origin} is a damaged T2I-Adapter: {escaped(odd)[:100]} has the shape {list(tensors[odd].shape)}.",
            fix="download it again.",
        )
    widths, blocks = [], 0
    while one := tensors.get(f"adapter.body.{len(widths)}.resnets.0.block2.weight"):
        end = tensors.get(f"adapter.body.{len(widths)}.out_conv.weight")
        widths.append((end or one).shape[0])
    while f"adapter.body.0.resnets.{blocks}.block1.weight" in tensors:
        blocks += 1
    # The control picture's pixels are folded into channels: 8 x 8 of them, in SDXL's 16 x 16; it is grey or coloured.
    pixels = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}.get(first.shape[1] if first else 0)
    if pixels is None or not widths or not blocks:
        raise UserError(
            f"The shapes of {origin} are not those of a known T2I-Adapter.",
            fix="take a T2I-Adapter of TencentARC's for SD 1.x or SDXL.",
        )
    if light:
        widths.pop()  # the last level keeps the width before it, and is not counted
    kind = "light_adapter" if light else "full_adapter_xl" if pixels[1] == 16 else "full_adapter"
    return {
        "_class_name": "T2IAdapter",
        "adapter_type": kind,
        "in_channels": pixels[0],
        "channels": widths,
        "num_res_blocks": blocks,
        "downscale_factor": pixels[1],
    }
