"""A whole model of SD 1.x, 2.x or SDXL as it lies on disk, opened for conversion: headers only, nothing copied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.formats import configs as pipeline_configs
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.derived_configs import fit_configs
from fastsd_lib.formats.folder_extras import folder_extras
from fastsd_lib.formats.key_maps import BODY_PREFIXES, TEXT_PREFIXES, single_file_kind
from fastsd_lib.formats.known_configs import NAMES, bundled
from fastsd_lib.formats.model_writing import OPTIONAL_PARTS
from fastsd_lib.formats.stored_weight import Weights
from fastsd_lib.formats.vae_file import read_vae
from fastsd_lib.formats.vocabulary import cached_tokenizer, lent_configs
from fastsd_lib.formats.weights import EMA, FAMILY_LABELS, folder_weights, sorted_out

UNET = BODY_PREFIXES["unet"]
CLIP_PREFIXES = tuple(
    prefix for kind in TEXT_PREFIXES.values() for prefix in kind.values() if prefix.endswith(".transformer.")
)
SCALES_DIFFER = 1e-3  # 0.18215 and 0.13025 are two, 0.18215 and 0.1822 one
CLIP_MODULES = ("embeddings.", "encoder.", "final_layer_norm.")  # of a text encoder without `text_model.`


@dataclass(frozen=True)
class Source:
    """One model. `configs`: path in a Diffusers folder -> JSON text; the tokenizer's are missing when unknown."""

    path: Path
    kind: str  # sd1, sd2, sdxl, sdxl_refiner
    configs: dict[str, str]
    parts: dict[str, Weights]
    extras: Weights  # what a folder has no place for
    notes: tuple[str, ...] = ()


def open_folder(folder: Path) -> Source:
    """A Diffusers folder, of any age: shards, variants, both spellings of text encoders."""
    configs = pipeline_configs.read_configs(folder)
    family = pipeline_configs.family_of(configs)
    kind = "sdxl_refiner" if family == "sdxl" and "text_encoder/config.json" not in configs else family
    parts = folder_weights(folder, configs)
    return Source(folder, kind, configs, parts, folder_extras(folder, kind), _left_out(folder))


def _left_out(folder: Path) -> tuple[str, ...]:
    """A line for what is in a folder and in nothing that is made of it."""
    there = [part for part in OPTIONAL_PARTS if (folder / part).is_dir()]
    if (folder / "depth_estimator").is_dir():
        there = [part for part in there if part != "feature_extractor"]  # belongs to the depth estimator
        notes = [
            "depth_estimator/ is left out: single files hold MiDaS under other names, which A1111 fetches itself."
        ]
    else:
        notes = []
    if there:
        parts = " and ".join(f"{part}/" for part in there)
        notes.append(
            f"{parts} {'is' if len(there) == 1 else 'are'} left out: pictures are drawn without. A Diffusers folder can "
            "have a copy, and an entry in its model_index.json, again."
        )
    return tuple(notes)


def open_file(file: TensorFile, config_from: Path | None, ema: str) -> Source:
    """A single file of either kind, to become a folder. `ema`: as in `names_to_take`; a folder cannot "keep" both."""
    if ema == "keep" and any(name.startswith(EMA) for name in file.tensors):
        raise UserError(
            "A Diffusers folder has one place for the U-Net's weights: averaged or as trained, not both.",
            fix="choose --ema use or --ema drop, or write a single file.",
        )
    names, notes = names_to_take(file, ema)
    configs = file_configs(file, config_from)
    parts, extras = sorted_out(file, configs, names)
    kind = single_file_kind(file.tensors)
    return Source(file.path, kind, configs, parts, extras, (*notes, *_told(configs)))


def file_configs(file: TensorFile, config_from: Path | None, named: Path | None = None) -> dict[str, str]:
    """The configs of a single file: its own, else those that a folder lends, else what was published with its shapes.

    `named`: the file that the user named, when `file` is the copy of a .ckpt.
    """
    packed = file.metadata.get(pipeline_configs.METADATA_KEY)
    if packed:
        return pipeline_configs.unpack(packed, file.path)
    if config_from is None:
        words = next((t for key, t in file.tensors.items() if key.endswith("token_embedding.weight")), None)
        config_from = cached_tokenizer(words.shape[0]) if words else None
    return fit_configs(file, lent_configs(config_from) if config_from else {}, config_from, named)


