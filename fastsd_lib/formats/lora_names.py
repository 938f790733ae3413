"""How the programs name the layers that a LoRA changes, and the way from one's names to another's.

Three spellings of one layer: diffusers' path ("down_blocks.1.attentions.0.proj_in"), the path in the model's original
code ("input_blocks.4.1.proj_in"), and kohya's key, either path with underscores behind a prefix. Which path kohya takes
is his trainer's choice: diffusers' for SD 1.x and 2.x, the original one for SDXL, SD 3 and Flux (sd-scripts,
networks/lora*.py). Both are read for every model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from fastsd_lib.formats import flux_maps, sd3_maps
from fastsd_lib.formats.key_maps import Table, rename, unet_table

# Endings of tensor names -> what the tensor is in its layer.
ROLES = {
    **dict.fromkeys(("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight"), "down"),
    **dict.fromkeys(("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora.up.weight"), "up"),
    **dict.fromkeys(("lora_linear_layer.down.weight", "_lora.down.weight"), "down"),
    **dict.fromkeys(("lora_linear_layer.up.weight", "_lora.up.weight"), "up"),
    "dora_scale": "dora",
    **{f"lora_magnitude_vector{end}": "magnitude" for end in ("", ".weight", ".default", ".default.weight")},
    "lora_mid.weight": "mid",
    "alpha": "alpha",
    **{name: name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "diff",
    "b_norm": "diff_b",
}  # fmt: skip
_ENDING = re.compile(r"(?:\.|(?=_lora\.))(" + "|".join(map(re.escape, sorted(ROLES, key=len)[::-1])) + ")$")

# Beginnings of kohya's keys -> part; a Flux file calls its T5, the second encoder there, te3 as SD 3 does its third.
KOHYA_PARTS = {
    "lora_unet_": "unet",
    "lora_transformer_": "transformer",
    "lora_te3_": "text_encoder_3",
    "lora_te2_": "text_encoder_2",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
}
# Beginnings of dotted names -> part, as diffusers, peft, and ComfyUI's trainers write them; "" is what stands alone.
DOTTED_PARTS = {
    "base_model.model.text_model.": "text_encoder",
    "base_model.model.": "unet",
    "unet.": "unet",
    "transformer.": "transformer",
    "diffusion_model.": "unet",
    "text_encoder_3.": "text_encoder_3",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "": "unet",
}
# Words of module paths that hold an underscore themselves: the only ones at which kohya's keys are not to be cut.
_WITH_UNDERSCORE = """
down_blocks up_blocks mid_block transformer_blocks single_transformer_blocks proj_in proj_out proj_mlp
conv_in conv_out conv_shortcut conv_norm_out time_emb_proj time_embedding add_embedding class_embedding
linear_1 linear_2 to_q to_k to_v to_out to_add_out to_q_proj add_q_proj add_k_proj add_v_proj norm1_context
ff_context norm_out x_embedder context_embedder time_text_embed timestep_embedder text_embedder
guidance_embedder pos_embed group_norm input_blocks middle_block output_blocks in_layers out_layers
emb_layers skip_connection time_embed label_emb double_blocks single_blocks img_attn img_mlp img_mod
txt_attn txt_mlp txt_mod img_in txt_in time_in vector_in guidance_in in_layer out_layer final_layer
adaLN_modulation joint_blocks x_block context_block t_embedder y_embedder text_model self_attn q_proj k_proj
v_proj out_proj text_projection token_embedding position_embedding wi_0 wi_1
"""
WORDS = frozenset(_WITH_UNDERSCORE.split())
_WITHOUT = """
resnets attentions attn attn1 attn2 attn3 ff net proj conv conv1 conv2 norm norm1 norm2 norm3 downsamplers
upsamplers op out qkv mlp fc1 fc2 lin linear linear1 linear2 modulation encoder embeddings layers block
layer wi wo q k v o SelfAttention DenseReluDense EncDecAttention norm_added_q norm_added_k
"""
_PLAIN = frozenset(_WITHOUT.split())


def _layers(theirs: str, ours: str, table: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {theirs + left: tuple(ours + one for one in right.split()) for left, right in table.items()}


# Original path -> diffusers' paths of the same layer: several where it holds the rows of all of them, in their order.
# {} is the number of the block.
FLUX = (
    _layers("", "", flux_maps.ENDS | flux_maps.GUIDANCE)
    | _layers("double_blocks.{}.", "transformer_blocks.{}.", flux_maps.DOUBLE_BLOCK)
    | _layers("single_blocks.{}.", "single_transformer_blocks.{}.", flux_maps.SINGLE_BLOCK)
)
SD3 = _layers("", "", sd3_maps.ENDS) | _layers(
    "joint_blocks.{}.",
    "transformer_blocks.{}.",
    sd3_maps.BLOCK | sd3_maps.CONTEXT_GOES_ON | sd3_maps.SECOND_ATTENTION,
)
TRANSFORMERS = {"flux": FLUX, "sd3": SD3}
# How many rows each layer has of those that one original layer holds, as multiples of the model's width.
ROWS = {"single_blocks.{}.linear1": (1, 1, 1, 4)}  # Flux: its MLP is four times as wide
# Shift and scale stand the other way round in diffusers; the second one only in the last block, where the layer is
# twice, not six times, as wide as the model.
SWAPPED = {"final_layer.adaLN_modulation.1"}
SWAPPED_IF_TWICE = {"joint_blocks.{}.context_block.adaLN_modulation.1"}

# The U-Nets whose layers LoRA files name by latent-diffusion's counting.
_UNETS = {
    "sd": {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttn", "CrossAttn", "CrossAttn", ""),
        "up_block_types": ("", "CrossAttn", "CrossAttn", "CrossAttn"),
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("", "CrossAttn", "CrossAttn"),
        "up_block_types": ("CrossAttn", "CrossAttn", ""),
        "addition_embed_type": "text_time",
    },
}
_BLOCK = re.compile(r"(\w*blocks)\.(\d+)\.")


def split_ending(name: str) -> tuple[str, str] | None:
    """A tensor's name as its layer and what it is there ("down", "up", "alpha" ...); None for no LoRA's tensor.

    Diffusers' spellings before 0.22 (`attn1.processor.to_out_lora`) come out as its paths of today.
    """
    found = _ENDING.search(name)
    if found is None:
        return None
    module = name[: found.start()].replace(".processor", "")
    if found[1].startswith("_lora."):
        if ".self_attn." in module:  # of a text encoder
            module = re.sub(r"self_attn\.to_(\w+)$", r"self_attn.\1_proj", module)
        elif module.endswith("to_out"):
            module += ".0"
    return module, ROLES[found[1]]


def dotted(key: str) -> str | None:
    """The path of which kohya's key, without its prefix, is the spelling with underscores; None for unknown words."""
    pieces, path = key.split("_"), []
    while pieces:
        for length in range(min(4, len(pieces)), 0, -1):
            word = "_".join(pieces[:length])
            if word in WORDS or word in _PLAIN or (length == 1 and word.isdigit()):
                break
        else:
            return None
        path.append(word)
        pieces = pieces[length:]
    return ".".join(path)


