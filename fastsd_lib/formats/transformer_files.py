"""SD3 and Flux from a Diffusers folder to one file and back, as plans: which bytes go where, none of them read.

The layouts: the transformer under Stability's or Black Forest Labs' names (`sd3_maps`, `flux_maps`), the VAE under
latent-diffusion's, the text encoders under those of transformers behind `text_encoders.NAME.transformer.`, as ComfyUI
and Stability's own files have them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor, TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats import transformer_configs
from fastsd_lib.formats.casting import target_dtype
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.row_copies import exported, imported, unit_matrix
from fastsd_lib.formats.transformer_configs import FAMILIES, TEXT_ENCODERS, TRANSFORMER, Configs, model_name
from fastsd_lib.formats.transformer_parts import (
    BODY,
    LABELS,
    SHARED,
    STEMS,
    TIED,
    compare_names,
    file_prefix,
    is_leftover,
    own_name,
    part_table,
    refuse_packed,
    untied,
)
from fastsd_lib.formats.weights import Weight, part_files

# Of bundled/ -> what https://github.com/Stability-AI/ModelSpec headers call it.
ARCHITECTURES = {
    "sd3-medium": "stable-diffusion-3-medium",
    "sd35-medium": "stable-diffusion-v3.5-medium",
    "sd35-large": "stable-diffusion-v3.5-large",
    "flux-dev": "flux-1-dev",
    "flux-schnell": "flux-1-schnell",
}
IMPLEMENTATIONS = {
    "flux": "https://github.com/black-forest-labs/flux",
    "sd3": "https://github.com/Stability-AI/sd3.5",
}


def plan_export(
    folder: Path, dtype: str | None, parts: Collection[str] | None = None
) -> tuple[list[NewTensor], dict[str, str]]:
    """A Diffusers folder of SD3 or Flux as the tensors and the header entries of one file.

    `dtype`: fp16, bf16, fp32, or None to keep every byte. `parts`: of the pipeline, None for all that its
    model_index.json lists; the transformer of Flux alone gets the bare names under which it goes round. UserError for
    a folder that is another model's or lacks a part.
    """
    configs = transformer_configs.folder_configs(folder)
    transformer = json.loads(configs[TRANSFORMER])
    family = FAMILIES[transformer["_class_name"]]
    chosen = _listed_parts(folder, family, configs, parts)
    tensors: list[NewTensor] = []
    for part in chosen:
        places = part_files(folder / part, STEMS.get(part, "model"))
        refuse_packed(folder / part, places)
        names = {own_name(family, part, key): key for key in places if not is_leftover(family, part, key)}
        weights = {
            name: Weight(places[key], key, places[key].tensors[key].shape)
            for name, key in untied(names).items()
        }
        table = part_table(family, part, configs)
        compare_names(
            folder / part, part, family, weights, [one for row in table.rows.values() for one in row]
        )
        prefix = file_prefix(family, part, alone=list(chosen) == ["transformer"])
        made = list(exported(weights, table, prefix, dtype, is_vae=part == "vae"))
        # T5's words stand under both names in the files of its publisher; some loaders miss the second.
        made += [replace(one, name=prefix + TIED) for one in made if one.name == prefix + SHARED]
        tensors += made
    return tensors, _modelspec(folder.name, transformer) | transformer_configs.carried_configs(
        configs, chosen
    )


def plan_import(
    file: TensorFile, dtype: str | None = None
) -> tuple[dict[str, str], dict[str, list[NewTensor]]]:
    """A single file of SD3 or Flux as small files (by their path in the folder) and tensors of each part.

    Only parts that the file holds are planned: the transformer always, VAE and text encoders where they are. The
    file's own configs go first, then the published model's, corrected by the shapes. UserError for other models, for
    files with packed numbers and for those that lack tensors.
    """
    family, keys = _keys_by_part(file)
    shapes = {part: {name: file.tensors[key] for name, key in names.items()} for part, names in keys.items()}
    packed = file.metadata.get(METADATA_KEY)
    configs = (
        transformer_configs.unpacked_configs(packed, keys, file.path)
        if packed
        else transformer_configs.derived_configs(family, shapes, file.path)
    )
    transformer = json.loads(configs[TRANSFORMER])
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    planned: dict[str, list[NewTensor]] = {}
    for part, names in keys.items():
        table = part_table(family, part, configs)
        made = _made_projection(family, part, names, configs, file, dtype)
        wanted = [name for name in table.rows if name not in {tensor.name for tensor in made}]
        compare_names(file.path, part, family, names, wanted)
        weights = {name: Weight(file, key, file.tensors[key].shape) for name, key in names.items()}
        planned[part] = [*imported(weights, table, dtype, width, is_vae=part == "vae"), *made]
    configs["model_index.json"] = transformer_configs.pipeline_index(family, configs, planned)
    return {name: configs[name] for name in sorted(configs)}, planned


def is_planned_here(family: str) -> bool:
    """Whether models of this family are converted by the two plans above."""
    return family in TEXT_ENCODERS


def import_notes(configs: Mapping[str, str], parts: Collection[str]) -> tuple[str, ...]:
    """What a folder made by `plan_import` still lacks before a picture can be drawn, a line each."""
    family = FAMILIES[json.loads(configs[TRANSFORMER])["_class_name"]]
    missing = [part for part in ("vae", *TEXT_ENCODERS[family]) if part not in parts]
    notes = []
    if missing:
        notes.append(
            f"The file holds no {', '.join(missing)}: take them from a Diffusers folder of the same model."
        )
    words = [part.replace("text_encoder", "tokenizer") for part in TEXT_ENCODERS[family] if part in parts]
    if absent := [name for name in words if not any(key.startswith(f"{name}/") for key in configs)]:
        notes.append(
            f"The file holds no {', '.join(absent)}: copy them from a Diffusers folder of the same model."
        )
    return tuple(notes)


# ------------------------------------------------------------------ folder to file


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
        chosen = [part for part in every if (index.get(part) or [None])[0]]
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


def _modelspec(title: str, transformer: Mapping[str, Any]) -> dict[str, str]:
    """The header entries that other programs show; a flow is neither of the two predictions that they can name."""
    name = model_name(transformer)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[name],
        "modelspec.implementation": IMPLEMENTATIONS[FAMILIES[transformer["_class_name"]]],
        "modelspec.title": title,
        "modelspec.resolution": "1024x1024",
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


# ------------------------------------------------------------------ file to folder


def _keys_by_part(file: TensorFile) -> tuple[str, dict[str, dict[str, str]]]:
    """The family of a file, and its tensors as part -> name without prefix -> name in the file."""
    refuse_packed(file.path, file.tensors)
    family = next((found for name in file.tensors if (found := _family_of(name))), None)
    if family is None:
        raise _not_ours(file)
    prefixes = {f"text_encoders.{name}.transformer.": part for part, name in TEXT_ENCODERS[family].items()}
    prefixes |= {"first_stage_model.": "vae", "vae.": "vae", BODY: "transformer"}
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


def _family_of(name: str) -> str | None:
    name = name.removeprefix(BODY)
    if name.startswith("double_blocks.0.img_attn."):
        return "flux"
    return "sd3" if name.startswith("joint_blocks.0.") else None


def _not_ours(file: TensorFile) -> UserError:
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


def _made_projection(
    family: str, part: str, names: Mapping[str, str], configs: Configs, file: TensorFile, dtype: str | None
) -> list[NewTensor]:
    """SD3's first CLIP, whose summary of the text goes on unprojected, for diffusers, which always projects.

    Stability's files need no matrix for that, so there may be none; diffusers' loader puts the unit matrix there too.
    """
    if family != "sd3" or part != "text_encoder" or "text_projection.weight" in names:
        return []
    width = json.loads(configs["text_encoder/config.json"])["hidden_size"]
    beside = file.tensors[next(iter(names.values()))].dtype
    return [unit_matrix("text_projection.weight", width, target_dtype(beside, dtype))]