def names_to_take(file: TensorFile, ema: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """The name that each tensor is to have -> its name in the file, and what is to be known of the choice.

    `ema`: "drop", "use" (averaged weights take the places of the U-Net's own) or "keep". The names of averaged
    weights have lost their dots. Text encoders that were written without `text_model.` get it back: no other program
    finds them without.
    """
    averaged = [key for key in file.tensors if key.startswith(EMA)]
    names = {_spelled_out(key): key for key in file.tensors if ema == "keep" or not key.startswith(EMA)}
    if ema == "use":
        if not averaged:
            raise UserError(
                f"{file.path} holds no averaged (EMA) weights.",
                fix="leave --ema out: its weights are the only ones.",
            )
        own = [name for name in names if name.startswith(UNET)]
        taken = {name: EMA + name.removeprefix("model.").replace(".", "") for name in own}
        strange = [
            name
            for name, key in taken.items()
            if key not in file.tensors or file.tensors[key].shape != file.tensors[names[name]].shape
        ]
        if strange:
            raise UserError(
                f"{file.path} holds averaged (EMA) weights for some of its U-Net only; {strange[0]} has none.",
                fix="choose --ema drop.",
            )
        names |= taken
    if ema == "drop" and averaged:
        return names, (f"{len(averaged)} averaged (EMA) weights are left out; --ema use takes them instead.",)
    return names, ()


# ------------------------------------------------------------------ another VAE


@dataclass(frozen=True)
class OwnVae:
    """What another VAE has to match."""

    shapes: Mapping[str, tuple[int, ...]]
    scale: float  # of the latents, as the U-Net knows them


def with_vae(source: Source, vae: Path) -> Source:
    """The model with another VAE; UserError for one of other shapes or another family."""
    config = json.loads(source.configs["vae/config.json"])
    shapes = {name: weight.shape for name, weight in source.parts["vae"].items()}
    own = OwnVae(shapes, config.get("scaling_factor", 0.18215))
    (_, weights), notes = other_vae(vae, own, source.kind)
    return replace(source, parts={**source.parts, "vae": weights}, notes=(*source.notes, *notes))


def own_vae(file: TensorFile, kind: str) -> OwnVae:
    """That of a single file."""
    _, weights = read_vae(file.path, open_weights)
    packed = file.metadata.get(pipeline_configs.METADATA_KEY)
    configs = pipeline_configs.unpack(packed, file.path) if packed else {}
    config = json.loads(configs.get("vae/config.json", "{}"))
    scale = config.get("scaling_factor", _family_scale(kind))
    return OwnVae({name: weight.shape for name, weight in weights.items()}, scale)


def other_vae(path: Path, own: OwnVae, kind: str) -> tuple[tuple[dict[str, Any], Weights], tuple[str, ...]]:
    """Config and weights of the VAE at `path`, and a note when nothing says whose it is.

    UserError when it cannot stand in a model of `kind` with such a VAE.
    """
    config, weights = read_vae(path, open_weights)
    label = FAMILY_LABELS[kind]
    fix = f"take a VAE that was made for {label}."
    found = {name: weight.shape for name, weight in weights.items()}
    other = next((name for name in {**own.shapes, **found} if own.shapes.get(name) != found.get(name)), None)
    if other is not None:
        here, there = (_shape(one.get(other)) for one in (found, own.shapes))
        raise UserError(
            f"{path} is a VAE of another shape than the model's: {other} is {here}, not {there}.", fix=fix
        )
    said = config.get("scaling_factor") or _scale_of_model(next(iter(weights.values())).file)
    if said is None:
        note = f"{path.name} does not say whose VAE it is; it is taken for one of {label}."
        return (config, weights), (note,)
    if abs(float(said) - float(own.scale)) > SCALES_DIFFER:
        raise UserError(
            f"{path} is another family's VAE: it scales latents by {said}, this model by {own.scale}.",
            fix=fix,
        )
    return (config, weights), ()


def _scale_of_model(file: TensorFile) -> float | None:
    """By what a whole model in one file scales latents; None for a VAE alone."""
    try:
        kind = single_file_kind(file.tensors)
    except UserError:  # no text encoder
        return None
    return _family_scale(kind)


def _family_scale(kind: str) -> float:
    return float(bundled(NAMES[kind, 4])["vae/config.json"]["scaling_factor"])


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _spelled_out(key: str) -> str:
    """A text encoder's name within a whole file, with the `text_model.` that some programs left out."""
    for prefix in CLIP_PREFIXES:
        if key.startswith(prefix) and key[len(prefix) :].startswith(CLIP_MODULES):
            return f"{prefix}text_model.{key[len(prefix) :]}"
    return key


def _told(configs: Mapping[str, str]) -> tuple[str, ...]:
    scheduler = json.loads(configs.get("scheduler/scheduler_config.json", "{}"))
    if not scheduler.get("fastsd_guessed"):
        return ()
    kind = scheduler["prediction_type"]
    return (f"The file does not say what the model predicts: {kind} is taken, by the look of its weights.",)