def underscored(path: str) -> str:
    return path.replace(".", "_")


def with_text_model(path: str) -> str:
    """CLIP's path as before transformers 5.6, the version that leaves the first word out; T5's as it is."""
    own = path.startswith(("text_", "encoder.block", "encoder.final", "shared"))
    return path if own else f"text_model.{path}"


def is_original(path: str) -> bool:
    """Whether the path is the original code's, not diffusers'."""
    starts = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")
    starts += (
        "double_blocks.",
        "single_blocks.",
        "joint_blocks.",
        "final_layer.",
        "t_embedder.",
        "y_embedder.",
    )
    starts += ("img_in", "txt_in", "time_in.", "vector_in.", "guidance_in.", "x_embedder.proj")
    return path.startswith(starts)


def template(path: str) -> tuple[str, str]:
    """("double_blocks.{}.img_mlp.0", "7") of "double_blocks.7.img_mlp.0"; no number for what stands outside of blocks."""
    found = _BLOCK.match(path)
    return (f"{found[1]}.{{}}.{path[found.end() :]}", found[2]) if found else (path, "")


@cache
def unet_names(kind: str) -> Table:
    """Diffusers' layer -> latent-diffusion's: "sdxl", or "sd" for 1.x and 2.x."""
    return unet_table(_UNETS[kind])


@cache
def _unet_inverse(kind: str) -> Table:
    return {theirs: ours for ours, theirs in unet_names(kind).items()}


def unet_renamed(path: str, kind: str, original: bool) -> str | None:
    """A U-Net's layer by the other side's name; None for an unknown one."""
    table = unet_names(kind) if original else _unet_inverse(kind)
    name = rename(f"{path}.weight", table)
    return name.removesuffix(".weight") if name else None


def unet_kind(paths: Iterable[str]) -> str:
    """ "sd" when a layer is named that only the deeper U-Net of SD 1.x and 2.x has, else "sdxl": for original paths."""
    deep = re.compile(
        r"(?:input|output)_blocks\.(?:9|10|11)\.|(?:input_blocks\.[12]|output_blocks\.[678])\.1\.transformer"
    )
    return "sd" if any(deep.match(path) for path in paths) else "sdxl"
