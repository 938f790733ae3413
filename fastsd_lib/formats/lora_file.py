"""LoRA files under kohya's names, the ones that A1111, ComfyUI and diffusers read.

`lora_unet_` or `lora_te_` + the module's path with underscores + `.lora_down.weight`, `.lora_up.weight`,
`.alpha`; the correction of a weight is up @ down * alpha / rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile, read_tensor_file, write_tensor_file
from fastsd_lib.formats.casting import cast_chunks, target_dtype
from fastsd_lib.formats.configs import read_configs
from fastsd_lib.formats.weights import Weight, folder_weights
from fastsd_lib.formats.writing import write_and_verify

PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te"}
TENSORS = ("lora_down.weight", "lora_up.weight", "alpha")


@dataclass(frozen=True)
class Correction:
    """What a LoRA file adds to one weight. down: (rank, in, ...), up: (out, rank, ...); fp32."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float  # alpha / rank

    def change(self, strength: float = 1.0) -> torch.Tensor:
        """(out, in, ...), fp32."""
        change = (self.up.flatten(1) * (self.scale * strength)) @ self.down.flatten(1)
        return change.reshape(self.up.shape[0], *self.down.shape[1:])

    def added_to(self, weight: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
        """(out, in, ...), dtype and device of `weight`."""
        change = self.change(strength).reshape(weight.shape)
        return (weight.float() + change.to(weight.device)).to(weight.dtype)


def module_key(part: str, path: str) -> str:
    """ "lora_unet_down_blocks_0_attentions_0_proj_in" of "down_blocks.0.attentions.0.proj_in".

    CLIP's paths begin with `text_model`, as before transformers 5.6, the version that leaves the word out.
    """
    if part == "text_encoder" and not path.startswith("text_model."):
        path = f"text_model.{path}"
    return f"{PREFIXES[part]}_{path.replace('.', '_')}"


def lora_metadata(
    *,
    title: str,
    rank: int,
    alpha: float,
    side_px: int,
    prediction_type: str = "epsilon",
    facts: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """The header entries that kohya's programs (ss_*) and ModelSpec's readers show; `facts` join them as text."""
    known = {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_output_name": title,
        "ss_resolution": f"({side_px}, {side_px})",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": title,
        "modelspec.resolution": f"{side_px}x{side_px}",
        "modelspec.prediction_type": "v" if prediction_type == "v_prediction" else prediction_type,
    }
    more = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in (facts or {}).items()
    }
    return known | more


def export_lora(source: Path, out: Path, dtype: str | None, metadata: Mapping[str, str]) -> Path:
    """Write the adapters in `source` (a checkpoint's `lora.safetensors`) as one file to share, with `metadata`.

    `dtype`: fp16, bf16, fp32, or None to keep the bytes. Read back and compared before it takes its name.
    UserError for a source that is no LoRA file, and for weights that fp16 cannot store.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"{out.name} does not end in .safetensors.", fix=f"write to {out.stem}.safetensors.")
    file = read_tensor_file(source)
    _modules(file)
    dated = {"modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), **metadata}
    tensors = [_exported(file, name, dtype) for name in file.tensors]
    with atomic_path(out) as scratch:
        write_and_verify(scratch, out, tensors, dated, silent, hash_key="modelspec.hash_sha256")
    return out


def read_lora(path: Path) -> dict[str, Correction]:
    """Module key -> correction; UserError for a file that is none, or holds another kind of adapter."""
    modules = _modules(read_tensor_file(path))
    found = {}
    with safe_open(path, framework="pt") as file:
        for key in modules:
            down = file.get_tensor(f"{key}.lora_down.weight").float()
            up = file.get_tensor(f"{key}.lora_up.weight").float()
            rank = down.shape[0]
            alpha = float(file.get_tensor(f"{key}.alpha")) if "alpha" in modules[key] else float(rank)
            found[key] = Correction(down, up, alpha / rank)
    return found


def write_merged(model: ModelFiles, path: Path, out: Path) -> list[Path]:
    """The base model's parts with the LoRA file added: `out`/unet.safetensors, `out`/text_encoder.safetensors.

    `model` is a Diffusers folder; a part that the file does not touch is not written. Constant memory. UserError, and
    nothing written, when the file was made for a model of another shape.
    """
    corrections = read_lora(path)
    folder = folder_weights(model.path, read_configs(model.path))
    keys = {
        part: {name: module_key(part, name.removesuffix(".weight")) for name in folder[part]}
        for part in PREFIXES
    }
    shapes = {keys[part][name]: one.shape for part in PREFIXES for name, one in folder[part].items()}
    _refuse_misfits(path, corrections, shapes)
    written = []
    for part in PREFIXES:
        if not any(key in corrections for key in keys[part].values()):
            continue
        tensors = [
            NewTensor(
                name,
                weight.stored.dtype,
                weight.shape,
                partial(_merged, weight, corrections.get(keys[part][name])),
            )
            for name, weight in folder[part].items()
        ]
        with atomic_path(out / f"{part}.safetensors") as scratch:
            write_tensor_file(scratch, tensors, {"format": "pt"})
        written.append(out / f"{part}.safetensors")
    return written


def _merged(weight: Weight, correction: Correction | None) -> Iterator[bytes]:
    if correction is None:
        yield from weight.file.chunks(weight.key)
        return
    with safe_open(weight.file.path, framework="pt") as file:
        stored = file.get_tensor(weight.key).reshape(weight.shape)
    yield correction.added_to(stored).contiguous().view(torch.uint8).numpy().tobytes()


def _exported(file: TensorFile, name: str, dtype: str | None) -> NewTensor:
    stored = file.tensors[name]
    # Alpha is one number: rounding it would scale the whole correction.
    target = stored.dtype if name.endswith(".alpha") else target_dtype(stored.dtype, dtype)
    chunks = partial(file.chunks, name)
    if target != stored.dtype:
        chunks = partial(_cast, file, name, target)
    return NewTensor(name, target, stored.shape, chunks)


def _cast(file: TensorFile, name: str, target: str) -> Iterator[bytes]:
    return cast_chunks(file.chunks(name), name, file.tensors[name].dtype, target)


def _modules(file: TensorFile) -> dict[str, set[str]]:
    """Module key -> which of its three tensors there are; UserError when it is no plain LoRA file."""
    found: dict[str, set[str]] = {}
    for name in file.tensors:
        key, _, tensor = name.partition(".")
        if tensor not in TENSORS or not key.startswith(tuple(f"{one}_" for one in PREFIXES.values())):
            raise UserError(
                f"{file.path} is no LoRA of kohya's kind for SD 1.x: it holds {name}.",
                fix="take a LoRA that was made for Stable Diffusion 1.x, as .safetensors.",
            )
        found.setdefault(key, set()).add(tensor)
    incomplete = [key for key, tensors in found.items() if not tensors >= set(TENSORS[:2])]
    if incomplete or not found:
        what = f"{incomplete[0]} lacks half of its weights" if incomplete else "it is empty"
        raise UserError(f"{file.path} is no whole LoRA: {what}.", fix="download or copy it again.")
    return found


def _refuse_misfits(
    path: Path, corrections: Mapping[str, Correction], shapes: Mapping[str, Iterable[int]]
) -> None:
    for key, one in corrections.items():
        wanted = tuple(shapes.get(key, ()))
        if wanted[:2] != (one.up.shape[0], one.down.shape[1]) or wanted[2:] != tuple(one.down.shape[2:]):
            raise UserError(
                f"{path} does not fit this model: {key} is {'of another shape' if wanted else 'unknown'} there.",
                fix="take the LoRA with the base model that it was trained on, or one of the same shape.",
            )
