"""Where every weight of a model lies on disk, under one set of names, whatever the layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.tensor_file import TensorFile, read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.completeness import missing_tensors, wrong_shape
from fastsd_lib.formats.configs import family_of
from fastsd_lib.formats.key_maps import (
    BODY_PREFIXES,
    TEXT_PREFIXES,
    VAE_ATTENTION_OLD,
    Table,
    missing_modules,
    open_clip_table,
    rename,
    single_file_kind,
    text_encoder_table,
    unet_table,
    vae_table,
)
from fastsd_lib.formats.open_clip import taken_apart
from fastsd_lib.formats.stored_weight import Weight, Weights

WEIGHT_NAMES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
EMA = "model_ema."  # averaged weights; the dots of their names are gone
# The marks of SDXL files that predict velocity: empty tensors, which say what a folder's scheduler config says.
MARKS = ("v_pred", "ztsnr")
# Training leftovers of original checkpoints: schedules, counters, judges. They are numbers, but no weights.
LEFTOVERS = (
    "betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "lvlb_", "denoiser.sigmas",
    "edm_", "first_stage_model.loss.", "first_stage_model.model_ema.", "depth_model.",
)  # fmt: skip
# Tensors of a text encoder that no picture needs: buffers, and what only contrasts texts with pictures.
TEXT_LEFTOVERS = ("position_ids", "logit_scale", "attn_mask")
TEXT_PROJECTIONS = ("text_projection", "text_projection.weight")
# Never cast: what counts or tabulates. (A model's depth estimator is a model in itself.)
BUFFERS = (*(one for one in LEFTOVERS if one != "depth_model."), *MARKS, f"{EMA}decay", f"{EMA}num_updates")
BUFFER_ENDS = ("position_ids", "attn_mask", "num_batches_tracked", "relative_position_index")
FAMILY_LABELS = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sdxl_refiner": "SDXL refiner"}


def key_tables(configs: Mapping[str, str]) -> dict[str, Table]:
    """The key table of each part of the pipeline with these configs (path in the folder -> JSON text)."""
    tables = {
        "unet": unet_table(json.loads(configs["unet/config.json"])),
        "vae": vae_table(json.loads(configs["vae/config.json"])),
    }
    for part in ("text_encoder", "text_encoder_2"):
        if f"{part}/config.json" in configs:
            tables[part] = text_encoder_table(projects=part == "text_encoder_2")
    return tables


def folder_weights(folder: Path, configs: Mapping[str, str]) -> dict[str, Weights]:
    """The weights of a Diffusers folder, part by part; UserError when they do not fit its configs."""
    parts = {}
    label = FAMILY_LABELS[family_of(configs)]
    for part, table in key_tables(configs).items():
        found: Weights = {}
        for key, file in part_files(folder / part, WEIGHT_NAMES[part]).items():
            if not key.endswith(
                "position_ids"
            ):  # 0, 1, 2 ...: current transformers refuse it, others make it
                found[modern_name(part, key)] = Weight(file, key, file.tensors[key].shape)
        _refuse_strangers(folder / part, [name for name in found if rename(name, table) is None], label)
        check_complete(folder / part, part, found, table, json.loads(configs[f"{part}/config.json"]))
        parts[part] = found
    return parts


def single_file_weights(file: TensorFile, configs: Mapping[str, str]) -> dict[str, Weights]:
    """The weights of a single file, part by part; UserError when they do not fit these configs."""
    return sorted_out(file, configs)[0]


def sorted_out(
    file: TensorFile, configs: Mapping[str, str], names: Mapping[str, str] | None = None
) -> tuple[dict[str, Weights], Weights]:
    """The weights of a single file, part by part, and what has no place in a folder, under the names of the file.

    `names`: the name of each tensor to be taken -> its name in the file; without it, all as they are named but for
    averaged weights. UserError when they do not fit these configs.
    """
    kind = single_file_kind(file.tensors)
    prefixes = BODY_PREFIXES | TEXT_PREFIXES[kind]
    tables = {part: table for part, table in key_tables(configs).items() if part in prefixes}
    open_clip = [part for part, prefix in prefixes.items() if prefix.endswith(".model.")]
    for part in open_clip:
        layers = json.loads(configs[f"{part}/config.json"])["num_hidden_layers"]
        tables[part] = open_clip_table(layers, projects=part == "text_encoder_2")
    inverse = {part: {theirs: ours for ours, theirs in table.items()} for part, table in tables.items()}
    parts: dict[str, Weights] = {part: {} for part in tables}
    extras: Weights = {}
    strangers = []
    for name, key in (names or without_averages(file)).items():
        if name in MARKS:
            continue
        weight = Weight(file, key, file.tensors[key].shape)
        part = next((part for part, prefix in prefixes.items() if name.startswith(prefix)), None)
        if _is_leftover(name, part):
            extras[name] = weight
            continue
        inner = name[len(prefixes[part]) :] if part else name
        if part in ("text_encoder", "text_encoder_2") and part not in open_clip:
            inner = _with_text_model(inner)
        for piece, one in taken_apart(inner, weight) if part in open_clip else [(inner, weight)]:
            ours = rename(piece, inverse[part]) if part else None
            if ours is not None and part is not None:
                # Single files store the VAE's attention projections as 1x1 convolutions.
                flat = part == "vae" and ".attentions." in ours and len(one.shape) == 4
                parts[part][ours] = replace(one, shape=one.shape[:2]) if flat else one
            elif kind == "sd2" and _is_unread_layer(name):
                extras[name] = weight
            else:
                strangers.append(name)
    for part, found in parts.items():
        check_complete(file.path, part, found, tables[part], json.loads(configs[f"{part}/config.json"]))
    _refuse_strangers(file.path, strangers, FAMILY_LABELS[kind])
    return parts, extras


def without_averages(file: TensorFile) -> dict[str, str]:
    """Every tensor but averaged weights, by its own name."""
    return {key: key for key in file.tensors if not key.startswith(EMA)}


def is_buffer(name: str) -> bool:
    """Whether a tensor of a single file counts or tabulates something, and is not to be cast."""
    return name.startswith(BUFFERS) or name.endswith(BUFFER_ENDS)


def _is_leftover(name: str, part: str | None) -> bool:
    if name.startswith(LEFTOVERS):
        return True
    if part is None:
        text = name.startswith(("cond_stage_model.", "conditioner."))
        return name.endswith(TEXT_LEFTOVERS) or (text and name.endswith(TEXT_PROJECTIONS))
    if not part.startswith("text_encoder"):
        return False
    return name.endswith(TEXT_LEFTOVERS) or (part == "text_encoder" and name.endswith(TEXT_PROJECTIONS))


def _is_unread_layer(key: str) -> bool:
    """SD 2.x reads its text encoder before the last layer, which diffusers' configs therefore do not count."""
    return key.startswith(TEXT_PREFIXES["sd2"]["text_encoder"] + "transformer.resblocks.")


