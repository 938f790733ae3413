"""Tiny SD3 and Flux models in their folders, and the way of their weights into a file and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import save_flux, save_sd3

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import read_tensor_file, write_tensor_file
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.transformer_files import plan_export, plan_import

MODELS = {
    "dev": lambda folder: save_flux(folder),
    "schnell": lambda folder: save_flux(folder, guidance=False),
    "3 medium": lambda folder: save_sd3(folder),
    "3.5 medium": lambda folder: save_sd3(folder, "3.5 medium", layers=3),
    "3.5 large": lambda folder: save_sd3(folder, "3.5 large", t5=False),
}


def written(folder: Path, path: Path, bare: bool = False, **choices) -> Path:
    tensors, header = plan_export(folder, **({"dtype": None} | choices))
    if bare:
        header.pop(METADATA_KEY, None)
    write_tensor_file(path, tensors, header)
    return path


def imported(path: Path, folder: Path, dtype: str | None = None) -> Path:
    configs, parts = plan_import(read_tensor_file(path), dtype)
    for name, text in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    for part, tensors in parts.items():
        (folder / part).mkdir(exist_ok=True)
        stem = "diffusion_pytorch_model" if part in ("transformer", "vae") else "model"
        write_tensor_file(folder / part / f"{stem}.safetensors", tensors, {"format": "pt"})
    return folder


def weights(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (file,) = (folder / part).glob("*.safetensors")
    return {name.removeprefix("text_model."): one for name, one in load_file(file).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert sorted(one) == sorted(other)
    for name in one:
        assert one[name].dtype == other[name].dtype, name
        bits, others = (weight.contiguous().view(torch.uint8) for weight in (one[name], other[name]))
        assert torch.equal(bits, others), name


def refused(tensors: dict[str, torch.Tensor], path: Path, metadata: dict | None = None) -> str:
    save_file(tensors, path, metadata)
    with pytest.raises(UserError) as told:
        plan_import(read_tensor_file(path))
    said, way_out = str(told.value).split("\n")
    return said + way_out


def whole(family: str, config: dict):
    """diffusers' transformer of this config."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    kind = FluxTransformer2DModel if family == "flux" else SD3Transformer2DModel
    return kind(**{key: value for key, value in config.items() if not key.startswith("_")})
