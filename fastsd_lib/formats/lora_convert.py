"""LoRA files from one program's names to another's: kohya's, which web UIs and ComfyUI read, and peft's, diffusers'.

No number of a weight changes, only its name and place, and with `dtype` its width. What else must stay:

- alpha and rank. Kohya keeps alpha as a tensor of each layer. diffusers refuses such a tensor under peft's names; it
  reads peft's settings from the metadata (`lora_adapter_metadata`), so that is where alpha goes, layer by layer.
- the names of CLIP's layers begin with `text_model` in both, although transformers 5.6 left the word out.
- DoRA's lengths have the shape that each program wants.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.pickle_header import is_pickled
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import NewTensor, TensorFile, read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.casting import cast_chunks, target_dtype
from fastsd_lib.formats.lora_layers import ADAPTER_METADATA, KEPT, Layer, LoraLayers, Place, read_layers
from fastsd_lib.formats.lora_rows import halves_swapped, put_together, taken_apart
from fastsd_lib.formats.writing import write_and_verify

Naming = Literal["kohya", "peft", "diffusers"]
Blocks = Literal["", "original", "diffusers"]
NOTE = "fastsd.conversion"  # metadata: what was done, in words
# Metadata that is true of the old file alone; the hashes are over its bytes.
_STALE = (
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
    ADAPTER_METADATA,
    NOTE,
    KEPT,
    "format",
)
_ALPHA_CODES = {"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i"}
_KOHYA_ENDINGS = {
    "down": "lora_down.weight",
    "up": "lora_up.weight",
    "mid": "lora_mid.weight",
    "dora": "dora_scale",
}
_BASE_VERSIONS = {"sdxl": "sdxl_base_v1-0", "flux": "flux1", "sd3": "sd3"}
_KOHYA_TEXT = {
    "sd": {"text_encoder": "lora_te_"},
    "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
    "sd3": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_"},
    "flux": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te3_"},
}


@dataclass(frozen=True)
class _Plan:
    tensors: list[NewTensor]
    metadata: dict[str, str]


def convert_lora(
    source: Path,
    target: Path,
    naming: Naming,
    dtype: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    report: Report = silent,
    blocks: Blocks = "",
) -> Path:
    """Write the LoRA file `source` (.safetensors, or a pickle of plain weights) as `target` under the names `naming`.

    "kohya": `lora_unet_...lora_down.weight`. "peft" and "diffusers" are one: `unet....lora_A.weight`, as diffusers
    writes it. `dtype`: fp16, bf16, fp32, or None to keep the bytes; alphas always stay. `metadata` joins the
    source's, which is carried over. `blocks`: for kohya's names of a U-Net, count its blocks as the original code or
    as diffusers; by default as kohya's trainer does, or as the file did before it was converted here.

    SD 1.x, 2.x, SDXL, SD 3, Flux; LoRA, LoCon, DoRA. UserError for what is no LoRA, for half of one, for LoHa, LoKr and
    other kinds under peft's names, and where an exact translation does not exist; `target` is whole or not there.
    """
    if naming not in ("kohya", "peft", "diffusers"):
        raise UserError(
            f"A LoRA has no names of the kind {naming!r}.",
            fix="take kohya (web UIs, ComfyUI) or peft (diffusers).",
        )
    if target.suffix.lower() != ".safetensors":
        raise UserError(
            f"{target.name} does not end in .safetensors.", fix=f"write to {target.stem}.safetensors."
        )
    file = _opened(source, report)
    lora = read_layers(file, source)
    plan = _to_kohya(lora, source, blocks) if naming == "kohya" else _to_peft(lora, source)
    names = Counter(tensor.name for tensor in plan.tensors)
    if twice := next((name for name, count in names.items() if count > 1), ""):
        raise UserError(
            f"{source} holds one layer under two names, which both become {twice}.",
            fix="take the file as its trainer wrote it.",
        )
    given = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        for key, value in (metadata or {}).items()
    }
    carried = {key: value for key, value in file.metadata.items() if key not in _STALE}
    tensors = [_cast(tensor, dtype) for tensor in plan.tensors]
    with atomic_path(target) as scratch:
        header = {"format": "pt"} | carried | plan.metadata | given
        write_and_verify(scratch, target, tensors, header, report, hash_key="modelspec.hash_sha256")
    return target


def _opened(source: Path, report: Report) -> TensorFile:
    if is_pickled(source):
        from fastsd_lib.formats.single_file import open_single_file  # torch loads here

        return open_single_file(source, report)
    return read_tensor_file(source)


def _cast(tensor: NewTensor, dtype: str | None) -> NewTensor:
    # Alpha is one number: rounding it would scale the whole correction.
    wanted = tensor.dtype if tensor.name.endswith(".alpha") else target_dtype(tensor.dtype, dtype)
    if wanted == tensor.dtype:
        return tensor
    chunks = partial(_cast_chunks, tensor, wanted)
    return NewTensor(tensor.name, wanted, tensor.shape, chunks)


def _cast_chunks(tensor: NewTensor, wanted: str) -> Any:
    return cast_chunks(tensor.chunks(), tensor.name, tensor.dtype, wanted)


# ------------------------------------------------------------------ peft's names


def _to_peft(lora: LoraLayers, named: Path) -> _Plan:
    other = next((layer for layer in lora.layers.values() if not layer.plain), None)
    if other is not None:
        roles = ", ".join(sorted(other.tensors.keys() - {"down", "up"}))
        raise UserError(
            f"{named} is more than a LoRA ({other.name} has {roles}), which peft's names in diffusers cannot say.",
            fix="keep kohya's names: --naming kohya.",
        )
    layers: dict[Place, Layer] = {}
    notes = Counter[str]()
    for place, layer in _diffusers_layers(lora, named, notes).items():
        layers[place] = _peft_magnitude(layer, named) if "dora" in layer.tensors else layer
    settings = {}
    for part in dict.fromkeys(part for part, _ in layers):
        own = {path: layer for (of, path), layer in layers.items() if of == part}
        settings |= {f"{part}.{key}": value for key, value in _settings(part, own, named).items()}
    tensors = []
    for (part, path), layer in layers.items():
        for role, ending in (
            ("down", "lora_A.weight"),
            ("up", "lora_B.weight"),
            ("dora", "lora_magnitude_vector"),
        ):
            if role in layer.tensors:
                tensors.append(replace(layer.tensors[role], name=f"{part}.{path}.{ending}"))
    kept = _kept_of_kohya(lora) if lora.naming == "kohya" else {"family": lora.family}
    header = {ADAPTER_METADATA: json.dumps(settings), NOTE: _note(lora, "peft", notes)}
    return _Plan(tensors, header | {KEPT: json.dumps(kept)})


def _diffusers_layers(lora: LoraLayers, named: Path, notes: Counter[str]) -> dict[Place, Layer]:
    """All layers under diffusers' paths."""
    kept = _kept(lora)
    found: dict[Place, Layer] = {}

    def put(place: Place, layer: Layer) -> None:
        if place in found:
            raise UserError(
                f"{named} holds one layer twice: {found[place].name} and {layer.name}.",
                fix="take the file as its trainer wrote it.",
            )
        found[place] = layer

    for (part, path), layer in lora.layers.items():
        if part == "unet" and lora_names.is_original(path):
            ours = lora_names.unet_renamed(path, lora.family, original=False)
            if ours is None:
                raise _unknown_layer(named, layer)
            put((part, ours), layer)
        elif part == "transformer":
            for ours, piece in _transformer_pieces(lora, path, layer, named, kept, notes):
                put((part, ours), piece)
        else:
            put((part, path), layer)
    return found


