"""Diffusers folder -> one SD 1.x `.safetensors` file, and back: tensor by tensor, in constant memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.pickle_header import is_pickled, read_pickle_header
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile, read_tensor_file
from fastsd_lib.formats import configs as pipeline_configs
from fastsd_lib.formats.casting import cast_chunks, target_dtype
from fastsd_lib.formats.derived_configs import fit_configs
from fastsd_lib.formats.key_maps import SD1_PREFIXES, rename
from fastsd_lib.formats.weights import WEIGHT_NAMES, Weight, folder_weights, key_tables, single_file_weights
from fastsd_lib.formats.writing import write_and_verify


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
    The file is read back and compared, tensor by tensor, before it takes its name. UserError for a folder
    that cannot be expressed as an SD 1.x file.
    """
    if model.layout != "diffusers" or model.family != "sd1":
        raise UserError(
            f"{model.path} is no Diffusers folder of an SD 1.x model ({model.family}, {model.layout}).",
            fix="name a folder that holds model_index.json of an SD 1.x model.",
        )
    if out.suffix != ".safetensors":
        raise UserError(f"{out.name} does not end in .safetensors.", fix=f"write to {out.stem}.safetensors.")
    configs = pipeline_configs.read_configs(model.path)
    tables = key_tables(configs)
    tensors = [
        _exported(weight, SD1_PREFIXES[part] + str(rename(name, tables[part])), dtype)
        for part, weights in folder_weights(model.path, configs).items()
        for name, weight in weights.items()
    ]
    header = _modelspec(out.stem, configs) | _as_text(metadata or {})
    if not pipeline_configs.is_stock_sd1(configs):
        header[pipeline_configs.METADATA_KEY] = pipeline_configs.pack(configs)
    with atomic_path(out) as scratch:
        write_and_verify(scratch, out, tensors, header, report, hash_key="modelspec.hash_sha256")
    return ModelFiles("sd1", "single_file", out)


def import_single_file(
    path: Path, out_dir: Path, config_from: Path | None = None, report: Report = silent
) -> ModelFiles:
    """Write a single file of SD 1.x, SD 2.x or SDXL as a Diffusers folder; no number of a weight changes.

    Shapes and tokenizer come from the file itself when fastsd wrote them there, else from the Diffusers
    folder `config_from` (of the same shape, or for SD 2.x and SDXL any with CLIP's vocabulary; only its small
    files are read). `out_dir` must be new or empty; it appears only when it is complete.
    """
    source = open_single_file(path, report)
    configs = single_file_configs(source, config_from, path)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is there already.", fix="name a new folder, or remove the old one first.")
    parts = single_file_weights(source, configs)
    scratch = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.partial")
    try:
        pipeline_configs.write_configs(configs, scratch)
        for part, weights in parts.items():
            tensors = [
                NewTensor(name, weight.stored.dtype, weight.shape, weight.chunks)
                for name, weight in weights.items()
            ]
            with atomic_path(scratch / part / f"{WEIGHT_NAMES[part]}.safetensors") as file:
                write_and_verify(file, out_dir / part, tensors, {"format": "pt"}, report)
        if out_dir.exists():
            out_dir.rmdir()  # empty: checked above
        os.replace(scratch, out_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return ModelFiles(pipeline_configs.family_of(configs), "diffusers", out_dir)


def open_single_file(path: Path, report: Report = silent) -> TensorFile:
    """A single-file model of either kind: a .safetensors as it is, a .ckpt by the copy that is made of it once."""
    if is_pickled(path):
        from fastsd_lib.formats.ckpt_file import safetensors_copy  # torch loads here

        path = safetensors_copy(path, report=report)
    return read_tensor_file(path)


def carries_configs(path: Path) -> bool:
    """Whether a single file brings its own configs and tokenizer, so that it loads alone."""
    header = read_pickle_header(path) if is_pickled(path) else read_tensor_file(path)
    return pipeline_configs.METADATA_KEY in header.metadata


def single_file_configs(
    source: TensorFile, config_from: Path | None = None, named: Path | None = None
) -> dict[str, str]:
    """The configs and tokenizer that belong to a single file: its own, else with the help of a folder.

    `named`: the file that the user named, when `source` is the copy of a .ckpt.
    """
    packed = source.metadata.get(pipeline_configs.METADATA_KEY)
    if packed:
        return pipeline_configs.unpack(packed, source.path)
    if config_from is None:
        raise UserError(
            f"{source.path} holds weights only, no configs and no tokenizer.",
            fix="name a Diffusers folder of the same kind to take them from (SD 1.5 for SD 1.5; for SD 2 and SDXL "
            "that of SD 1.5 will do, which has the same words).",
        )
    return fit_configs(source, pipeline_configs.read_configs(config_from), config_from, named)


def _exported(weight: Weight, new_name: str, dtype: str | None) -> NewTensor:
    stored = weight.stored
    target = target_dtype(stored.dtype, dtype)
    same = target == stored.dtype
    chunks = partial(weight.file.chunks, weight.key) if same else partial(_cast, weight, target)
    # SD 1.x stores the VAE's attention projections as 1x1 convolutions.
    projection = ".mid.attn_1." in new_name and new_name.endswith(".weight") and len(stored.shape) == 2
    return NewTensor(new_name, target, (*stored.shape, 1, 1) if projection else stored.shape, chunks)


def _cast(weight: Weight, target: str) -> Iterator[bytes]:
    return cast_chunks(weight.file.chunks(weight.key), weight.key, weight.stored.dtype, target)


def _modelspec(title: str, configs: Mapping[str, str]) -> dict[str, str]:
    """The header entries of https://github.com/Stability-AI/ModelSpec that other programs show."""
    unet, vae = json.loads(configs["unet/config.json"]), json.loads(configs["vae/config.json"])
    scheduler = json.loads(configs.get("scheduler/scheduler_config.json", "{}"))
    side_px = unet.get("sample_size", 64) * 2 ** (len(vae["block_out_channels"]) - 1)
    prediction = scheduler.get("prediction_type", "epsilon")
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": title,
        "modelspec.resolution": f"{side_px}x{side_px}",
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
    }


def _as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in metadata.items()
    }
