"""Diffusers folder -> one SD 1.x `.safetensors` file, and back: tensor by tensor, in constant memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, read_json
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile, read_tensor_file, tensor_hashes, write_tensor_file
from fastsd_lib.formats import configs as pipeline_configs
from fastsd_lib.formats.casting import cast_chunks, target_dtype
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
LEFTOVERS = ("model_ema.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus_", "posterior_", "logvar", "lvlb_")


def export_single_file(
    model: ModelFiles,
    out: Path,
    dtype: str | None = "fp16",
    metadata: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> ModelFiles:
    """Write the Diffusers folder `model` as one file that A1111, ComfyUI and diffusers read.

    `dtype`: fp16, bf16, fp32, or None to keep every tensor's bytes as they are. `metadata` joins the modelspec
    entries of the header; values that are not text are stored as JSON (a recipe, for example). The file is read
    back and compared, tensor by tensor, before it takes its name. UserError for a folder that cannot be
    expressed as an SD 1.x file.
    """
    if model.layout != "diffusers" or model.family != "sd1":
        raise UserError(
            f"{model.path} is {model.family} as {model.layout.replace('_', ' ')}; this export takes an SD 1.x folder.",
            fix="name a Diffusers folder of an SD 1.x model.",
        )
    if out.suffix != ".safetensors":
        raise UserError(f"{out.name} does not end in .safetensors.", fix=f"write to {out.stem}.safetensors.")
    texts = pipeline_configs.read_configs(model.path)
    tensors = list(_exported_tensors(model.path, texts, dtype))
    header = _modelspec(out.stem, texts, tensors) | _as_text(metadata or {})
    if not pipeline_configs.is_stock_sd1(texts):
        header[pipeline_configs.METADATA_KEY] = pipeline_configs.pack(texts)
    task = f"writing {out.name}"
    with atomic_path(out) as scratch:
        watched = [_watched(tensor, report, task, number, len(tensors)) for number, tensor in enumerate(tensors)]
        hashes = write_tensor_file(scratch, watched, header, hash_key="modelspec.hash_sha256")
        _verify(scratch, out, hashes)
        report(ProgressEvent(task, len(tensors), len(tensors)))
    return ModelFiles("sd1", "single_file", out)


def import_single_file(
    path: Path, out_dir: Path, config_from: Path | None = None, report: Report = silent
) -> ModelFiles:
    """Write an SD 1.x single file as a Diffusers folder; no bytes of a weight change.

    Shapes and tokenizer come from the file itself when fastsd wrote them there, else from the Diffusers folder
    `config_from` (any SD 1.x pipeline of the same shape; only its small files are read). `out_dir` must be new
    or empty; it appears only when it is complete.
    """
    source = read_tensor_file(path)
    texts = single_file_configs(source, config_from)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} is there already.", fix="name a new folder, or remove the old one first.")
    parts = imported_tensors(source, texts)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    scratch = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.partial")
    try:
        pipeline_configs.write_configs(texts, scratch)
        for number, (part, tensors) in enumerate(parts.items()):
            report(ProgressEvent(f"unpacking {path.name}", number, len(parts)))
            with atomic_path(scratch / part / f"{WEIGHT_NAMES[part]}.safetensors") as weights:
                hashes = write_tensor_file(weights, tensors, {"format": "pt"})
                _verify(weights, out_dir / part, hashes)
        if out_dir.exists():
            out_dir.rmdir()  # empty: checked above
        os.replace(scratch, out_dir)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(ProgressEvent(f"unpacking {path.name}", len(parts), len(parts)))
    return ModelFiles("sd1", "diffusers", out_dir)


def single_file_configs(source: TensorFile, config_from: Path | None = None) -> dict[str, str]:
    """The configs and tokenizer that belong to a single file: its own, else those of a folder beside it."""
    packed = source.metadata.get(pipeline_configs.METADATA_KEY)
    if packed:
        return pipeline_configs.unpack(packed, source.path)
    if config_from is None:
        raise UserError(
            f"{source.path} holds weights only, no configs and no tokenizer.",
            fix="name a Diffusers folder of the same shape to take them from (an SD 1.5 folder for an SD 1.5 file).",
        )
    return pipeline_configs.read_configs(config_from)


def imported_tensors(source: TensorFile, texts: Mapping[str, str]) -> dict[str, list[NewTensor]]:
    """The tensors of each part of the pipeline under their Diffusers names, as streams out of `source`.

    UserError for tensors that an SD 1.x model of this shape does not have, or that are missing.
    """
    parts: dict[str, list[NewTensor]] = {part: [] for part in SD1_PREFIXES}
    inverse = {part: {theirs: ours for ours, theirs in table.items()} for part, table in _tables(texts).items()}
    strangers = []
    for name, tensor in source.tensors.items():
        part = next((part for part, prefix in SD1_PREFIXES.items() if name.startswith(prefix)), None)
        inner = name[len(SD1_PREFIXES[part]) :] if part else name
        if part is None or inner.endswith("position_ids"):
            if part is None and not name.startswith(LEFTOVERS):
                strangers.append(name)
            continue
        if part == "text_encoder":
            inner = _with_text_model(inner)
        ours = rename(inner, inverse[part])
        if ours is None:
            strangers.append(name)
            continue
        shape = tensor.shape
        if part == "vae" and ".attentions." in ours and len(shape) == 4:
            shape = shape[:2]  # SD 1.x stores these projections as 1x1 convolutions
        parts[part].append(NewTensor(ours, tensor.dtype, shape, partial(source.chunks, name)))
    for part, tensors in parts.items():
        _check_complete(source.path, part, {tensor.name for tensor in tensors}, _tables(texts)[part])
    _refuse_strangers(source.path, strangers)
    return parts


@dataclass(frozen=True)
class _Weights:
    """The tensors of one part of a pipeline, wherever its files put them."""

    files: Mapping[str, TensorFile] = field(default_factory=dict)  # tensor name -> file that holds it


def _exported_tensors(folder: Path, texts: Mapping[str, str], dtype: str | None) -> Iterator[NewTensor]:
    for part, table in _tables(texts).items():
        weights = _find_weights(folder / part, WEIGHT_NAMES[part])
        names, strangers = set(), []
        for name, file in weights.files.items():
            if name.endswith("position_ids"):
                continue  # 0, 1, 2 ...: current transformers refuse it, the others make it
            ours = _modern_name(part, name)
            theirs = rename(ours, table)
            if theirs is None:
                strangers.append(f"{part}/{name}")
                continue
            names.add(ours)
            yield _exported(file, name, SD1_PREFIXES[part] + theirs, part == "vae" and ".attentions." in ours, dtype)
        _refuse_strangers(folder, strangers)
        _check_complete(folder, part, names, table)


def _exported(file: TensorFile, name: str, new_name: str, projection: bool, dtype: str | None) -> NewTensor:
    tensor = file.tensors[name]
    target = target_dtype(tensor.dtype, dtype)
    chunks: Callable[[], Any] = partial(file.chunks, name)
    if target != tensor.dtype:
        chunks = partial(_cast, file, name, target)
    as_convolution = projection and name.endswith(".weight") and len(tensor.shape) == 2
    return NewTensor(new_name, target, tensor.shape + (1, 1) if as_convolution else tensor.shape, chunks)


def _cast(file: TensorFile, name: str, target: str) -> Iterator[bytes]:
    return cast_chunks(file.chunks(name), name, file.tensors[name].dtype, target)


def _tables(texts: Mapping[str, str]) -> dict[str, Table]:
    return {
        "unet": unet_table(json.loads(texts["unet/config.json"])),
        "vae": vae_table(json.loads(texts["vae/config.json"])),
        "text_encoder": text_encoder_table(),
    }


def _modern_name(part: str, name: str) -> str:
    """Both spellings that folders use, brought to one."""
    if part == "text_encoder":
        return _with_text_model(name)
    if part == "vae" and ".attentions." in name:
        head, _, word = name.rpartition(".")
        stem, _, last = head.rpartition(".")
        return f"{stem}.{VAE_ATTENTION_OLD.get(last, last)}.{word}"
    return name


def _with_text_model(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _find_weights(folder: Path, stem: str) -> _Weights:
    """Plain file, shards with an index, or the single `variant` that is there (model.fp16.safetensors)."""
    plain, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if plain.is_file():
        file = read_tensor_file(plain)
        return _Weights(dict.fromkeys(file.tensors, file))
    if index.is_file():
        shards = {name: read_tensor_file(folder / name) for name in set(read_json(index)["weight_map"].values())}
        return _Weights({name: shards[shard] for name, shard in read_json(index)["weight_map"].items()})
    variants = [path for path in sorted(folder.glob(f"{stem}.*.safetensors")) if ".non_ema." not in path.name]
    if len(variants) == 1:
        file = read_tensor_file(variants[0])
        return _Weights(dict.fromkeys(file.tensors, file))
    if variants:
        raise UserError(
            f"{folder} holds several variants and no plain one: {', '.join(path.name for path in variants)}.",
            fix=f"rename the one you mean to {plain.name}.",
        )
    raise UserError(
        f"{folder} holds no {plain.name}.",
        fix="download the model again with its .safetensors weights; pickled .bin files are not opened.",
    )


def _modelspec(title: str, texts: Mapping[str, str], tensors: list[NewTensor]) -> dict[str, str]:
    """The header entries of https://github.com/Stability-AI/ModelSpec that other programs show."""
    unet, vae = json.loads(texts["unet/config.json"]), json.loads(texts["vae/config.json"])
    scheduler = json.loads(texts.get("scheduler/scheduler_config.json", "{}"))
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