def _transformer_pieces(
    lora: LoraLayers, path: str, layer: Layer, named: Path, kept: Mapping[str, Any], notes: Counter[str]
) -> list[tuple[str, Layer]]:
    table = lora_names.TRANSFORMERS[lora.family]
    pattern, number = lora_names.template(path)
    if pattern not in table or not lora_names.is_original(path):
        known = {one for ours in table.values() for one in ours}
        if pattern not in known:
            raise _unknown_layer(named, layer)
        return [(path, layer)]
    ours = [one.replace("{}", number) for one in table[pattern]]
    if len(ours) > 1:
        ranks = kept.get("ranks", {}).get(path)
        parts = taken_apart(layer, lora_names.ROWS.get(pattern, (1,) * len(ours)), named, ranks)
        notes["taken apart"] += 1
        return [(name, part) for name, part in zip(ours, parts, strict=True) if part is not None]
    return [(ours[0], _turned(layer, pattern))]


def _turned(layer: Layer, pattern: str) -> Layer:
    """With shift and scale in the other side's order, where the sides differ."""
    up, down = layer.tensors["up"], layer.tensors["down"]
    if pattern in lora_names.SWAPPED or (
        pattern in lora_names.SWAPPED_IF_TWICE and up.shape[0] == 2 * down.shape[1]
    ):
        turned = {
            role: halves_swapped(layer.tensors[role]) for role in ("up", "dora") if role in layer.tensors
        }
        return replace(layer, tensors={**layer.tensors, **turned})
    return layer


