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

from fastsd_lib.core.tensor_file import NewTensor, TensorFile
from fastsd_lib.formats import transformer_configs
from fastsd_lib.formats.casting import target_dtype
from fastsd_lib.formats.configs import METADATA_KEY, pack
from fastsd_lib.formats.modelspec import HASHES
from fastsd_lib.formats.plans import new_tensor
from fastsd_lib.formats.row_copies import exported, imported, unit_matrix
from fastsd_lib.formats.stored_weight import Weight
from fastsd_lib.formats.transformer_configs import (
    BODIES,
    FAMILIES,
    TRANSFORMER,
    Configs,
    model_name,
)
from fastsd_lib.formats.transformer_parts import (
    SHARED,
    TIED,
    compare_names,
    file_prefix,
    part_table,
    refuse_packed,
)
from fastsd_lib.formats.transformer_sources import folder_parts, keys_by_part, not_ours
from fastsd_lib.formats.transformer_vae import other_vae
from fastsd_lib.formats.transformer_words import lent_words

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
    folder: Path, dtype: str | None, parts: Collection[str] | None = None, vae: Path | None = None
) -> tuple[list[NewTensor], dict[str, str]]:
    """A Diffusers folder of SD3 or Flux as the tensors and the header entries of one file.

    `dtype`: fp16, bf16, fp32, or None to keep every byte. `parts`: of the pipeline, None for all that its
    model_index.json lists; the transformer of Flux alone gets the bare names under which it goes round. `vae`: takes
    the place of the model's own. UserError for a folder that is another model's or lacks a part.
    """
    configs, weights = folder_parts(folder, parts, vae)
    transformer = json.loads(configs[TRANSFORMER])
    family = FAMILIES[transformer["_class_name"]]
    tensors: list[NewTensor] = []
    for part, found in weights.items():
        table = part_table(family, part, configs)
        prefix = file_prefix(family, part, alone=list(weights) == ["transformer"])
        made = list(exported(found, table, prefix, dtype, is_vae=part == "vae"))
        # T5's words stand under both names in the files of its publisher; some loaders miss the second.
        made += [replace(one, name=prefix + TIED) for one in made if one.name == prefix + SHARED]
        tensors += made
    header = _modelspec(folder.name, transformer)
    return tensors, header | transformer_configs.carried_configs(configs, weights)


def plan_folder(
    folder: Path, dtype: str | None = None, vae: Path | None = None
) -> tuple[dict[str, str], dict[str, list[NewTensor]]]:
    """A Diffusers folder of SD3 or Flux once more, in another dtype or with another VAE; as `plan_import` gives it."""
    configs, weights = folder_parts(folder, None, vae)
    family = FAMILIES[json.loads(configs[TRANSFORMER])["_class_name"]]
    configs["model_index.json"] = transformer_configs.pipeline_index(family, configs, weights)
    planned = {
        part: [new_tensor(name, (weight,), dtype) for name, weight in found.items()]
        for part, found in weights.items()
    }
    return configs, planned


def plan_import(
    file: TensorFile, dtype: str | None = None, config_from: Path | None = None, vae: Path | None = None
) -> tuple[dict[str, str], dict[str, list[NewTensor]]]:
    """A single file of SD3 or Flux as small files (by their path in the folder) and tensors of each part.

    Only parts that the file holds are planned: the transformer always, VAE and text encoders where they are. The
    file's own configs go first, then the published model's, corrected by the shapes. Tokenizers that the file does not
    carry come from the Diffusers folder `config_from`, as far as it has them; `vae` as in `plan_export`. UserError for
    other models, for files with packed numbers and for those that lack tensors.
    """
    family, keys = keys_by_part(file)
    shapes = {part: {name: file.tensors[key] for name, key in names.items()} for part, names in keys.items()}
    packed = file.metadata.get(METADATA_KEY)
    configs = (
        transformer_configs.unpacked_configs(packed, family, keys, file.path)
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
    if vae:
        configs["vae/config.json"], other = other_vae(vae, family, transformer, configs)
        planned["vae"] = [new_tensor(name, (weight,), dtype) for name, weight in other.items()]
    configs["model_index.json"] = transformer_configs.pipeline_index(family, configs, planned)
    configs |= lent_words(family, configs, planned, config_from)
    return {name: configs[name] for name in sorted(configs)}, planned


def plan_repack(
    file: TensorFile, dtype: str | None = None, vae: Path | None = None
) -> tuple[list[NewTensor], dict[str, str]]:
    """A single file of SD3 or Flux once more, every tensor under its name: in another dtype, with another VAE.

    The second value is the whole header: what the file says of itself goes before what its shapes say.
    """
    family = transformer_configs.family_of_tensors(file.tensors)
    if family is None:
        raise not_ours(file)
    if dtype or vae:
        refuse_packed(file.path, file.tensors)  # each number stands for another: only the bytes can be kept
    configs = _transformer_config(family, file)
    transformer = json.loads(configs[TRANSFORMER])
    prefixes = ("vae.", "first_stage_model.")
    planned = [
        new_tensor(key, (Weight(file, key, one.shape),), dtype)
        for key, one in file.tensors.items()
        if not (vae and key.startswith(prefixes))
    ]
    if vae:
        configs["vae/config.json"], weights = other_vae(vae, family, transformer, configs)
        prefix = next((one for one in prefixes if any(key.startswith(one) for key in file.tensors)), None)
        prefix = prefix or file_prefix(family, "vae", alone=False)
        planned += exported(weights, part_table(family, "vae", configs), prefix, dtype, is_vae=True)
    kept = {key: text for key, text in file.metadata.items() if key not in HASHES}
    if vae and METADATA_KEY in kept:
        kept[METADATA_KEY] = pack(configs)
    return planned, _modelspec(file.path.stem, transformer) | kept


def _transformer_config(family: str, file: TensorFile) -> Configs:
    """The configs that a file carries, else what its transformer's shapes say."""
    packed = file.metadata.get(METADATA_KEY)
    if packed:
        return transformer_configs.unpacked_configs(packed, family, ["transformer"], file.path)
    bodies = [body for body in BODIES if any(key.startswith(body) for key in file.tensors)]
    shapes = {key.removeprefix((*bodies, "")[0]): one for key, one in file.tensors.items()}
    return transformer_configs.derived_configs(family, {"transformer": shapes}, file.path)


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
