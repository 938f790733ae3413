"""The tensors of models that are to be merged, all under the names of single files, read a block at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import CHUNK_BYTES, sha256_file
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import Report
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE
from fastsd_lib.formats.casting import FLOATS, to_float32
from fastsd_lib.formats.configs import METADATA_KEY, family_of, pack, read_configs
from fastsd_lib.formats.key_maps import (
    BODY_PREFIXES,
    TEXT_PREFIXES,
    open_clip_table,
    rename,
    single_file_kind,
    vae_table,
)
from fastsd_lib.formats.known_configs import is_stock
from fastsd_lib.formats.single_file import open_single_file
from fastsd_lib.formats.vae_file import read_vae
from fastsd_lib.formats.weights import FAMILY_LABELS, Weight, Weights, folder_weights, key_tables

BLOCK_VALUES = CHUNK_BYTES // 4
UNET, VAE = BODY_PREFIXES["unet"], BODY_PREFIXES["vae"]
_MERGED_FAMILIES = ("sd1", "sd2", "sdxl")


@dataclass(frozen=True)
class Source:
    """One tensor: its pieces on disk, one after another as the tensor has them."""

    pieces: tuple[Weight, ...]
    shape: tuple[int, ...]
    transposed: bool = False  # the piece has its two sides the other way round

    @property
    def dtype(self) -> str:
        return self.pieces[0].stored.dtype

    @property
    def count(self) -> int:
        return prod(self.shape)

    def chunks(self) -> Iterator[bytes]:
        """The bytes as they are stored; a transposed tensor all at once."""
        data = itertools.chain.from_iterable(piece.chunks() for piece in self.pieces)
        if self.transposed:
            kind = f"V{BYTES_PER_VALUE[self.dtype]}"
            yield np.frombuffer(b"".join(data), kind).reshape(self.shape[::-1]).T.tobytes()
        else:
            yield from data

    def blocks(self) -> Iterator[np.ndarray]:
        """The values as float32, BLOCK_VALUES at a time: the same blocks whatever the width on disk."""
        held: list[np.ndarray] = []
        count = 0
        for values in (to_float32(np.frombuffer(chunk, np.uint8), self.dtype) for chunk in self.chunks()):
            held, count = [*held, values], count + len(values)
            while count >= BLOCK_VALUES:
                joined = held[0] if len(held) == 1 else np.concatenate(held)
                yield joined[:BLOCK_VALUES]
                held, count = [joined[BLOCK_VALUES:]], count - BLOCK_VALUES
        if count:
            yield held[0] if len(held) == 1 else np.concatenate(held)


@dataclass(frozen=True)
class Model:
    """A model to be merged."""

    path: Path
    kind: str  # "sd1", "sd2", "sdxl", "sdxl_refiner"
    tensors: dict[str, Source]
    metadata: dict[str, str]  # of its file; of a folder, the configs that its single file would carry
    layout: str

    @property
    def name(self) -> str:
        return self.path.stem if self.layout == "single_file" else self.path.name

    @property
    def label(self) -> str:
        return FAMILY_LABELS[self.kind]

    @property
    def hashed(self) -> Path:
        """The file whose hash stands for the model: of a folder its U-Net, as lists of models show it."""
        if self.layout == "single_file":
            return self.path
        return min((self.path / "unet").glob("*.safetensors"))

    @cached_property
    def sha256(self) -> str:
        return sha256_file(self.hashed)


def open_model(files: ModelFiles, report: Report) -> Model:
    """Read the headers, not the weights; a .ckpt by the safe copy that is made of it once.

    UserError for other families, and for what is no whole model.
    """
    if files.family not in _MERGED_FAMILIES:
        raise UserError(
            f"{files.path.name} is a {files.family} model.", fix="merge models of SD 1.x, SD 2.x or SDXL."
        )
    if files.layout == "diffusers":
        return _folder(files.path)
    file = open_single_file(files.path, report)
    tensors = {
        key: Source((Weight(file, key, tensor.shape),), tensor.shape) for key, tensor in file.tensors.items()
    }
    metadata = {key: value for key, value in file.metadata.items() if key != "format"}
    return Model(files.path, single_file_kind(file.tensors), tensors, metadata, "single_file")


def open_vae(path: Path) -> dict[str, Source]:
    """A VAE of its own, under the names that it has within a single file."""
    config, weights = read_vae(path)
    table = vae_table(config)
    return {
        VAE + str(rename(name, table)): Source((weight,), weight.shape) for name, weight in weights.items()
    }


def check_readable(name: str, source: Source, origin: Path) -> None:
    """UserError for a number format that nothing is computed in."""
    if source.dtype not in FLOATS:
        raise UserError(
            f"{origin.name} stores {name} as {source.dtype}, which is not merged.",
            fix="take the model in fp16, bf16 or fp32.",
        )


# ------------------------------------------------------------------ Diffusers folders


def _folder(path: Path) -> Model:
    configs = read_configs(path)
    parts = folder_weights(path, configs)
    family = family_of(configs)
    kind = "sdxl_refiner" if family == "sdxl" and "text_encoder" not in parts else family
    tables = key_tables(configs)
    tensors: dict[str, Source] = {}
    for part, weights in parts.items():
        prefix = (BODY_PREFIXES | TEXT_PREFIXES[kind])[part]
        if prefix.endswith(".model."):
            layers = json.loads(configs[f"{part}/config.json"])["num_hidden_layers"]
            tensors |= _open_clip(weights, prefix, open_clip_table(layers, projects=part == "text_encoder_2"))
            continue
        for name, weight in weights.items():
            theirs = str(rename(name, tables[part]))
            # Single files store the VAE's attention projections as 1x1 convolutions.
            flat = (
                part == "vae"
                and ".mid.attn_1." in theirs
                and theirs.endswith(".weight")
                and len(weight.shape) == 2
            )
            tensors[prefix + theirs] = Source((weight,), (*weight.shape, 1, 1) if flat else weight.shape)
    own = {} if is_stock(configs, kind) else {METADATA_KEY: pack(configs)}
    return Model(path, kind, tensors, own, "diffusers")


def _open_clip(weights: Weights, prefix: str, table: dict[str, str]) -> dict[str, Source]:
    """CLIP's tensors put together as OpenCLIP has them: q, k and v in one, the projection transposed."""
    found: dict[str, Source] = {}
    joined: dict[str, dict[str, Weight]] = {}
    for name, weight in weights.items():
        theirs = prefix + str(rename(name, table))
        module, _, word = theirs.rpartition(".")
        if module.endswith(("attn.q_proj", "attn.k_proj", "attn.v_proj")):
            joined.setdefault(f"{module[: -len('q_proj')]}in_proj_{word}", {})[module[-6]] = weight
        elif module.endswith("positional_embedding"):
            found[module] = Source((weight,), weight.shape)
        elif module.endswith("text_projection"):
            found[module] = Source((weight,), weight.shape[::-1], transposed=True)
        else:
            found[theirs] = Source((weight,), weight.shape)
    for name, letters in joined.items():
        pieces = tuple(letters[letter] for letter in "qkv")
        found[name] = Source(pieces, (3 * pieces[0].shape[0], *pieces[0].shape[1:]))
    return found


def missing_from(model: Model, names: Iterable[str]) -> list[str]:
    """Weights of the U-Net among `names` that this model lacks."""
    return [name for name in names if name.startswith(UNET) and name not in model.tensors]
