"""Single files: opened for loading, and the two ways between one and a Diffusers folder for those who train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.pickle_header import is_pickled, read_pickle_header
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import TensorFile, read_tensor_file
from fastsd_lib.formats import configs as pipeline_configs
from fastsd_lib.formats.ckpt_file import safetensors_copy
from fastsd_lib.formats.vocabulary import missing_tokenizers


def export_single_file(
    model: ModelFiles,
    out: Path,
    dtype: str | None = "fp16",
    metadata: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> ModelFiles:
    """Write the Diffusers folder `model` as one file that A1111, ComfyUI and diffusers read.

    `dtype`: fp16, bf16, fp32, or None to keep every tensor's bytes as they are. `metadata` joins the
    modelspec entries of the header; values that are not text are stored as JSON (a recipe, for example).
    The file is compared with its source, byte by byte, before it takes its name. UserError for a folder
    that cannot be expressed as a single file.
    """
    from fastsd_lib.formats.conversion import ConversionChoices, convert_model

    if model.layout != "diffusers":
        raise UserError(
            f"{model.path} is no Diffusers folder ({model.family}, {model.layout}).",
            fix="name a folder that holds model_index.json.",
        )
    _refuse_other_suffixes(out)
    made = convert_model(
        model.path, out, ConversionChoices(dtype, metadata=metadata or {}, sha256=True), report
    )  # type: ignore[arg-type]
    return ModelFiles(made.family, made.layout, made.path)


def import_single_file(
    path: Path, out_dir: Path, config_from: Path | None = None, report: Report = silent
) -> ModelFiles:
    """Write a single file as a Diffusers folder; no number of a weight changes.

    Shapes and tokenizer come from the file itself when fastsd wrote them there, else from the Diffusers
    folder `config_from` (of the same shape, or for SD 2.x and SDXL any with CLIP's vocabulary; only its small
    files are read), else from what is known of the published models. `out_dir` must be new or empty; it appears only
    when it is complete.
    """
    from fastsd_lib.formats.conversion import ConversionChoices, convert_model

    made = convert_model(path, out_dir, ConversionChoices(config_from=config_from), report)
    return ModelFiles(made.family, made.layout, made.path)


def open_single_file(path: Path, report: Report = silent) -> TensorFile:
    """A single-file model of either kind: a .safetensors as it is, a .ckpt by the copy that is made of it once."""
    if is_pickled(path):
        path = safetensors_copy(path, report=report)
    return read_tensor_file(path)


def carries_configs(path: Path) -> bool:
    """Whether a single file brings its own configs and tokenizer, so that it loads alone."""
    header = read_pickle_header(path) if is_pickled(path) else read_tensor_file(path)
    return pipeline_configs.METADATA_KEY in header.metadata


def single_file_configs(
    source: TensorFile, config_from: Path | None = None, named: Path | None = None
) -> dict[str, str]:
    """The configs and tokenizer that belong to a single file, as `file_configs` finds them, to draw with.

    `named`: the file that the user named, when `source` is the copy of a .ckpt. UserError when no tokenizer is found.
    """
    from fastsd_lib.formats.model_source import file_configs

    configs = file_configs(source, config_from, named)
    if pipeline_configs.METADATA_KEY not in source.metadata and missing_tokenizers(configs):
        raise UserError(
            f"{source.path} holds weights only, no configs and no tokenizer.",
            fix="name a Diffusers folder of the same kind to take them from (SD 1.5 for SD 1.5; for SD 2 and SDXL "
            "that of SD 1.5 will do, which has the same words).",
        )
    return configs


def _refuse_other_suffixes(out: Path) -> None:
    """UserError for the name of a single file that no program would look for."""
    if out.suffix not in (".safetensors", ".ckpt"):
        raise UserError(
            f"{out.name} ends neither in .safetensors nor in .ckpt.", fix=f"write to {out.stem}.safetensors."
        )