def _peft_magnitude(layer: Layer, named: Path) -> Layer:
    """LyCORIS has lengths in a column, (out, 1, ...); peft in a row, for convolutions (1, out, 1, 1)."""
    dora, up = layer.tensors["dora"], layer.tensors["up"]
    out = up.shape[0]
    if dora.shape not in (
        (out,),
        (out, *(1,) * (len(up.shape) - 1)),
        (1, out, *(1,) * (len(up.shape) - 2)),
    ) or (dora.shape[0] == 1 and len(dora.shape) == 2 and out > 1):
        raise UserError(
            f"{named} is a DoRA with lengths per input ({layer.name}), which peft does not know.",
            fix="keep kohya's names: --naming kohya.",
        )
    shape = (out,) if len(up.shape) == 2 else (1, out, 1, 1)
    return replace(layer, tensors={**layer.tensors, "dora": replace(dora, shape=shape)})


def _settings(part: str, layers: Mapping[str, Layer], named: Path) -> dict[str, Any]:
    """What peft's LoraConfig wants to know: the usual rank and alpha, and every layer that has others.

    Without `text_model`: patterns fit from the end, so they fit transformers' CLIP of every age.
    """
    dora = [layer for layer in layers.values() if "dora" in layer.tensors]
    if dora and len(dora) < len(layers):
        plain = next(layer for layer in layers.values() if "dora" not in layer.tensors)
        raise UserError(
            f"{named} is a DoRA in some layers only ({plain.name} has no lengths); peft knows all or none.",
            fix="keep kohya's names: --naming kohya.",
        )
    ranks = {_pattern(part, path): layer.rank for path, layer in layers.items()}
    alphas = {_pattern(part, path): layer.scale_alpha for path, layer in layers.items()}
    rank, alpha = (Counter(one.values()).most_common(1)[0][0] for one in (ranks, alphas))
    return {
        "r": int(rank),
        "lora_alpha": alpha,
        "rank_pattern": {path: one for path, one in ranks.items() if one != rank},
        "alpha_pattern": {path: one for path, one in alphas.items() if one != alpha},
        "target_modules": [path.removeprefix("^") for path in ranks],
        "use_dora": bool(dora),
        "lora_bias": False,
    }


def _pattern(part: str, path: str) -> str:
    if part.startswith("text_encoder"):
        return path.removeprefix("text_model.")
    return path if "." in path else f"^{path}"  # "proj_out" would fit the end of every block's too


