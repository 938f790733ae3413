"""ControlNets and T2I-Adapters between their inventors' files and diffusers' folders; no number of a weight changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.ckpt_file import open_weights
from fastsd_lib.formats.control_file import OLD_PREFIX, ControlFile, open_control_file
from fastsd_lib.formats.control_names import (
    adapter_config,
    adapter_table,
    control_config,
    control_table,
    count_hints,
    layout_is_sound,
)
from fastsd_lib.formats.key_maps import missing_modules, rename
from fastsd_lib.formats.modelspec import HASHES
from fastsd_lib.formats.part_writing import WEIGHTS, check_target, write_part
from fastsd_lib.formats.plans import new_tensor
from fastsd_lib.formats.stored_weight import Weight

Naming = Literal["original", "diffusers"]
# Networks that go round under the same names everywhere: a tensor's name that holds this -> what it is.
ONE_NAMING = {
    "task_embedding": "a ControlNet Union",
    "control_add_embedding": "a ControlNet Union",
    "controlnet_x_embedder": "a ControlNet of a transformer (Flux)",
    "controlnet_blocks.": "a ControlNet of a transformer (SD 3, Flux)",
    "lora_controlnet": "a Control-LoRA",
}
PREFIX = "fastsd.prefix"  # metadata: what the original names began with, for the way back


def convert_control(
    source: Path,
    target: Path,
    naming: Naming,
    dtype: str | None = None,
    report: Report = silent,
) -> Path:
    """Write the ControlNet or T2I-Adapter `source` as `target` under the names `naming`.

    `source`: a .safetensors, .pth or .ckpt of plain weights, or a Diffusers folder. `target`: a file
    (.safetensors, .ckpt), or a new folder, which gets diffusers' names and a config: its own, else one read from the
    shapes. SD 1.x, 2.x, SDXL. `dtype`: fp16, bf16, fp32, or None to keep every byte.

    UserError, naming the tensor, for what is neither, for ControlNets without two namings (Union, Flux, SD 3,
    Control-LoRA), and for what is damaged; `target` is whole or not there.
    """
    check_target(target, naming)
    file = _opened(source)
    for part, kind in ONE_NAMING.items():
        if any(part in name for name in file.tensors):
            raise UserError(f"{source} is {kind}, which has one naming only.", fix="use it as it is.")
    if _is_adapter(file):
        config, tensors = _adapter(source, file, naming, dtype)
        kept: dict[str, str] = {}
    else:
        control = open_control_file(source, open_weights)
        config, tensors, kept = _control(control, naming, dtype)
    carried = {key: value for key, value in file.metadata.items() if key not in ("format", *HASHES)}
    return write_part(target, config, tensors, carried | kept, report)


def _opened(source: Path) -> TensorFile:
    if not source.is_dir():
        return open_weights(source)
    if not (source / WEIGHTS).is_file():
        return open_control_file(source).file  # a variant, or an error that says what is missing
    return open_weights(source / WEIGHTS)


# ------------------------------------------------------------------ ControlNet


def _control(
    control: ControlFile, naming: Naming, dtype: str | None
) -> tuple[Mapping[str, Any], list[NewTensor], dict[str, str]]:
    tensors = control.file.tensors
    prefix = OLD_PREFIX if any(name.startswith(OLD_PREFIX) for name in tensors) else ""
    names = {name.removeprefix(prefix): name for name in tensors}
    shapes = {name: tensors[key] for name, key in names.items()}
    config = {**control_config(shapes, control.original, control.path), **control.config}
    if not layout_is_sound(config):
        raise UserError(
            f"The config that belongs to {control.path} is none of a ControlNet's.",
            fix="take its own config.json, or none: it can be read from the shapes.",
        )
    table = control_table(config, count_hints(names))
    if control.original:
        table = {theirs: ours for ours, theirs in table.items()}
    renamed = {name: rename(name, table) for name in names}
    stranger = next((name for name, other in renamed.items() if other is None), None)
    if stranger is not None:
        raise UserError(
            f"{control.path} holds {escaped(names[stranger])[:100]}, which no ControlNet of this shape has.",
            fix="put the config.json of its Diffusers folder beside it, or download it again.",
        )
    if missing := missing_modules(set(names), table):
        raise UserError(
            f"{control.path} lacks {len(missing)} modules of a ControlNet of this shape, first {missing[0]}.",
            fix="download it again; one of another shape than those of Stable Diffusion is used as it is.",
        )
    to_original = naming == "original"
    new_prefix = control.file.metadata.get(PREFIX, OLD_PREFIX) if to_original else ""
    if new_prefix not in ("", OLD_PREFIX):
        new_prefix = OLD_PREFIX
    if control.original and to_original:
        new_prefix = prefix
    planned = []
    for name, key in names.items():
        other = name if control.original == to_original else str(renamed[name])
        planned.append(
            new_tensor(new_prefix + other, (Weight(control.file, key, tensors[key].shape),), dtype)
        )
    return config, planned, {PREFIX: prefix} if control.original and not to_original else {}


# ------------------------------------------------------------------ T2I-Adapter


def _is_adapter(file: TensorFile) -> bool:
    marks = ("adapter.body.0.resnets.0.block1.weight", "body.0.block1.weight", "body.0.body.0.block1.weight")
    return any(mark in file.tensors for mark in marks)


def _adapter(
    source: Path, file: TensorFile, naming: Naming, dtype: str | None
) -> tuple[Mapping[str, Any], list[NewTensor]]:
    table = adapter_table(file.tensors, source)
    ours = any(name.startswith("adapter.") for name in table)
    shapes = {(name if ours else other): file.tensors[name] for name, other in table.items()}
    config = adapter_config(shapes, source)
    if source.is_dir() and (source / "config.json").is_file():
        config |= read_json(source / "config.json")
    elif said := file.metadata.get("config"):
        config |= _parsed(said)
    keep = ours == (naming == "diffusers")
    return config, [
        new_tensor(name if keep else other, (Weight(file, name, file.tensors[name].shape),), dtype)
        for name, other in table.items()
    ]


def _parsed(said: str) -> dict[str, Any]:
    try:
        config = json.loads(said)
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
