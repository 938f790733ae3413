"""The small files of a pipeline (configs, tokenizer) and how they travel inside a single file.

Single files hold weights only: every loader knows the rest by heart. A model of another shape or with
another vocabulary would be lost without its own, so its file carries them in its header: "fastsd.configs".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json, write_text
from fastsd_lib.core.model_files import Family

METADATA_KEY = "fastsd.configs"
MODEL_CONFIGS = ("unet/config.json", "vae/config.json")
TEXT_CONFIGS = (
    "text_encoder/config.json",
    "text_encoder_2/config.json",
)  # SDXL has both, its refiner the second
TOKENIZER_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt", "tokenizer.json",
)  # fmt: skip
CARRIED = (
    "model_index.json",
    *MODEL_CONFIGS,
    *TEXT_CONFIGS,
    "scheduler/scheduler_config.json",
    *(f"{folder}/{name}" for folder in ("tokenizer", "tokenizer_2") for name in TOKENIZER_FILES),
    "fastsd.json",  # how the model likes to be asked: guidance scale, steps
)
# What whoever reads a config counts on, by its folder: entries that must be there, and what the others must be if they are.
_WIDTHS = {"block_out_channels": int, "down_block_types": str, "up_block_types": str}
_NEEDED: dict[str, dict[str, type]] = {"unet": _WIDTHS, "vae": {"block_out_channels": int}}
_KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    "unet": {"in_channels": (int,), "out_channels": (int,), "cross_attention_dim": (int, list),
             "attention_head_dim": (int, list), "layers_per_block": (int, list)},
    "vae": {"scaling_factor": (int, float), "latent_channels": (int,), "layers_per_block": (int,)},
    "text_encoder": {"num_hidden_layers": (int,)},
    "text_encoder_2": {"num_hidden_layers": (int,)},
    "scheduler": {"prediction_type": (str,)},
    "model_index.json": {"_class_name": (str,)},
}  # fmt: skip
MOST_LEVELS, MOST_LAYERS = 16, 256  # of any model; more would only keep a reader busy


def read_configs(folder: Path) -> dict[str, str]:
    """The small files of a Diffusers folder, by their path in it; UserError when one is missing."""
    texts = {name: (folder / name).read_text("utf-8") for name in CARRIED if (folder / name).is_file()}
    needed = [*MODEL_CONFIGS, next((name for name in TEXT_CONFIGS if name in texts), TEXT_CONFIGS[0])]
    for name in needed:
        if name not in texts:
            raise UserError(
                f"{folder} is not a whole Diffusers folder: {name} is missing.",
                fix="name the folder that holds model_index.json, unet/, vae/ and text_encoder/.",
            )
        read_json(folder / name)  # says the line when it is damaged
    for name in texts:
        if not _is_config(name, read_json(folder / name) if name.endswith(".json") else {}):
            raise UserError(
                f"{folder / name} is no config of such a model.", fix="take the model's own config file."
            )
    for tokenizer in ("tokenizer", "tokenizer_2"):
        if f"{tokenizer}/vocab.json" in texts and f"{tokenizer}/merges.txt" in texts:
            texts.pop(f"{tokenizer}/tokenizer.json", None)  # the same vocabulary a second time
    return texts


def write_configs(configs: Mapping[str, str], folder: Path) -> None:
    for name in CARRIED:  # never a name that a stranger's file brings along
        if name in configs:
            write_text(folder / name, configs[name])


def family_of(configs: Mapping[str, str]) -> Family:
    """Which family a pipeline with these configs is of; the refiner of SDXL is of SDXL."""
    unet = json.loads(configs["unet/config.json"])
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl"
    return "sd2" if unet.get("use_linear_projection") else "sd1"


def pack(configs: Mapping[str, str]) -> str:
    """One header string; JSON is kept as JSON so that one can read it there."""
    return json.dumps({name: _parsed(name, text) for name, text in configs.items()}, separators=(",", ":"))


def unpack(packed: str, origin: Path) -> dict[str, str]:
    """The inverse of `pack`, from a file that may come from anywhere."""
    try:
        values = json.loads(packed)
        configs = {name: _text(name, values[name]) for name in CARRIED if name in values}
        needed = [*MODEL_CONFIGS, next((name for name in TEXT_CONFIGS if name in configs), TEXT_CONFIGS[0])]
        shapes_known = all(name in configs for name in needed) and all(
            _is_config(name, json.loads(text) if name.endswith(".json") else {})
            for name, text in configs.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        shapes_known = False
    if not shapes_known:
        raise UserError(
            f"The configs inside {origin} are damaged.",
            fix="export the file again from its Diffusers folder.",
        )
    return configs


def _is_config(name: str, value: Any) -> bool:
    """Whether a config has the lists and numbers that readers count on; `name`: its path in the folder."""
    part = name.partition("/")[0]
    if not isinstance(value, dict):
        return False
    for key, kinds in _KINDS.get(part, {}).items():
        one = value.get(key)
        if one is not None and not isinstance(one, kinds):
            return False
        if key.endswith(("layers_per_block", "hidden_layers")) and isinstance(one, int) and one > MOST_LAYERS:
            return False
    lists = [(value.get(key), kind) for key, kind in _NEEDED.get(part, {}).items()]
    return all(
        isinstance(one, list)
        and 0 < len(one) <= MOST_LEVELS
        and all(type(item) is kind and item for item in one)
        for one, kind in lists
    )


def _parsed(name: str, text: str) -> Any:
    if not name.endswith(".json"):
        return text
    value = json.loads(text)
    if isinstance(value, dict):
        value.pop("_name_or_path", None)  # a path on the machine that saved it
    return value


def _text(name: str, value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n" if name.endswith(".json") else str(value)
