"""The small files of a pipeline (configs, tokenizer) and how they travel inside a single file.

Single files hold weights only: every loader knows the rest by heart. A model of another shape or with
another vocabulary would be lost without its own, so its file carries them in its header: "fastsd.configs".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

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
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.json",
)  # fmt: skip
CARRIED = (
    "model_index.json",
    *MODEL_CONFIGS,
    *TEXT_CONFIGS,
    "scheduler/scheduler_config.json",
    *(f"{folder}/{name}" for folder in ("tokenizer", "tokenizer_2") for name in TOKENIZER_FILES),
    "fastsd.json",  # how the model likes to be asked: guidance scale, steps
)
# What whoever reads a config counts on, by its folder: entries that must be there, and what the others must be if they
# are; null is only what names it.
_WIDTHS = {"block_out_channels": int, "down_block_types": str, "up_block_types": str}
_NEEDED: dict[str, dict[str, type]] = {"unet": _WIDTHS, "vae": {"block_out_channels": int}}
_KINDS: dict[str, dict[str, tuple[type, ...]]] = {
    "unet": {"in_channels": (int,), "out_channels": (int,), "cross_attention_dim": (int, list),
             "attention_head_dim": (int, list, type(None)), "layers_per_block": (int, list)},
    "vae": {"scaling_factor": (int, float), "latent_channels": (int,), "layers_per_block": (int,)},
    "text_encoder": {"num_hidden_layers": (int,)},
    "text_encoder_2": {"num_hidden_layers": (int,)},
    "scheduler": {"prediction_type": (str,)},
    "model_index.json": {"_class_name": (str,)},
}  # fmt: skip
_DEPTH = "num_hidden_layers"  # of a text encoder, which no reader can do without
# Entries of model_index.json that are looked into: library and class, or null.
_COMPONENTS = (
    "tokenizer",
    "tokenizer_2",
    "depth_estimator",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
)
MOST_LEVELS, MOST_LAYERS = 16, 256  # of any model; more would only keep a reader busy
MOST_SCALE = 1e6  # of latents; published models have 0.1 to 2


def read_configs(folder: Path) -> dict[str, str]:
    """The small files of a Diffusers folder, by their path in it; UserError when one is missing."""
    texts = {name: read_small_text(folder / name) for name in CARRIED if (folder / name).is_file()}
    needed = [*MODEL_CONFIGS, next((name for name in TEXT_CONFIGS if name in texts), TEXT_CONFIGS[0])]
    for name in needed:
        if name not in texts:
            raise UserError(
                f"{folder} is not a whole Diffusers folder: {name} is missing.",
                fix="name the folder that holds model_index.json, unet/, vae/ and text_encoder/.",
            )
    parsed = {name: read_config(folder / name, name) for name in texts if name.endswith(".json")}
    for tokenizer in ("tokenizer", "tokenizer_2"):
        vocabulary, whole = f"{tokenizer}/vocab.json", f"{tokenizer}/tokenizer.json"
        all_there = all(name in texts for name in (whole, vocabulary, f"{tokenizer}/merges.txt"))
        if all_there and not _adds_words(parsed[whole], parsed[vocabulary]):
            del texts[whole]  # the same vocabulary a second time
    return texts


def read_config(place: Path, name: str) -> dict[str, Any]:
    """The config in the file `place`; UserError when it is damaged, or is none of such a model.

    `name`: its path in the folder of a pipeline, which says what it has to hold.
    """
    config = read_json(place)
    if not _is_config(name, config):
        raise UserError(f"{place} is no config of such a model.", fix="take the model's own config file.")
    return cast(dict[str, Any], config)


def read_small_text(place: Path) -> str:
    """A small file of a pipeline as it stands there; UserError when it is no text."""
    try:
        return place.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{place} is not a text file.", fix="download or copy it again.") from None


def _adds_words(tokenizer: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json knows words beside the vocabulary: a trained `<sks>` may stand there alone."""
    added = tokenizer.get("added_tokens")
    words = [one.get("content") for one in added if isinstance(one, dict)] if isinstance(added, list) else []
    return any(isinstance(word, str) and word not in vocabulary for word in words)


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
        if key not in value:
            if key == _DEPTH:
                return False
            continue
        one = value[key]
        if not isinstance(one, kinds):
            return False
        if key in ("layers_per_block", _DEPTH) and isinstance(one, int) and one > MOST_LAYERS:
            return False
        if key == "scaling_factor" and not 0 < one < MOST_SCALE:
            return False
    if name == "model_index.json" and not all(_is_component(value.get(one)) for one in _COMPONENTS):
        return False
    lists = [(value.get(key), kind) for key, kind in _NEEDED.get(part, {}).items()]
    return all(
        isinstance(one, list)
        and 0 < len(one) <= MOST_LEVELS
        and all(type(item) is kind and item for item in one)
        for one, kind in lists
    )


def _is_component(value: Any) -> bool:
    """Whether an entry of model_index.json is library and class, or nothing."""
    return value is None or (
        isinstance(value, list) and len(value) == 2 and all(isinstance(one, str | None) for one in value)
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