def part_files(folder: Path, stem: str) -> dict[str, TensorFile]:
    """Tensor name -> file: the plain file, shards with an index, or the only variant (model.fp16...), plain or in shards."""
    plain = folder / f"{stem}.safetensors"
    if plain.is_file():
        return _whole(plain)
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _shards(index)
    # diffusers: STEM.fp16.safetensors, STEM.safetensors.index.fp16.json with shards STEM.fp16-00001-of-00002.safetensors
    variants = [
        path
        for path in [*sorted(folder.glob(f"{stem}.*.safetensors")), *sorted(folder.glob(f"{stem}.*.json"))]
        if ".non_ema." not in path.name and "-of-" not in path.name
    ]
    if len(variants) == 1:
        return _shards(variants[0]) if variants[0].suffix == ".json" else _whole(variants[0])
    if variants:
        raise UserError(
            f"{folder} holds several variants and no plain one: {', '.join(path.name for path in variants)}.",
            fix=f"rename the one you mean to {plain.name}.",
        )
    raise UserError(
        f"{folder} holds no {plain.name}.",
        fix="download the model with its .safetensors weights; pickled .bin files are not opened.",
    )


def _shards(index: Path) -> dict[str, TensorFile]:
    """The tensors of an index by the shard they are in; UserError for a shard or a tensor that is not there."""
    value = read_json(index)
    places = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise UserError(
            f"{index} lists no shards.", fix="download it again, with the shards that stand beside it."
        )
    shards: dict[str, TensorFile] = {}
    for name in sorted(set(places.values())):
        if PurePosixPath(name).name != name or "\\" in name:
            raise UserError(
                f"{index} names a shard outside its folder ({escaped(name)[:80]}).",
                fix="take the model from a source that you trust.",
            )
        if not (index.parent / name).is_file():
            raise UserError(
                f"{index.parent} lacks the shard {escaped(name)[:80]}, which {index.name} lists.",
                fix="download that file into the folder, under exactly this name.",
            )
        shards[name] = read_tensor_file(index.parent / name)
    lost = next((key for key, name in places.items() if key not in shards[name].tensors), None)
    if lost is not None:
        raise UserError(
            f"{index.parent / places[lost]} lacks the tensor {escaped(lost)[:80]}, which {index.name} promises.",
            fix="download the shards and their index again, all of one version.",
        )
    return {key: file for name, file in shards.items() for key in file.tensors if places.get(key) == name}


def _whole(path: Path) -> dict[str, TensorFile]:
    file = read_tensor_file(path)
    return dict.fromkeys(file.tensors, file)


def modern_name(part: str, key: str) -> str:
    """The spellings that folders of all ages use, brought to one."""
    if part.startswith("text_encoder") and not key.startswith("text_projection."):
        return _with_text_model(key)
    if part == "vae" and ".attentions." in key:
        module, _, word = key.rpartition(".")
        block, _, layer = module.rpartition(".")
        return f"{block}.{VAE_ATTENTION_OLD.get(layer, layer)}.{word}"
    return key


def _with_text_model(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def check_complete(
    origin: Path, part: str, found: Weights, table: Table, config: Mapping[str, Any] | None = None
) -> None:
    """UserError when weights are missing that every model of this shape has, or `config` has others in mind."""
    fix = "the configs are another model's, or the file is incomplete: take its own configs."
    missing, what = missing_modules(set(found), table), "modules"
    if not missing:
        missing, what = missing_tensors(part, found, table, config or {}), "tensors"
    if missing:
        raise UserError(
            f"{origin} lacks {len(missing)} {what} that a {part} of this shape has, first {missing[0]}.",
            fix=fix,
        )
    wrong = wrong_shape(part, found, config) if config else None
    if wrong:
        name, sides, wanted = wrong
        raise UserError(f"{origin}: {name} is {sides}, which its config says is {wanted}.", fix=fix)


def _refuse_strangers(origin: Path, names: list[str], label: str) -> None:
    if names:
        raise UserError(
            f"{origin} holds {len(names)} tensors that no {label} model of this shape has, first {names[0]}.",
            fix=f"the configs belong to another model, or it is no {label} model: `identify` says what it is.",
        )
