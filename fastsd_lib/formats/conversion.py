"""Whole models from one layout to another: Diffusers folder, .safetensors, .ckpt, in every direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import Report, silent

FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt")


@dataclass(frozen=True)
class ConversionChoices:
    """How a model is written anew; the defaults keep every bit of it."""

    dtype: Literal["fp16", "bf16", "fp32"] | None = None  # None: every tensor as it is
    vae: Path | None = None  # takes the place of the model's own: file, folder, or whole model
    ema: Literal["drop", "use", "keep"] = "drop"  # averaged weights beside the others, in old checkpoints
    config_from: Path | None = None  # Diffusers folder that lends configs and tokenizer to a bare file
    metadata: Mapping[str, Any] = field(default_factory=dict)  # joins the header: recipe, author, licence
    naming: Literal["auto", "original", "diffusers", "kohya", "peft"] = "auto"  # of what is no whole model
    sha256: bool = True  # modelspec.hash_sha256 over all weights, in the header of a .safetensors


@dataclass(frozen=True)
class ConvertedModel(ModelFiles):
    """A model that was written, with what is to be known of it, a line each."""

    notes: tuple[str, ...] = ()


def convert_model(
    source: Path, target: Path, choices: ConversionChoices = ConversionChoices(), report: Report = silent
) -> ConvertedModel:
    """Write the whole model `source` as `target`: a single file by its suffix, else a Diffusers folder.

    UserError for what cannot be expressed there; nothing is left under the name of `target` then.
    """
    from fastsd_lib.formats.single_file import export_single_file, import_single_file

    if source.is_dir():
        model = ModelFiles("sd1", "diffusers", source)
        made = export_single_file(model, target, choices.dtype, choices.metadata, report)
    else:
        made = import_single_file(source, target, choices.config_from, report)
    return ConvertedModel(made.family, made.layout, made.path)
