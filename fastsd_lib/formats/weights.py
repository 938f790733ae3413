"""Where every weight of a model lies on disk, under one set of names, whatever the layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE, ByteRange, Tensor, TensorFile, read_tensor_file
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

WEIGHT_NAMES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
# Training leftovers of original checkpoints, and the marks of SDXL files that predict velocity: no weights.
LEFTOVERS = (
    "model_ema.",
    "betas",
    "alphas_cumprod",
    "sqrt_",
    "log_one_minus_",
    "posterior_",
    "logvar",
    "lvlb_",
    "denoiser.sigmas",
    "v_pred",
    "ztsnr",
)
# Tensors of a text encoder that no picture needs: buffers, and what only contrasts texts with pictures.
TEXT_LEFTOVERS = ("position_ids", "logit_scale", "attn_mask")
FAMILY_LABELS = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL", "sdxl_refiner": "SDXL refiner"}


@dataclass(frozen=True)
class Weight:
    """One tensor on disk. `shape` is the one diffusers wants, which a single file may store differently."""

    file: TensorFile
    key: str  # its name in that file
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None  # of the stored tensor, where one holds several
    transposed: bool = False  # the stored tensor has its two sides the other way round

    @property
    def stored(self) -> Tensor:
        return self.file.tensors[self.key]

    def chunks(self) -> Iterator[bytes]:
        """The bytes of the tensor as `shape` wants them, a mebibyte at a time; a transposed one all at once."""
        if self.transposed:
            yield _transposed(b"".join(self.file.chunks(self.key)), self.stored)
            return
        yield from self.range.chunks()

    @property
    def range(self) -> ByteRange:
        """Where its bytes lie: all of the stored tensor, or the rows that are meant."""
        stored = self.stored
        if self.rows is None:
            return ByteRange(self.file.path, stored.start, stored.end)
        row_bytes = stored.size_bytes // max(stored.shape[0], 1)
        first, last = self.rows
        return ByteRange(self.file.path, stored.start + first * row_bytes, stored.start + last * row_bytes)


# Diffusers' name of a tensor -> where it lies. CLIP's names always begin with "text_model.", as before
# transformers 5.6, the version that leaves the word out on disk.
Weights = dict[str, Weight]


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
        check_complete(folder / part, part, found, table)
        parts[part] = found
    return parts


def single_file_weights(file: TensorFile, configs: Mapping[str, str]) -> dict[str, Weights]:
    """The weights of a single file, part by part; UserError when they do not fit these configs."""
    kind = single_file_kind(file.tensors)
    prefixes = BODY_PREFIXES | TEXT_PREFIXES[kind]
    tables = {part: table for part, table in key_tables(configs).items() if part in prefixes}
    open_clip = [part for part, prefix in prefixes.items() if prefix.endswith(".model.")]
    for part in open_clip:
        layers = json.loads(configs[f"{part}/config.json"])["num_hidden_layers"]
        tables[part] = open_clip_table(layers, projects=part == "text_encoder_2")
    inverse = {part: {theirs: ours for ours, theirs in table.items()} for part, table in tables.items()}
    parts: dict[str, Weights] = {part: {} for part in tables}
    strangers = []
    for key, tensor in file.tensors.items():
        part = next((part for part, prefix in prefixes.items() if key.startswith(prefix)), None)
        if _is_leftover(key, part, kind):
            continue
        inner = key[len(prefixes[part]) :] if part else key
        if part in ("text_encoder", "text_encoder_2") and part not in open_clip:
            inner = _with_text_model(inner)
        pieces = _taken_apart(inner, Weight(file, key, tensor.shape)) if part in open_clip else None
        for piece, weight in pieces or [(inner, Weight(file, key, tensor.shape))]:
            name = rename(piece, inverse[part]) if part else None
            if name is None:
                strangers.append(key)
                continue
            # Single files store the VAE's attention projections as 1x1 convolutions.
            if part == "vae" and ".attentions." in name and len(tensor.shape) == 4:
                weight = replace(weight, shape=tensor.shape[:2])
            parts[part][name] = weight
    if kind == "sd2":
        strangers = [key for key in strangers if not _is_unread_layer(key)]
    for part, found in parts.items():
        check_complete(file.path, part, found, tables[part])
    _refuse_strangers(file.path, strangers, FAMILY_LABELS[kind])
    return parts


def _is_leftover(key: str, part: str | None, kind: str) -> bool:
    if part is None:
        return key.startswith(LEFTOVERS) or key.endswith(TEXT_LEFTOVERS)
    if not part.startswith("text_encoder"):
        return False
    projection = key.endswith(("text_projection", "text_projection.weight"))
    return key.endswith(TEXT_LEFTOVERS) or (projection and part == "text_encoder")


def _is_unread_layer(key: str) -> bool:
    """SD 2.x reads its text encoder before the last layer, which diffusers' configs therefore do not count."""
    return key.startswith(TEXT_PREFIXES["sd2"]["text_encoder"] + "transformer.resblocks.")


def _taken_apart(inner: str, weight: Weight) -> list[tuple[str, Weight]]:
    """An OpenCLIP tensor as the tensors that transformers' CLIP has, under module names."""
    if "attn.in_proj_" in inner:
        module, _, word = inner.rpartition("in_proj_")
        third = weight.shape[0] // 3
        return [
            (
                f"{module}{letter}_proj.{word}",
                replace(
                    weight,
                    shape=(third, *weight.shape[1:]),
                    rows=(number * third, number * third + third),
                ),
            )
            for number, letter in enumerate("qkv")
        ]
    if inner == "positional_embedding":
        return [("positional_embedding.weight", weight)]
    if inner == "text_projection":
        return [("text_projection.weight", replace(weight, shape=weight.shape[::-1], transposed=True))]
    return [(inner, weight)]


def _transposed(data: bytes, stored: Tensor) -> bytes:
    import numpy as np

    rows, columns = stored.shape
    values = np.frombuffer(data, dtype=f"V{BYTES_PER_VALUE[stored.dtype]}").reshape(rows, columns)
    return values.T.tobytes()


def part_files(folder: Path, stem: str) -> dict[str, TensorFile]:
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


def check_complete(origin: Path, part: str, names: Iterable[str], table: Table) -> None:
    """UserError when modules that every model of this shape has are without a tensor."""
    missing = missing_modules(set(names), table)
    if missing:
        raise UserError(
            f"{origin} lacks {len(missing)} modules that a {part} of this shape has, first {missing[0]}.",
            fix="the configs are another model's, or the file is incomplete: take its own configs.",
        )


def _refuse_strangers(origin: Path, names: list[str], label: str) -> None:
    if names:
        raise UserError(
            f"{origin} holds {len(names)} tensors that no {label} model of this shape has, first {names[0]}.",
            fix=f"the configs belong to another model, or it is no {label} model: `identify` says what it is.",
        )