# ------------------------------------------------------------------ kohya's names


def _to_kohya(lora: LoraLayers, named: Path, blocks: Blocks) -> _Plan:
    notes = Counter[str]()
    kept = _kept(lora)
    if lora.naming == "kohya":
        layers, ranks = dict(lora.layers), kept.get("ranks", {})
        own = {"text_encoder": lora.text_prefix} if lora.text_prefix else {}
    else:
        layers, ranks = _joined_layers(lora, named, notes)
        own = {"text_encoder": kept["text"]} if "text" in kept else {}
    prefixes = {"unet": "lora_unet_", "transformer": "lora_unet_", **_KOHYA_TEXT[lora.family], **own}
    blocks = blocks or kept.get("blocks", "") or ("original" if lora.family == "sdxl" else "diffusers")
    tensors: list[NewTensor] = []
    for (part, path), layer in layers.items():
        if part == "unet" and lora_names.is_original(path) != (blocks == "original"):
            renamed = lora_names.unet_renamed(path, lora.family, blocks == "original")
            if renamed is None:
                raise _unknown_layer(named, layer)
            path = renamed
        if part not in prefixes:
            raise _unknown_layer(named, layer)
        tensors += _kohya_tensors(prefixes[part] + lora_names.underscored(path), layer, kept.get("alpha", ""))
    header = _network_facts(lora, layers) | {NOTE: _note(lora, "kohya", notes)}
    return _Plan(tensors, header | ({KEPT: json.dumps({"ranks": ranks})} if ranks else {}))


def _joined_layers(
    lora: LoraLayers, named: Path, notes: Counter[str]
) -> tuple[dict[Place, Layer], dict[str, list[int]]]:
    """All layers as kohya's trainer has them, and the ranks of the parts of those that were put together."""
    table = lora_names.TRANSFORMERS.get(lora.family, {})
    theirs = {one: (name, at) for name, ours in table.items() for at, one in enumerate(ours)}
    layers: dict[Place, Layer] = {}
    shares: dict[str, list[Layer | None]] = {}
    for (part, path), layer in lora.layers.items():
        pattern, number = lora_names.template(path)
        if part != "transformer" or pattern in table:
            layers[part, path] = layer
            continue
        if pattern not in theirs:
            raise _unknown_layer(named, layer)
        name, at = theirs[pattern]
        original = name.replace("{}", number)
        if len(table[name]) == 1:
            layers[part, original] = _turned(layer, name)
        else:
            shares.setdefault(original, [None] * len(table[name]))[at] = layer
            layers.setdefault((part, original), layer)  # its place in the file
    ranks = {}
    for original, parts in shares.items():
        sizes = lora_names.ROWS.get(lora_names.template(original)[0], (1,) * len(parts))
        layers["transformer", original], own = put_together(parts, sizes, named)
        notes["put together"] += 1
        if own:
            ranks[original] = own
            notes["on the diagonal"] += 1
    return layers, ranks


def _kohya_tensors(key: str, layer: Layer, alpha_dtype: str) -> list[NewTensor]:
    found = []
    for role, tensor in layer.tensors.items():
        if role == "dora" and lora_names.split_ending(tensor.name) != (tensor.name, "dora"):
            out = layer.tensors["up"].shape[0] if "up" in layer.tensors else tensor.shape[0]
            if tensor.shape in ((out,), (1, out, 1, 1)):
                tensor = replace(tensor, shape=(out, *(1,) * (len(layer.tensors["up"].shape) - 1)))
        ending = _KOHYA_ENDINGS.get(role) or tensor.name.rpartition(".")[2]
        found.append(replace(tensor, name=f"{key}.{ending}"))
    if layer.alpha_tensor is not None:
        found.append(replace(layer.alpha_tensor, name=f"{key}.alpha"))
    elif layer.plain and not (alpha_dtype == "none" and layer.scale_alpha == layer.rank):
        found.append(_alpha(f"{key}.alpha", layer.scale_alpha, alpha_dtype or layer.tensors["down"].dtype))
    return found


