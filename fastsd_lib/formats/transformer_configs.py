"""The small files of SD3 and Flux pipelines: bundled for the published models, else from the shapes of the tensors.

What no shape tells (shift of the noise schedule, scale of the latents, activations) is the family's, and a file written
here from a pipeline that differs there carries its own configs in its header, as those of SD 1.x do.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.formats.configs import METADATA_KEY, TOKENIZER_FILES, pack
from fastsd_lib.formats.transformer_checks import (
    FAMILIES,
    SCHEDULER,
    TEXT_ENCODERS,
    TRANSFORMER,
    check_configs,
)
from fastsd_lib.formats.transformer_shapes import (
    Shapes,
    Tensors,
    clip_sizes,
    flux_sizes,
    sd3_sizes,
    t5_sizes,
    vae_sizes,
)

Configs = dict[str, str]  # path in the folder -> JSON text

# What stands before the transformer's names; some files shorten it or leave it out.
BODY = "model.diffusion_model."
BODIES = (BODY, "diffusion_model.")
BUNDLED = Path(__file__).parent / "bundled"
# What the transformer is shown: latents alone have 64 channels, 384 are Fill's, 128 those of Canny and Depth.
PIPELINES_BY_CHANNELS = {384: "FluxFillPipeline", 128: "FluxControlPipeline"}
# Entries that change no picture, and what diffusers and transformers take for those that are left out.
UNREAD = (
    "torch_dtype", "dtype", "transformers_version", "architectures", "initializer_range", "initializer_factor",
    "use_cache", "output_past", "decoder_start_token_id", "num_decoder_layers", "classifier_dropout", "is_decoder",
    "is_encoder_decoder", "tie_word_embeddings", "dropout_rate", "scale_decoder_outputs",
)  # fmt: skip
DEFAULTS = {
    "mid_block_add_attention": True, "axes_dims_rope": [16, 56, 56], "base_image_seq_len": 256, "base_shift": 0.5,
    "max_image_seq_len": 4096, "max_shift": 1.15, "time_shift_type": "exponential", "feed_forward_proj": "gated-gelu",
    "dense_act_fn": "gelu_new", "is_gated_act": True, "relative_attention_max_distance": 128,
}  # fmt: skip


def model_name(transformer: Mapping[str, Any]) -> str:
    """The folder in bundled/ whose model this config is, or comes nearest to."""
    if FAMILIES[transformer["_class_name"]] == "flux":
        return "flux-dev" if transformer.get("guidance_embeds") else "flux-schnell"
    if transformer.get("dual_attention_layers"):
        return "sd35-medium"
    return "sd35-large" if transformer.get("qk_norm") else "sd3-medium"


def family_of_tensors(names: Iterable[str]) -> str | None:
    """The family whose transformer a single file with these tensors holds; None for any other file."""
    for name in names:
        for body in (*BODIES, ""):
            if name.startswith(f"{body}double_blocks.0.img_attn."):
                return "flux"
            if name.startswith(f"{body}joint_blocks.0."):
                return "sd3"
    return None


def bundled_configs(model: str) -> Configs:
    folder = BUNDLED / model
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*.json")}


# ------------------------------------------------------------------ of a folder


def is_transformer_folder(folder: Path) -> bool:
    """Whether a folder holds the transformer of SD3 or Flux alone, as trainings and hubs give it out."""
    config = folder / "config.json"
    if not config.is_file() or (folder / TRANSFORMER).is_file():
        return False
    said = read_json(config)
    return isinstance(said, dict) and said.get("_class_name") in (*FAMILIES,)


def folder_configs(folder: Path) -> Configs:
    """The small files of a Diffusers folder of SD3 or Flux, or of its transformer's folder alone.

    UserError when it is neither, or one of them is damaged.
    """
    texts: Configs = {}
    places = {name: folder / name for name in _names()}
    if is_transformer_folder(folder):
        places = {TRANSFORMER: folder / "config.json"}
    for name, place in places.items():
        if place.is_file():
            if name.endswith(".json"):
                read_json(place)  # says the line when it is damaged
            texts[name] = place.read_text("utf-8-sig")
    if TRANSFORMER not in texts:
        raise UserError(
            f"{folder} holds no {TRANSFORMER}, so it is no Diffusers folder of SD3 or Flux.",
            fix="name the folder that holds model_index.json and transformer/.",
        )
    check_configs(texts, folder)
    return texts


def carried_configs(configs: Mapping[str, str], parts: Collection[str]) -> dict[str, str]:
    """The header entry with the configs of a pipeline that is not a published one; empty for those that are.

    The tokenizers travel along when their vocabulary is not the published one.
    """
    stock = bundled_configs(model_name(json.loads(configs[TRANSFORMER])))
    names = [name for name in configs if name.endswith("config.json") and "tokenizer" not in name]
    names = [name for name in names if name.partition("/")[0] in (*parts, "scheduler")]
    if all(_same(configs[name], stock.get(name, "{}")) for name in names):
        return {}
    own_words = any(
        json.loads(configs[name]).get("vocab_size") != json.loads(stock[name]).get("vocab_size")
        for name in names
        if name.startswith("text_encoder")
    )
    names += ["model_index.json"] if "model_index.json" in configs else []
    names += [name for name in configs if own_words and name.startswith("tokenizer")]
    return {METADATA_KEY: pack({name: configs[name] for name in names})}


def _same(own: str, stock: str) -> bool:
    """Whether two configs mean the same: an entry left out is its default, else none, no or nothing."""
    mine, theirs = json.loads(own), json.loads(stock)
    read = {name for name in {*mine, *theirs} if not name.startswith("_") and name not in UNREAD}
    return all(
        (mine.get(name, DEFAULTS.get(name)) or None) == (theirs.get(name, DEFAULTS.get(name)) or None)
        for name in read
    )


def _names() -> list[str]:
    """Every small file that a pipeline of these families may have; nothing else is read or written."""
    texts = [f"text_encoder{number}/config.json" for number in ("", "_2", "_3")]
    words = [f"tokenizer{number}/{name}" for number in ("", "_2", "_3") for name in TOKENIZER_FILES]
    return [
        "model_index.json",
        TRANSFORMER,
        "vae/config.json",
        "scheduler/scheduler_config.json",
        *texts,
        *words,
    ]


# ------------------------------------------------------------------ of a single file


def unpacked_configs(packed: str, family: str, parts: Collection[str], origin: Path) -> Configs:
    """The configs that a file of `family` with these parts carries; `packed` may come from anywhere."""
    try:
        values = json.loads(packed)
        configs = {
            name: json.dumps(values[name], indent=2, ensure_ascii=False) + "\n"
            if name.endswith(".json")
            else str(values[name])
            for name in _names()
            if name in values
        }
    except (ValueError, TypeError, RecursionError):
        configs = {}
    if not all(f"{part}/config.json" in configs for part in parts):
        configs = {}
    check_configs(configs, origin, family)
    stock = bundled_configs(model_name(json.loads(configs[TRANSFORMER])))
    return {SCHEDULER: stock[SCHEDULER]} | configs


def derived_configs(family: str, parts: Mapping[str, Tensors], origin: Path) -> Configs:
    """The configs of a bare file: of the published model, corrected by the shapes found in `parts`."""
    transformer = (flux_sizes if family == "flux" else sd3_sizes)(Shapes(parts["transformer"], origin))
    stock = bundled_configs(model_name(transformer))
    found = {TRANSFORMER: transformer}
    if "vae" in parts:
        found["vae/config.json"] = vae_sizes(parts["vae"], origin)
    for part, name in TEXT_ENCODERS[family].items():
        if part in parts:
            shapes = Shapes(parts[part], origin)
            found[f"{part}/config.json"] = t5_sizes(shapes) if name == "t5xxl" else clip_sizes(shapes)
    configs = {SCHEDULER: stock[SCHEDULER]}
    for name, config in found.items():
        known = json.loads(stock[name])
        same = all(known.get(key) == value for key, value in config.items())
        configs[name] = stock[name] if same else json.dumps(known | config, indent=2) + "\n"
    return configs


def pipeline_index(family: str, configs: Mapping[str, str], parts: Collection[str]) -> str:
    """model_index.json for the parts that are there; the others are said to be none."""
    transformer = json.loads(configs[TRANSFORMER])
    given = configs.get("model_index.json") or bundled_configs(model_name(transformer))["model_index.json"]
    index: dict[str, Any] = json.loads(given)
    if family == "flux" and "model_index.json" not in configs:
        index["_class_name"] = PIPELINES_BY_CHANNELS.get(transformer["in_channels"], index["_class_name"])
    for part in ("vae", *TEXT_ENCODERS[family]):
        if part not in parts:
            index[part] = [None, None]
            if part != "vae":
                index[part.replace("text_encoder", "tokenizer")] = [None, None]
    return json.dumps(index, indent=2) + "\n"
