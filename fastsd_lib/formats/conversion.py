"""Whole models from one layout to another: Diffusers folder, .safetensors, .ckpt, in every direction.

First a plan of the whole (`plans.py`, `transformer_files.py`), made of headers alone, then one writing of it: streamed,
read back, and under its name only when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import Family, ModelFiles
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.said_prediction import EDM_MARKS, said_beside
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.formats import model_source
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.configs import METADATA_KEY, family_of, pack
from fastsd_lib.formats.derived_configs import SCHEDULER
from fastsd_lib.formats.key_maps import single_file_kind
from fastsd_lib.formats.known_configs import is_stock
from fastsd_lib.formats.model_source import Source, file_configs, names_to_take
from fastsd_lib.formats.model_writing import is_file_name, write_file, write_folder
from fastsd_lib.formats.modelspec import (
    HASHES,
    PREFIX,
    Facts,
    as_text,
    file_facts,
    modelspec,
    needs_yaml,
    velocity_yaml,
)  # fmt: skip
from fastsd_lib.formats.plans import folder_plan, mark, new_tensor, repacked_plan, single_file_plan
from fastsd_lib.formats.transformer_configs import TRANSFORMER, is_transformer_folder
from fastsd_lib.formats.vocabulary import missing_tokenizers
from fastsd_lib.formats.weights import MARKS

TRANSFORMER_MARKS = ("double_blocks.0.", "single_transformer_blocks.0.", "joint_blocks.0.")
EDM_NOTE = "It is drawn by EDM's formulas, as CosXL and Playground 2.5 are"


@dataclass(frozen=True)
class ConversionChoices:
    """How a model is written anew; the defaults keep every bit of it."""

    dtype: Literal["fp16", "bf16", "fp32"] | None = None  # None: every tensor as it is
    vae: Path | None = None  # takes the place of the model's own: file, folder, or whole model
    ema: Literal["drop", "use", "keep"] = "drop"  # averaged weights beside the others, in old checkpoints
    config_from: Path | None = None  # Diffusers folder that lends configs and tokenizer to a bare file
    metadata: Mapping[str, Any] = field(default_factory=dict)  # joins the header: recipe, author, licence
    naming: Literal["auto", "original", "diffusers", "kohya", "peft"] = "auto"  # of what is no whole model
    sha256: bool = (
        False  # modelspec.hash_sha256 over all weights in a .safetensors: takes longer than copying them
    )


@dataclass(frozen=True)
class ConvertedModel(ModelFiles):
    """A model that was written, with what is to be known of it, a line each."""

    notes: tuple[str, ...] = ()


def convert_model(
    source: Path, target: Path, choices: ConversionChoices = ConversionChoices(), report: Report = silent
) -> ConvertedModel:
    """Write the whole model `source` as `target`: a single file by its suffix, else a Diffusers folder.

    Of SD 1.x, 2.x, SDXL, SD3 and Flux. UserError for what cannot be expressed there; nothing is left under the name of
    `target` then. A file that is there already is replaced once the new one is whole; a folder is not.
    """
    if source.absolute().resolve() == target.absolute().resolve():
        raise UserError(f"{target} is the source itself.", fix="name another file or folder to write to.")
    if (source / TRANSFORMER).is_file() or is_transformer_folder(source):
        return _transformer_folder(source, target, choices, report)
    if source.is_dir():
        _refuse_averages(source, choices)
        opened = model_source.open_folder(source)
    else:
        file = open_weights(source)
        if any(mark in name for name in file.tensors for mark in TRANSFORMER_MARKS):
            return _transformer_file(file, target, choices, report)
        if is_file_name(target):
            return _repack(file, target, choices, report)
        opened = model_source.open_file(file, choices.config_from, choices.ema)
    if choices.vae:
        opened = model_source.with_vae(opened, choices.vae)
    if is_file_name(target):
        return _to_file(opened, target, choices, report)
    return _to_folder(opened, target, choices, report)


# ------------------------------------------------------------------ SD 1.x, 2.x, SDXL


def _to_file(source: Source, target: Path, choices: ConversionChoices, report: Report) -> ConvertedModel:
    tensors = single_file_plan(source.kind, source.configs, source.parts, source.extras, choices.dtype)
    facts = Facts.of(source.kind, source.configs)
    if any(name in EDM_MARKS for name in source.extras):
        facts = replace(facts, prediction="edm")
    if facts.prediction == "v_prediction":
        zero_snr = bool(json.loads(source.configs.get(SCHEDULER, "{}")).get("rescale_betas_zero_snr"))
        if zero_snr or source.kind.startswith("sdxl"):
            tensors += [mark(name) for name in MARKS[: 1 + zero_snr]]
    header = modelspec(target.stem, facts)
    if not is_stock(source.configs, source.kind):
        header[METADATA_KEY] = pack(source.configs)
    header |= as_text(choices.metadata)
    yaml, notes = _yaml_beside(target, facts, lambda: source.configs)
    write_file(target, tensors, header, report, choices.sha256, yaml)
    return ConvertedModel(family_of(source.configs), "single_file", target, (*source.notes, *notes))


def _to_folder(source: Source, target: Path, choices: ConversionChoices, report: Report) -> ConvertedModel:
    planned = folder_plan(source.parts, choices.dtype)
    extras = [new_tensor(name, (weight,), choices.dtype) for name, weight in source.extras.items()]
    write_folder(target, source.configs, planned, extras, report)
    notes = (*source.notes, *_missing(source.configs, target))
    if any(name in EDM_MARKS for name in source.extras):
        notes += (f"{EDM_NOTE}: {SCHEDULER} does not fit it, put one of diffusers' EDM schedulers there.",)
    return ConvertedModel(family_of(source.configs), "diffusers", target, notes)


def _repack(file: TensorFile, target: Path, choices: ConversionChoices, report: Report) -> ConvertedModel:
    """Single file to single file: .ckpt or .safetensors, another dtype, averaged weights, another VAE."""
    kind = single_file_kind(file.tensors)
    names, notes = names_to_take(file, choices.ema)
    vae = None
    if choices.vae:
        own = model_source.own_vae(file, kind)
        vae, told = model_source.other_vae(choices.vae, own, kind)
        notes += told
    tensors = repacked_plan(file, names, choices.dtype, vae)
    facts = file_facts(file, kind)
    kept = {key: value for key, value in file.metadata.items() if key not in HASHES}
    header = modelspec(target.stem, facts) | kept | as_text(choices.metadata)
    yaml, told = _yaml_beside(target, facts, lambda: file_configs(file, choices.config_from))
    write_file(target, tensors, header, report, choices.sha256, yaml)
    family = "sdxl" if kind.startswith("sdxl") else kind
    return ConvertedModel(cast(Family, family), "single_file", target, notes + told)


def _yaml_beside(
    target: Path, facts: Facts, configs: Callable[[], Mapping[str, str]]
) -> tuple[str, tuple[str, ...]]:
    """The text of the .yaml that A1111 needs for a model that predicts velocity ("": none), and notes on what it predicts.

    UserError when a .yaml of that name is there and says another thing: A1111 would go by it.
    """
    if facts.prediction == "edm":
        return "", (f"{EDM_NOTE}: no header entry says so.",)
    beside = target.with_suffix(".yaml")
    away = "name another file to write to, or move the .yaml away first."
    if not needs_yaml(facts.kind, facts.channels, facts.prediction):
        if facts.prediction == "epsilon" and said_beside(target) == "v_prediction":
            raise UserError(
                f"{beside} is there already and says that the model predicts velocity; this one predicts noise.",
                fix=away,
            )
        return "", ()
    if facts.guessed:  # written down it would be a fact to the next who reads it
        note = f"Nothing says what the model predicts, velocity by the look of its weights: no {beside.name} is written."
        return "", (note,)
    text = velocity_yaml(facts.kind, configs())
    kept = beside.exists() and not (beside.is_file() and beside.read_bytes() == text.encode())
    if kept and said_beside(target) != "v_prediction":
        raise UserError(
            f"{beside} is there already and does not say that this model predicts velocity.", fix=away
        )
    note = f"{beside.name} beside it tells A1111 and Forge that it predicts velocity: keep the two together."
    if kept:
        note += " It was there already, with other settings than those made here, and is kept."
    return text, (note,)


def _missing(configs: Mapping[str, str], target: Path) -> tuple[str, ...]:
    """What a new folder lacks, and how to add it."""
    notes = []
    index = json.loads(configs.get("model_index.json", "{}"))
    if (index.get("depth_estimator") or [None])[0]:
        notes.append(
            f"{target} lacks depth_estimator/ and feature_extractor/, which diffusers wants for depth models: copy "
            "them from stable-diffusion-2-depth."
        )
    if missing := missing_tokenizers(configs):
        folders = " and ".join(f"{name}/" for name in missing)
        notes.append(
            f"{target} lacks {folders}: the file holds none, and none was found on this machine. Convert again with "
            "--config-from FOLDER (any Stable Diffusion 1.5 folder), or copy its tokenizer/ there."
        )
    return tuple(notes)


# ------------------------------------------------------------------ SD3, Flux


def _transformer_folder(
    source: Path, target: Path, choices: ConversionChoices, report: Report
) -> ConvertedModel:
    from fastsd_lib.formats.transformer_files import plan_export, plan_folder
    from fastsd_lib.formats.transformer_words import piece_files

    _refuse_averages(source, choices)
    if not is_file_name(target):
        configs, parts = plan_folder(source, choices.dtype, choices.vae)
        write_folder(target, configs, parts, [], report, copies=piece_files(source))
        family = _transformer_family(tensor.name for tensor in parts["transformer"])
        return ConvertedModel(family, "diffusers", target, _vae_notes(choices, family))
    tensors, header = plan_export(source, choices.dtype, vae=choices.vae)
    header = header | {f"{PREFIX}title": target.stem} | as_text(choices.metadata)
    write_file(target, tensors, header, report, choices.sha256)
    family = _transformer_family(tensor.name for tensor in tensors)
    return ConvertedModel(family, "single_file", target, _vae_notes(choices, family))


def _transformer_file(
    file: TensorFile, target: Path, choices: ConversionChoices, report: Report
) -> ConvertedModel:
    from fastsd_lib.formats.transformer_files import plan_import, plan_repack
    from fastsd_lib.formats.transformer_words import import_notes

    _refuse_averages(file.path, choices)
    family = _transformer_family(file.tensors)
    notes = _vae_notes(choices, family)
    if is_file_name(target):
        tensors, header = plan_repack(file, choices.dtype, choices.vae)
        write_file(target, tensors, header | as_text(choices.metadata), report, choices.sha256)
        return ConvertedModel(family, "single_file", target, notes)
    configs, parts = plan_import(file, choices.dtype, choices.config_from, choices.vae)
    write_folder(target, configs, parts, [], report)
    return ConvertedModel(family, "diffusers", target, (*notes, *import_notes(configs, parts)))


def _vae_notes(choices: ConversionChoices, family: Family) -> tuple[str, ...]:
    from fastsd_lib.formats.transformer_vae import vae_notes

    return vae_notes(choices.vae, family) if choices.vae else ()


def _transformer_family(names: Iterable[str]) -> Family:
    marks = ("joint_blocks.0.", "pos_embed.proj.")  # in a file, in a folder
    return "sd3" if any(mark in name for name in names for mark in marks) else "flux"


def _refuse_averages(source: Path, choices: ConversionChoices) -> None:
    if choices.ema == "use":
        raise UserError(
            f"{source} has no averaged (EMA) weights; single files of SD 1.x and 2.x may.",
            fix="leave --ema out: its weights are the only ones.",
        )