def _alpha(name: str, value: float, dtype: str) -> NewTensor:
    """A tensor of one number, in this dtype if that can hold it exactly, else in F32."""
    raw = struct.pack("<f", value)
    if dtype == "BF16" and raw[:2] == b"\0\0":
        return NewTensor(name, "BF16", (), lambda: [raw[2:]])
    code = _ALPHA_CODES.get(dtype, "")
    if code:
        try:
            packed = struct.pack(code, int(value) if code in "<q<i" else value)
        except (struct.error, OverflowError):
            packed = b""
        if packed and struct.unpack(code, packed)[0] == value:
            return NewTensor(name, dtype, (), lambda: [packed])
    return NewTensor(name, "F32", (), lambda: [raw])


def _network_facts(lora: LoraLayers, layers: Mapping[Place, Layer]) -> dict[str, str]:
    """What kohya's programs look for, where the file does not say it yet."""
    plain = [layer for layer in layers.values() if layer.plain]
    if lora.naming == "kohya" or not plain:
        return {}
    rank, alpha = (
        Counter(one).most_common(1)[0][0] for one in ([p.rank for p in plain], [p.scale_alpha for p in plain])
    )
    facts = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }
    if lora.family in _BASE_VERSIONS:
        facts["ss_base_model_version"] = _BASE_VERSIONS[lora.family]
    return {key: value for key, value in facts.items() if key not in lora.file.metadata}


# ------------------------------------------------------------------ what is kept, and said


def _kept_of_kohya(lora: LoraLayers) -> dict[str, Any]:
    """What peft's names do not tell of a file under kohya's."""
    original = any(part == "unet" and lora_names.is_original(path) for part, path in lora.layers)
    dtypes = {layer.alpha_tensor.dtype if layer.alpha_tensor else "none" for layer in lora.layers.values()}
    kept: dict[str, Any] = {"family": lora.family}
    if any(part == "unet" for part, _ in lora.layers):
        kept["blocks"] = "original" if original else "diffusers"
    if lora.text_prefix:
        kept["text"] = lora.text_prefix
    if len(dtypes) == 1:
        kept["alpha"] = dtypes.pop()
    return kept


def _kept(lora: LoraLayers) -> dict[str, Any]:
    """As `_kept_of_kohya` wrote it; what another hand put there is left aside."""
    try:
        said = json.loads(lora.file.metadata.get(KEPT, "{}"))
    except (ValueError, RecursionError):
        return {}
    said = said if isinstance(said, dict) else {}
    ranks = said.get("ranks")
    return {
        key: said[key]
        for key, known in (("blocks", ("original", "diffusers")), ("text", ("lora_te_", "lora_te1_")),
                           ("alpha", (*_ALPHA_CODES, "BF16", "none")))
        if said.get(key) in known
    } | ({"ranks": {k: v for k, v in ranks.items() if _are_ranks(v)}} if isinstance(ranks, dict) else {})  # fmt: skip


def _are_ranks(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def _note(lora: LoraLayers, naming: str, notes: Counter[str]) -> str:
    said = f"{lora.naming} -> {naming}, without loss"
    if notes["taken apart"]:
        said += f"; {notes['taken apart']} joined layers were taken apart"
    if notes["put together"]:
        said += f"; {notes['put together']} layers were joined of several"
    if notes["on the diagonal"]:
        said += f", {notes['on the diagonal']} of them with the ranks of all parts together"
    return said


def _unknown_layer(named: Path, layer: Layer) -> UserError:
    return UserError(
        f"{named} changes a layer that this model does not have: {escaped(layer.name)[:120]}.",
        fix="take a LoRA for SD 1.x, 2.x, SDXL, SD 3 or Flux; `identify` says what the file is.",
    )
