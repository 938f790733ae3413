"""Whether configs are those of an SD3 or Flux pipeline: they may come from a stranger's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.transformer_shapes import MOST_BLOCKS

TRANSFORMER, SCHEDULER = "transformer/config.json", "scheduler/scheduler_config.json"
FAMILIES = {"FluxTransformer2DModel": "flux", "SD3Transformer2DModel": "sd3"}
# Part of the pipeline -> the name that single files give the text encoder.
TEXT_ENCODERS = {
    "flux": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
    "sd3": {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"},
}
# Entries without which a part's config says too little, and of what kind they are.
NEEDED: dict[str, dict[str, Any]] = {
    "flux": dict.fromkeys(
        ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim"), int
    )
    | {"in_channels": int, "guidance_embeds": bool},
    "sd3": dict.fromkeys(("num_layers", "num_attention_heads", "attention_head_dim", "in_channels"), int),
    "vae": {"block_out_channels": list, "latent_channels": int, "scaling_factor": (int, float)},
    "clip_l": {"num_hidden_layers": int, "hidden_size": int, "vocab_size": int},
    "clip_g": {"num_hidden_layers": int, "hidden_size": int, "vocab_size": int},
    "t5xxl": {"num_layers": int, "vocab_size": int},
}
# Entries that say how many tensors there are, and how long their sides; far beyond any model is what lies outside.
DEPTHS = ("num_layers", "num_single_layers", "num_hidden_layers", "layers_per_block")
WIDTHS = ("num_attention_heads", "attention_head_dim", "in_channels", "hidden_size")
MOST_CHANNELS = 1 << 16


def check_configs(configs: Mapping[str, str], origin: Path, family: str | None = None) -> None:
    """UserError for configs that are not those of an SD3 or Flux pipeline, or of the one `family` that is meant."""
    try:
        parsed = {name: json.loads(text) for name, text in configs.items() if name.endswith(".json")}
        good = all(isinstance(one, dict) for one in parsed.values()) and _is_sound(parsed, family)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        good = False
    if not good:
        raise UserError(
            f"The configs of {origin} are not those of an SD3 or Flux model.",
            fix="take a folder or a file of Stable Diffusion 3, 3.5 or Flux.1.",
        )


def _is_sound(parsed: Mapping[str, Any], meant: str | None) -> bool:
    """Whether every number that a table of names is made of is one, and not a monstrous one."""
    family = FAMILIES[parsed[TRANSFORMER]["_class_name"]]
    parts = {name.partition("/")[0]: one for name, one in parsed.items() if name.endswith("/config.json")}
    roles = {"transformer": family, "vae": "vae"} | TEXT_ENCODERS[family]
    counts = [one[key] for one in parts.values() for key in DEPTHS if key in one]
    counts += parts["transformer"].get("dual_attention_layers") or []
    widths = [one[key] for one in parts.values() for key in WIDTHS if key in one]
    levels = [one["block_out_channels"] for one in parts.values() if "block_out_channels" in one]
    return (
        meant in (family, None)
        and all(
            isinstance(one[key], kind)
            for part, one in parts.items()
            for key, kind in NEEDED[roles[part]].items()
        )
        and all(isinstance(n, int) and 0 <= n <= MOST_BLOCKS for n in counts)
        and all(isinstance(n, int) and 0 < n <= MOST_CHANNELS for n in widths)
        and all(isinstance(one, list) and 0 < len(one) <= 16 for one in levels)
        and all(isinstance(one.get("feed_forward_proj", ""), str) for one in parts.values())
    )
