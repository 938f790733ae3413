"""Where the weights of SD3 and Flux lie, part by part, in a Diffusers folder and in a single file."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats import transformer_configs
from fastsd_lib.formats.stored_weight import Weight, Weights
from fastsd_lib.formats.transformer_configs import BODIES, FAMILIES, TEXT_ENCODERS, TRANSFORMER, Configs
from fastsd_lib.formats.transformer_parts import (
    LABELS,
    STEMS,
    compare_names,
    is_leftover,
    own_name,
    part_table,
    refuse_packed,
    untied,
)
from fastsd_lib.formats.transformer_vae import other_vae
from fastsd_lib.formats.weights import part_files


def folder_parts(
    folder: Path, parts: Collection[str] | None, vae: Path | None
) -> tuple[Configs, dict[str, Weights]]:
    """The small files of a folder, and the weights of every part that is asked for, complete."""
    configs = transformer_configs.folder_configs(folder)
    transformer = json.loads(configs[TRANSFORMER])
    family = FAMILIES[transformer["_class_name"]]
    lone = transformer_configs.is_transformer_folder(folder)
    chosen = ["transformer"] if lone else _listed_parts(folder, family, configs, parts)
    weights: dict[str, Weights] = {}
    for part in chosen:
        if part != "vae" or vae is None:
            place = folder if lone else folder / part
            weights[part] = _folder_weights(place, family, part)
            rows = part_table(family, part, configs).rows
            compare_names(place, part, family, weights[part], [one for row in rows.values() for one in row])
    if vae:
        configs["vae/config.json"], weights["vae"] = other_vae(vae, family, transformer, configs)
    return configs, weights


def _listed_parts(
    folder: Path, family: str, configs: Mapping[str, str], asked: Collection[str] | None
) -> list[str]:
    every = ["transformer", "vae", *TEXT_ENCODERS[family]]
    if asked is not None:
        if strange := sorted(set(asked) - set(every)):
            raise UserError(
                f"No part {strange[0]!r} in a {LABELS[family]} model.", fix=f"name {', '.join(every)}."
            )
        chosen = [part for part in every if part in asked]
    elif "model_index.json" in configs:
        index = json.loads(configs["model_index.json"])
        chosen = [part for part in every if index.get(part) not in (None, [None, None])]
    else:
        chosen = [part for part in every if (folder / part).is_dir()]
    if "transformer" not in chosen:
        raise UserError(
            f"{folder} lists no transformer.", fix="name a whole Diffusers folder of SD3 or Flux."
        )
    for part in chosen:
        if f"{part}/config.json" not in configs:
            raise UserError(
                f"{folder} is not a whole Diffusers folder: {part}/config.json is missing.",
                fix=f"download it, or write [null, null] for {part} in model_index.json to leave it out.",
            )
    return chosen


def _folder_weights(folder: Path, family: str, part: str) -> Weights:
    places = part_files(folder, STEMS.get(part, "model"))
    refuse_packed(folder, places)
    names = {own_name(family, part, key): key for key in places if not is_leftover(family, part, key)}
    return {
        name: Weight(places[key], key, places[key].tensors[key].shape) for name, key in untied(names).items()
    }


def keys_by_part(file: TensorFile) -> tuple[str, dict[str, dict[str, str]]]:
    """The family of a file, and its tensors as part -> name without prefix -> name in the file."""
    refuse_packed(file.path, file.tensors)
    family = transformer_configs.family_of_tensors(file.tensors)
    if family is None:
        raise not_ours(file)
    prefixes = {f"text_encoders.{name}.transformer.": part for part, name in TEXT_ENCODERS[family].items()}
    prefixes |= {"first_stage_model.": "vae", "vae.": "vae"} | dict.fromkeys(BODIES, "transformer")
    keys: dict[str, dict[str, str]] = {}
    for key in file.tensors:
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        part = prefixes.get(prefix, "transformer")  # without a prefix: as the transformer goes round alone
        inner = key[len(prefix) :]
        beside_encoders = key.startswith("text_encoders.") and ".transformer." not in key
        if beside_encoders or is_leftover(family, part, inner):
            continue
        name = own_name(family, part, inner)
        if name in keys.setdefault(part, {}):
            raise UserError(
                f"{file.path} holds {escaped(name)} of the {part} twice, as {escaped(keys[part][name])} and "
                f"{escaped(key)}.",
                fix="take another copy of the model.",
            )
        keys[part][name] = key
    return family, {part: untied(names) for part, names in keys.items()}


def not_ours(file: TensorFile) -> UserError:
    if any("transformer_blocks.0." in name for name in file.tensors):
        return UserError(
            f"{file.path} holds a transformer under diffusers' names: it is a part of a Diffusers folder.",
            fix="put it into transformer/ of the folder whose part it is, and name that folder.",
        )
    examples = ", ".join(escaped(name) for name in list(file.tensors)[:3]) or "none at all"
    return UserError(
        f"{file.path} holds no transformer of SD3 or Flux ({len(file.tensors)} tensors: {examples}).",
        fix="`identify` says what it is.",
    )