def _watched(tensor: NewTensor, report: Report, task: str, number: int, total: int) -> NewTensor:
    def chunks() -> Any:
        report(ProgressEvent(task, number, total))
        return tensor.chunks()

    return NewTensor(tensor.name, tensor.dtype, tensor.shape, chunks)


def _verify(written: Path, final: Path, hashes: Mapping[str, str]) -> None:
    found = tensor_hashes(read_tensor_file(written))
    if found != hashes:
        wrong = next(name for name in hashes if found.get(name) != hashes[name])
        raise UserError(
            f"{final} reads back differently from what was written (first at {wrong}): the disk is failing or full.",
            fix="write to another disk.",
        )


def _check_complete(origin: Path, part: str, names: set[str], table: Table) -> None:
    missing = missing_modules(names, table)
    if missing:
        raise UserError(
            f"{origin} lacks {len(missing)} modules that a {part} of this shape has, first {missing[0]}.",
            fix="the configs belong to another model, or the file is incomplete: take the model's own configs.",
        )


def _refuse_strangers(origin: Path, names: list[str]) -> None:
    if names:
        raise UserError(
            f"{origin} holds {len(names)} tensors that an SD 1.x model of this shape has not, first {names[0]}.",
            fix="the configs belong to another model, or it is no SD 1.x model: `identify` says what it is.",
        )
