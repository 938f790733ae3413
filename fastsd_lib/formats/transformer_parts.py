"""Which tensors each part of an SD3 or Flux pipeline has, what single files call them, and what else may lie there."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.flux_maps import flux_table
from fastsd_lib.formats.row_tables import RowTable
from fastsd_lib.formats.sd3_maps import sd3_table
from fastsd_lib.formats.shared_maps import clip_rows, t5_rows, vae_rows
from fastsd_lib.formats.transformer_configs import BODY, TEXT_ENCODERS
from fastsd_lib.formats.weights import LEFTOVERS, modern_name

VAE_PREFIXES = {"flux": "vae.", "sd3": "first_stage_model."}  # what is written; both are read
LABELS = {"flux": "Flux.1", "sd3": "SD3"}
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # text encoders: "model"
# Weights in packed or scaled numbers, which mean nothing without the arithmetic of the program that made them.
PACKED = (
    "scaled_fp8", ".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant",
    ".absmax", ".quant_map", ".weight_scale_2",
)  # fmt: skip
TEXT_LEFTOVERS = ("position_ids", "logit_scale")
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"  # of T5: one matrix under two names


def file_prefix(family: str, part: str, alone: bool) -> str:
    if part == "transformer":
        return "" if alone and family == "flux" else BODY
    return (
        VAE_PREFIXES[family] if part == "vae" else f"text_encoders.{TEXT_ENCODERS[family][part]}.transformer."
    )


def role_of(family: str, part: str) -> str:
    """What a part of the pipeline is: "transformer", "vae", "clip_l", "clip_g" or "t5xxl"."""
    return TEXT_ENCODERS[family].get(part, part)


def part_table(family: str, part: str, configs: Mapping[str, str]) -> RowTable:
    config = json.loads(configs.get(f"{part}/config.json", "{}"))
    role = role_of(family, part)
    if role == "transformer":
        return flux_table(config) if family == "flux" else sd3_table(config)
    if role == "vae":
        return vae_rows(config)
    return t5_rows(config) if role == "t5xxl" else clip_rows(config, projects=family == "sd3")


def own_name(family: str, part: str, key: str) -> str:
    """The spellings of all ages brought to one; T5's and the transformer's have never changed."""
    return modern_name(part, key) if role_of(family, part) in ("vae", "clip_l", "clip_g") else key


def untied(names: Mapping[str, str]) -> dict[str, str]:
    """T5's words under the one name that transformers gives them; the other tensor holds the same numbers."""
    tied = {SHARED: names[TIED]} if TIED in names else {}
    return tied | {name: key for name, key in names.items() if name != TIED}


def is_leftover(family: str, part: str, name: str) -> bool:
    """Training leftovers and buffers, and what the pipeline's class of a text encoder does not have."""
    role = role_of(family, part)
    if role in ("clip_l", "clip_g", "t5xxl"):
        unread = family == "flux" and role == "clip_l" and name == "text_projection.weight"
        return unread or name.endswith(TEXT_LEFTOVERS)
    return name.startswith(LEFTOVERS)


def refuse_packed(origin: Path, names: Iterable[str]) -> None:
    marked = next((name for name in names if name.endswith(PACKED)), None)
    if marked:
        raise UserError(
            f"{origin} holds packed or scaled numbers ({escaped(marked)}), which stand for others.",
            fix="take the model's fp16, bf16 or plain fp8 file.",
        )


def compare_names(
    origin: Path, part: str, family: str, found: Collection[str], wanted: Collection[str]
) -> None:
    """UserError unless every tensor of the shape is there, and no other."""
    known, there = set(wanted), set(found)
    strange = [name for name in found if name not in known]
    if strange:
        raise UserError(
            f"{origin} holds {len(strange)} tensors that no {LABELS[family]} {part} of this shape has, first "
            f"{escaped(strange[0])}.",
            fix=f"it is no {LABELS[family]} model, or its configs are another one's: `identify` says what it is.",
        )
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(
            f"{origin} lacks {len(missing)} of {len(wanted)} tensors of the {part}, first {escaped(missing[0])}.",
            fix="download or copy it again; if it was shared like that, take the full model.",
        )
