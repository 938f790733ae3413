"""Where every weight of an SD 1.x model lies on disk, under one set of names, whatever the layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.tensor_file import Tensor, TensorFile, read_tensor_file
from fastsd_lib.formats.key_maps import (
    SD1_PREFIXES,
    VAE_ATTENTION_OLD,
    Table,
    missing_modules,
    rename,
    text_encoder_table,
    unet_table,
    vae_table,
)

WEIGHT_NAMES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
# Training leftovers of original checkpoints; every loader makes them anew or ignores them.
LEFTOVERS = (
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_",
    "posterior_",
    "logvar",
    "lvlb_",
)


@dataclass(frozen=True)
class Weight:
    """One tensor on disk. `shape` is the one diffusers wants, which a single file may store differently."""

    file: TensorFile
    key: str  # its name in that file
    shape: tuple[int, ...]

    @property
    def stored(self) -> Tensor:
        return self.file.tensors[self.key]


# Diffusers' name of a tensor -> where it lies. CLIP's names always begin with "text_model.", as before
# transformers 5.6, the version that leaves the word out on disk.
Weights = dict[str, Weight]


def key_tables(configs: Mapping[str, str]) -> dict[str, Table]:
    """The key table of each part of the pipeline with these configs (path in the folder -> JSON text)."""
    return {
        "unet": unet_table(json.loads(configs["unet/config.json"])),
        "vae": vae_table(json.loads(configs["vae/config.json"])),
        "text_encoder": text_encoder_table(),
    }


def folder_weights(folder: Path, configs: Mapping[str, str]) -> dict[str, Weights]:
    """The weights of a Diffusers folder, part by part; UserError when they do not fit its configs."""
    parts = {}
    for part, table in key_tables(configs).items():
        found: Weights = {}
        for key, file in _part_files(folder / part, WEIGHT_NAMES[part]).items():
            if not key.endswith(
                "position_ids"
            ):  # 0, 1, 2 ...: current transformers refuse it, others make it
                found[_modern_name(part, key)] = Weight(file, key, file.tensors[key].shape)
        _refuse_strangers(folder / part, [name for name in found if rename(name, table) is None])
        _check_complete(folder / part, part, found, table)
        parts[part] = found
    return parts


def single_file_weights(file: TensorFile, configs: Mapping[str, str]) -> dict[str, Weights]:
    """The weights of an SD 1.x single file, part by part; UserError when they do not fit these configs."""
    tables = key_tables(configs)
    inverse = {part: {theirs: ours for ours, theirs in table.items()} for part, table in tables.items()}
    parts: dict[str, Weights] = {part: {} for part in tables}
    strangers = []
    for key, tensor in file.tensors.items():
        part = next((part for part, prefix in SD1_PREFIXES.items() if key.startswith(prefix)), None)
        if key.endswith("position_ids") or (part is None and key.startswith(LEFTOVERS)):
            continue
        inner = key[len(SD1_PREFIXES[part]) :] if part else key
        name = (
            rename(_with_text_model(inner) if part == "text_encoder" else inner, inverse[part])
            if part
            else None
        )
        if name is None:
            strangers.append(key)
            continue
        # SD 1.x stores the VAE's attention projections as 1x1 convolutions.
        flat = part == "vae" and ".attentions." in name and len(tensor.shape) == 4
        parts[part][name] = Weight(file, key, tensor.shape[:2] if flat else tensor.shape)
    for part, found in parts.items():
        _check_complete(file.path, part, found, tables[part])
    _refuse_strangers(file.path, strangers)
    return parts


def _part_files(folder: Path, stem: str) -> dict[str, TensorFile]:
    """Tensor name -> file: the plain file, shards with an index, or the only variant (model.fp16...)."""
    plain, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if plain.is_file():
        return _whole(plain)
    if index.is_file():
        places = read_json(index).get("weight_map", {})
        shards = {name: read_tensor_file(folder / name) for name in sorted(set(places.values()))}
        return {key: file for name, file in shards.items() for key in file.tensors if places.get(key) == name}
    variants = [path for path in sorted(folder.glob(f"{stem}.*.safetensors")) if ".non_ema." not in path.name]
    if len(variants) == 1:
        return _whole(variants[0])
    if variants:
        raise UserError(
            f"{folder} holds several variants and no plain one: {', '.join(path.name for path in variants)}.",
            fix=f"rename the one you mean to {plain.name}.",
        )
    raise UserError(
        f"{folder} holds no {plain.name}.",
        fix="download the model with its .safetensors weights; pickled .bin files are not opened.",
    )


def _whole(path: Path) -> dict[str, TensorFile]:
    file = read_tensor_file(path)
    return dict.fromkeys(file.tensors, file)


def _modern_name(part: str, key: str) -> str:
    """The spellings that folders of all ages use, brought to one."""
    if part == "text_encoder":
        return _with_text_model(key)
    if part == "vae" and ".attentions." in key:
        module, _, word = key.rpartition(".")
        block, _, layer = module.rpartition(".")
        return f"{block}.{VAE_ATTENTION_OLD.get(layer, layer)}.{word}"
    return key


def _with_text_model(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _check_complete(origin: Path, part: str, names: Iterable[str], table: Table) -> None:
    missing = missing_modules(set(names), table)
    if missing:
        raise UserError(
            f"{origin} lacks {len(missing)} modules that a {part} of this shape has, first {missing[0]}.",
            fix="the configs are another model's, or the file is incomplete: take its own configs.",
        )


def _refuse_strangers(origin: Path, names: list[str]) -> None:
    if names:
        raise UserError(
            f"{origin} holds {len(names)} tensors that no SD 1.x model of this shape has, first {names[0]}.",
            fix="the configs belong to another model, or it is no SD 1.x model: `identify` says what it is.",
        )
