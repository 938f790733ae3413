"""SD3 and Flux from a Diffusers folder to one file and back, as plans: which bytes go where, none of them read.

The layouts: the transformer under Stability's or Black Forest Labs' names (`sd3_maps`, `flux_maps`), the VAE under
latent-diffusion's, the text encoders under those of transformers behind `text_encoders.NAME.transformer.`, as ComfyUI
and Stability's own files have them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import ByteRange, NewTensor, TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats import transformer_configs
from fastsd_lib.formats.casting import cast_chunks, target_dtype
from fastsd_lib.formats.configs import METADATA_KEY
from fastsd_lib.formats.flux_maps import flux_table
from fastsd_lib.formats.row_tables import RowTable
from fastsd_lib.formats.sd3_maps import sd3_table
from fastsd_lib.formats.shared_maps import clip_rows, t5_rows, vae_rows
from fastsd_lib.formats.transformer_configs import FAMILIES, TEXT_ENCODERS, TRANSFORMER, Configs, model_name
from fastsd_lib.formats.weights import LEFTOVERS, Weight, modern_name, part_files

BODY = "model.diffusion_model."
VAE_PREFIXES = {"flux": "vae.", "sd3": "first_stage_model."}  # what is written; both are read
LABELS = {"flux": "Flux.1", "sd3": "SD3"}
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # text encoders: "model"
# Of bundled/ -> what https://github.com/Stability-AI/ModelSpec headers call it.
ARCHITECTURES = {
    "sd3-medium": "stable-diffusion-3-medium",
    "sd35-medium": "stable-diffusion-v3.5-medium",
    "sd35-large": "stable-diffusion-v3.5-large",
    "flux-dev": "flux-1-dev",
    "flux-schnell": "flux-1-schnell",
}
IMPLEMENTATIONS = {
    "flux": "https://github.com/black-forest-labs/flux",
    "sd3": "https://github.com/Stability-AI/sd3.5",
}
# Weights in packed or scaled numbers, which mean nothing without the arithmetic of the program that made them.
PACKED = (
    "scaled_fp8", ".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant",
    ".absmax", ".quant_map", ".weight_scale_2",
)  # fmt: skip
TEXT_LEFTOVERS = ("position_ids", "logit_scale")
SHARED, TIED = "shared.weight", "encoder.embed_tokens.weight"  # of T5: one matrix under two names
ONES = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f", "F32": b"\x00\x00\x80\x3f"}  # the number 1, little-endian


def plan_export(
    folder: Path, dtype: str | None, parts: Collection[str] | None = None
) -> tuple[list[NewTensor], dict[str, str]]:
    """A Diffusers folder of SD3 or Flux as the tensors and the header entries of one file.

    `dtype`: fp16, bf16, fp32, or None to keep every byte. `parts`: of the pipeline, None for all that its
    model_index.json lists; the transformer of Flux alone gets the bare names under which it goes round. UserError for
    a folder that is another model's or lacks a part.
    """
    configs = transformer_configs.folder_configs(folder)
    transformer = json.loads(configs[TRANSFORMER])
    family = FAMILIES[transformer["_class_name"]]
    chosen = _listed_parts(folder, family, configs, parts)
    tensors: list[NewTensor] = []
    for part in chosen:
        places = part_files(folder / part, STEMS.get(part, "model"))
        _refuse_packed(folder / part, places)
        names = {_own_name(family, part, key): key for key in places if not _is_leftover(family, part, key)}
        weights = {
            name: Weight(places[key], key, places[key].tensors[key].shape)
            for name, key in _untied(names).items()
        }
        table = _table(family, part, configs)
        _compare_names(
            folder / part, part, family, weights, [one for row in table.rows.values() for one in row]
        )
        prefix = _prefix(family, part, alone=list(chosen) == ["transformer"])
        tensors += _exported(weights, table, prefix, part, dtype)
    return tensors, _modelspec(folder.name, transformer) | transformer_configs.carried_configs(
        configs, chosen
    )


def plan_import(
    file: TensorFile, dtype: str | None = None
) -> tuple[dict[str, str], dict[str, list[NewTensor]]]:
    """A single file of SD3 or Flux as small files (by their path in the folder) and tensors of each part.

    Only parts that the file holds are planned: the transformer always, VAE and text encoders where they are. The
    file's own configs go first, then the published model's, corrected by the shapes. UserError for other models, for
    files with packed numbers and for those that lack tensors.
    """
    family, keys = _keys_by_part(file)
    shapes = {part: {name: file.tensors[key] for name, key in names.items()} for part, names in keys.items()}
    packed = file.metadata.get(METADATA_KEY)
    configs = (
        transformer_configs.unpacked_configs(packed, file.path)
        if packed
        else transformer_configs.derived_configs(family, shapes, file.path)
    )
    planned: dict[str, list[NewTensor]] = {}
    for part, names in keys.items():
        table = _table(family, part, configs)
        made = _made_projection(family, part, names, configs, file, dtype)
        wanted = set(table.rows) - {tensor.name for tensor in made}
        _compare_names(file.path, part, family, names, wanted)
        weights = {name: Weight(file, key, file.tensors[key].shape) for name, key in names.items()}
        planned[part] = [*_imported(weights, table, part, configs, dtype), *made]
    configs["model_index.json"] = transformer_configs.pipeline_index(family, configs, planned)
    return {name: configs[name] for name in sorted(configs)}, planned


def is_planned_here(family: str) -> bool:
    """Whether models of this family are converted by the two plans above."""
    return family in TEXT_ENCODERS


def import_notes(configs: Mapping[str, str], parts: Collection[str]) -> tuple[str, ...]:
    """What a folder made by `plan_import` still lacks before a picture can be drawn, a line each."""
    family = FAMILIES[json.loads(configs[TRANSFORMER])["_class_name"]]
    missing = [part for part in ("vae", *TEXT_ENCODERS[family]) if part not in parts]
    notes = []
    if missing:
        notes.append(
            f"The file holds no {', '.join(missing)}: take them from a Diffusers folder of the same model."
        )
    words = [part.replace("text_encoder", "tokenizer") for part in TEXT_ENCODERS[family] if part in parts]
    if absent := [name for name in words if not any(key.startswith(f"{name}/") for key in configs)]:
        notes.append(
            f"The file holds no {', '.join(absent)}: copy them from a Diffusers folder of the same model."
        )
    return tuple(notes)


# ------------------------------------------------------------------ folder to file


def _listed_parts(
    folder: Path, family: str, configs: Mapping[str, str], asked: Collection[str] | None
) -> list[str]:
    every = ["transformer", "vae", *TEXT_ENCODERS[family]]
    if asked is not None:
        if strange := sorted(set(asked) - set(every)):
            raise UserError(
                f"No part {strange[0]!r} in a {LABELS[family]} model.", fix=f"name {', '.join(every)}."
            )
        chosen = [part for part in every if part in asked]
    elif "model_index.json" in configs:
        index = json.loads(configs["model_index.json"])
        chosen = [part for part in every if (index.get(part) or [None])[0]]
    else:
        chosen = [part for part in every if (folder / part).is_dir()]
    if "transformer" not in chosen:
        raise UserError(
            f"{folder} lists no transformer.", fix="name a whole Diffusers folder of SD3 or Flux."
        )
    for part in chosen:
        if f"{part}/config.json" not in configs:
            raise UserError(
                f"{folder} is not a whole Diffusers folder: {part}/config.json is missing.",
                fix=f"download it, or write [null, null] for {part} in model_index.json to leave it out.",
            )
    return chosen


def _exported(
    weights: Mapping[str, Weight], table: RowTable, prefix: str, part: str, dtype: str | None
) -> Iterator[NewTensor]:
    order = {name: number for number, name in enumerate(weights)}  # neighbours on the disk stay neighbours
    for theirs, ours in sorted(table.rows.items(), key=lambda row: order[row[1][0]]):
        pieces = [weights[name] for name in ours]
        first = pieces[0].stored
        _check_alike(pieces)
        ranges = [one.range for one in pieces]
        shape = first.shape
        if len(pieces) > 1:
            shape = (sum(one.shape[0] for one in pieces), *shape[1:])
        if theirs in table.swapped:
            ranges = _swapped(pieces[0])
        if part == "vae" and ".mid.attn_1." in theirs and theirs.endswith(".weight") and len(shape) == 2:
            shape = (*shape, 1, 1)  # single files have 1x1 convolutions there
        yield _tensor(prefix + theirs, shape, ranges, first.dtype, dtype)


def _check_alike(pieces: Sequence[Weight]) -> None:
    """UserError for matrices that are to become one but differ in kind or width."""
    first = pieces[0].stored
    for one in pieces[1:]:
        stored = one.stored
        if not stored.shape or (stored.dtype, stored.shape[1:]) != (first.dtype, first.shape[1:]):
            raise UserError(
                f"{pieces[0].file.path} keeps {escaped(pieces[0].key)} as {first.dtype} {list(first.shape)} and "
                f"{escaped(one.key)} as {stored.dtype} {list(stored.shape)}, which a single file holds as one matrix.",
                fix="save the model in one dtype first.",
            )


def _modelspec(title: str, transformer: Mapping[str, Any]) -> dict[str, str]:
    """The header entries that other programs show; a flow is neither of the two predictions that they can name."""
    name = model_name(transformer)
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURES[name],
        "modelspec.implementation": IMPLEMENTATIONS[FAMILIES[transformer["_class_name"]]],
        "modelspec.title": title,
        "modelspec.resolution": "1024x1024",
        "modelspec.date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


# ------------------------------------------------------------------ file to folder


def _keys_by_part(file: TensorFile) -> tuple[str, dict[str, dict[str, str]]]:
    """The family of a file, and its tensors as part -> name without prefix -> name in the file."""
    _refuse_packed(file.path, file.tensors)
    family = next((found for name in file.tensors if (found := _family_of(name))), None)
    if family is None:
        raise _not_ours(file)
    prefixes = {f"text_encoders.{name}.transformer.": part for part, name in TEXT_ENCODERS[family].items()}
    prefixes |= {"first_stage_model.": "vae", "vae.": "vae", BODY: "transformer"}
    keys: dict[str, dict[str, str]] = {}
    for key in file.tensors:
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        part = prefixes.get(prefix, "transformer")  # without a prefix: as the transformer goes round alone
        inner = key[len(prefix) :]
        if _is_leftover(family, part, inner) or (not prefix and key.startswith("text_encoders.")):
            continue  # of the text encoders beside their tensors: scales, tokenizers
        name = _own_name(family, part, inner)
        if name in keys.setdefault(part, {}):
            raise UserError(
                f"{file.path} holds {escaped(name)} of the {part} twice, as {escaped(keys[part][name])} and "
                f"{escaped(key)}.",
                fix="take another copy of the model.",
            )
        keys[part][name] = key
    return family, {part: _untied(names) for part, names in keys.items()}


def _family_of(name: str) -> str | None:
    name = name.removeprefix(BODY)
    if name.startswith("double_blocks.0.img_attn."):
        return "flux"
    return "sd3" if name.startswith("joint_blocks.0.") else None


def _not_ours(file: TensorFile) -> UserError:
    if any("transformer_blocks.0." in name for name in file.tensors):
        return UserError(
            f"{file.path} holds a transformer under diffusers' names: it is a part of a Diffusers folder.",
            fix="put it into transformer/ of the folder whose part it is, and name that folder.",
        )
    examples = ", ".join(escaped(name) for name in list(file.tensors)[:3]) or "none at all"
    return UserError(
        f"{file.path} holds no transformer of SD3 or Flux ({len(file.tensors)} tensors: {examples}).",
        fix="`identify` says what it is.",
    )


def _imported(
    weights: Mapping[str, Weight], table: RowTable, part: str, configs: Configs, dtype: str | None
) -> Iterator[NewTensor]:
    for theirs, weight in weights.items():
        ours, stored = table.rows[theirs], weight.stored
        if theirs in table.swapped:
            yield _tensor(ours[0], stored.shape, _swapped(weight), stored.dtype, dtype)
            continue
        shape = stored.shape
        if part == "vae" and ".mid.attn_1." in theirs and len(shape) == 4:
            shape = shape[:2]  # diffusers has linear layers there
        if len(ours) == 1:
            yield _tensor(ours[0], shape, [weight.range], stored.dtype, dtype)
            continue
        start = 0
        for name, length in zip(ours, _lengths(weight, ours, configs), strict=True):
            rows = Weight(weight.file, weight.key, (length, *shape[1:]), rows=(start, start + length))
            yield _tensor(name, rows.shape, [rows.range], stored.dtype, dtype)
            start += length


def _lengths(weight: Weight, ours: Sequence[str], configs: Configs) -> list[int]:
    """Rows of each of the matrices that stand in one: queries, keys and values are as wide as all heads together."""
    transformer = json.loads(configs[TRANSFORMER])
    width = transformer["num_attention_heads"] * transformer["attention_head_dim"]
    total = weight.stored.shape[0] if weight.stored.shape else 0
    rest = total - width * (len(ours) - 1)
    if rest <= 0 or (len(ours) == 3 and rest != width):
        raise UserError(
            f"{weight.file.path} holds {escaped(weight.key)} with {total} rows, which {len(ours)} matrices of "
            f"{width} do not make.",
            fix="the configs are another model's, or the file is damaged: take another copy.",
        )
    return [width] * (len(ours) - 1) + [rest]


def _made_projection(
    family: str, part: str, names: Mapping[str, str], configs: Configs, file: TensorFile, dtype: str | None
) -> list[NewTensor]:
    """SD3's first CLIP, whose summary of the text goes on unprojected, for diffusers, which always projects.

    Stability's files need no matrix for that, so there may be none; diffusers' loader puts the unit matrix there too.
    """
    if family != "sd3" or part != "text_encoder" or "text_projection.weight" in names:
        return []
    width = json.loads(configs["text_encoder/config.json"])["hidden_size"]
    beside = file.tensors[next(iter(names.values()))].dtype
    kind = target_dtype(beside if beside in ONES else "F16", dtype)
    return [NewTensor("text_projection.weight", kind, (width, width), partial(_unit_rows, width, kind))]


def _unit_rows(width: int, dtype: str) -> Iterator[bytes]:
    one = ONES[dtype]
    zero = bytes(len(one))
    return (zero * row + one + zero * (width - 1 - row) for row in range(width))


# ------------------------------------------------------------------ both


def _tensor(
    name: str, shape: tuple[int, ...], ranges: Iterable[ByteRange], stored: str, wanted: str | None
) -> NewTensor:
    target = target_dtype(stored, wanted)
    if target == stored:
        return NewTensor.copied(name, stored, shape, ranges)
    return NewTensor(name, target, shape, partial(_cast, tuple(ranges), name, stored, target))


def _cast(ranges: Sequence[ByteRange], name: str, stored: str, target: str) -> Iterator[bytes]:
    for one in ranges:
        yield from cast_chunks(one.chunks(), name, stored, target)


def _swapped(weight: Weight) -> list[ByteRange]:
    """Both halves of the rows, the second first."""
    rows = weight.stored.shape[0] if weight.stored.shape else 0
    if rows % 2:
        raise UserError(
            f"{weight.file.path} holds {escaped(weight.key)} with {rows} rows, which have no halves.",
            fix="take another copy of the model.",
        )
    places = ((rows // 2, rows), (0, rows // 2))
    return [Weight(weight.file, weight.key, weight.shape, rows=place).range for place in places]


def _prefix(family: str, part: str, alone: bool) -> str:
    if part == "transformer":
        return "" if alone and family == "flux" else BODY
    return (
        VAE_PREFIXES[family] if part == "vae" else f"text_encoders.{TEXT_ENCODERS[family][part]}.transformer."
    )


def _role(family: str, part: str) -> str:
    """What a part of the pipeline is: "transformer", "vae", "clip_l", "clip_g" or "t5xxl"."""
    return TEXT_ENCODERS[family].get(part, part)


def _table(family: str, part: str, configs: Mapping[str, str]) -> RowTable:
    config = json.loads(configs.get(f"{part}/config.json", "{}"))
    role = _role(family, part)
    if role == "transformer":
        return flux_table(config) if family == "flux" else sd3_table(config)
    if role == "vae":
        return vae_rows(config)
    return t5_rows(config) if role == "t5xxl" else clip_rows(config, projects=family == "sd3")


def _own_name(family: str, part: str, key: str) -> str:
    """The spellings of all ages brought to one; T5's and the transformer's have never changed."""
    return modern_name(part, key) if _role(family, part) in ("vae", "clip_l", "clip_g") else key


def _untied(names: Mapping[str, str]) -> dict[str, str]:
    """T5's words under the one name that transformers gives them; the other tensor holds the same numbers."""
    tied = {SHARED: names[TIED]} if TIED in names else {}
    return tied | {name: key for name, key in names.items() if name != TIED}


def _is_leftover(family: str, part: str, name: str) -> bool:
    """Training leftovers and buffers, and what the pipeline's class of a text encoder does not have."""
    role = _role(family, part)
    if role in ("clip_l", "clip_g", "t5xxl"):
        unread = family == "flux" and role == "clip_l" and name == "text_projection.weight"
        return unread or name.endswith(TEXT_LEFTOVERS)
    return name.startswith(LEFTOVERS)


def _refuse_packed(origin: Path, names: Iterable[str]) -> None:
    marked = next((name for name in names if name.endswith(PACKED)), None)
    if marked:
        raise UserError(
            f"{origin} holds packed or scaled numbers ({escaped(marked)}), which stand for others.",
            fix="take the model's fp16, bf16 or plain fp8 file.",
        )


def _compare_names(
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
