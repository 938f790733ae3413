"""VAEs between single files of latent-diffusion's names and diffusers' folders; no number of a weight changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.key_maps import single_file_kind, vae_table
from fastsd_lib.formats.known_configs import NAMES, bundled
from fastsd_lib.formats.part_writing import check_target, write_part
from fastsd_lib.formats.plans import VAE, new_tensor, vae_plan
from fastsd_lib.formats.vae_file import read_vae

Naming = Literal["original", "diffusers"]
CONFIG = "fastsd.vae_config"  # metadata: the folder's config, which no original name tells
PREFIX = "fastsd.prefix"  # metadata: what the original names began with, for the way back
_TINY = (
    "encoder.layers.0.weight",
    "decoder.layers.1.weight",
    "taesd_decoder.1.weight",
    "taesd_encoder.0.weight",
)
_NOT_IN_SHAPES = (
    "scaling_factor",
    "shift_factor",
    "force_upcast",
    "sample_size",
    "norm_num_groups",
    "act_fn",
)
_SCALED_ALIKE = 4  # latent channels of SD 1.x, 2.x and SDXL: diffusers takes 0.18215 where nothing is said


def convert_vae(
    source: Path,
    target: Path,
    naming: Naming,
    dtype: str | None = None,
    report: Report = silent,
) -> Path:
    """Write the VAE `source` as `target` under the names `naming`.

    `source`: a .safetensors, .ckpt or .pt of plain weights, of the VAE alone or of a whole model of SD 1.x, 2.x or
    SDXL, or a Diffusers folder of a VAE or a pipeline. `target`: a file, or a new folder, which gets diffusers' names
    and a config. `dtype`: fp16, bf16, fp32, or None to keep every byte.

    By how much the latents are scaled is in no weight. A file that was made here tells it, a whole model by its
    family; of another VAE of 4 channels the folder says nothing. UserError for what is no whole VAE, for TAESD, and for
    a file of 16 channels (SD 3, Flux) of which nobody knows the scale; `target` is whole or not there.
    """
    is_file = check_target(target, naming)
    file = None if source.is_dir() else open_weights(source)
    if file is not None and any(name in file.tensors for name in _TINY):
        raise UserError(
            f"{source} is a tiny VAE (TAESD), which has the same names everywhere.", fix="use it as it is."
        )
    config, weights = read_vae(source, open_weights)
    if file is not None:
        config = _with_scale(config, file, source, is_file)
    if naming == "diffusers":
        tensors = [new_tensor(name, (weight,), dtype) for name, weight in weights.items()]
        prefix = _prefix_alone(file)
        return write_part(target, config, tensors, {PREFIX: prefix} if prefix else {}, report)
    first = next(iter(weights.values())).file
    prefix = _prefix_alone(first) or first.metadata.get(PREFIX, "")
    start = VAE if prefix == VAE else ""
    tensors = [
        replace(tensor, name=start + tensor.name.removeprefix(VAE))
        for tensor in vae_plan(weights, vae_table(config), dtype)
    ]
    return write_part(target, config, tensors, {CONFIG: json.dumps(config)}, report)


def _prefix_alone(file: TensorFile | None) -> str:
    """What all names of a VAE's own file begin with; "" within a whole model."""
    return VAE if file is not None and all(name.startswith(VAE) for name in file.tensors) else ""


def _with_scale(config: dict[str, Any], file: TensorFile, source: Path, is_file: bool) -> dict[str, Any]:
    said = _said(file)
    if said:
        return config | said
    model = _published(file)
    if model:
        own = bundled(model)["vae/config.json"]
        return config | {key: own[key] for key in _NOT_IN_SHAPES if key in own}
    if config["latent_channels"] != _SCALED_ALIKE and not is_file:
        raise UserError(
            f"{source} has {config['latent_channels']} latent channels and does not say how they are scaled.",
            fix="convert the whole model that it belongs to; its folder has this VAE with its config.",
        )
    return config


def _said(file: TensorFile) -> dict[str, Any]:
    """What a file made here says of its folder's config; nothing for any other."""
    try:
        said = json.loads(file.metadata.get(CONFIG, "{}"))
    except (ValueError, RecursionError):
        return {}
    return {key: said[key] for key in _NOT_IN_SHAPES if key in said} if isinstance(said, dict) else {}


def _published(file: TensorFile) -> str:
    """The bundled model whose latents a whole model in one file has; "" for a VAE alone."""
    if any("joint_blocks.0." in name for name in file.tensors):
        return "sd3-medium"
    if any("double_blocks.0." in name for name in file.tensors):
        return "flux-dev"
    try:
        return NAMES[single_file_kind(file.tensors), 4]
    except UserError:  # no text encoder
        return ""
