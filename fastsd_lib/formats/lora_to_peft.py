"""LoRA layers under the names that peft and diffusers write: "unet.down_blocks.0....lora_A.weight"."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.lora_layers import Layer, LoraLayers, LoraPlan, Place, unknown_layer
from fastsd_lib.formats.lora_rows import taken_apart, turned
from fastsd_lib.formats.lora_settings import (
    ADAPTER_METADATA,
    KEPT,
    NOTE,
    kept_in,
    kept_of_kohya,
    note_of,
    peft_settings,
)


def to_peft(lora: LoraLayers, named: Path) -> LoraPlan:
    """UserError for what peft cannot say; `named`: the file that the user named."""
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
        settings |= {f"{part}.{key}": value for key, value in peft_settings(part, own, named).items()}
    tensors = []
    for (part, path), layer in layers.items():
        for role, ending in (
            ("down", "lora_A.weight"),
            ("up", "lora_B.weight"),
            ("dora", "lora_magnitude_vector"),
        ):
            if role in layer.tensors:
                tensors.append(replace(layer.tensors[role], name=f"{part}.{path}.{ending}"))
    kept = kept_of_kohya(lora) if lora.naming == "kohya" else {"family": lora.family}
    header = {ADAPTER_METADATA: json.dumps(settings), NOTE: note_of(lora, "peft", notes)}
    return LoraPlan(tensors, header | {KEPT: json.dumps(kept)})


def _diffusers_layers(lora: LoraLayers, named: Path, notes: Counter[str]) -> dict[Place, Layer]:
    """All layers under diffusers' paths."""
    kept = kept_in(lora)
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
                raise unknown_layer(named, layer)
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
            raise unknown_layer(named, layer)
        return [(path, layer)]
    ours = [one.replace("{}", number) for one in table[pattern]]
    if len(ours) > 1:
        ranks = kept.get("ranks", {}).get(path)
        parts = taken_apart(layer, lora_names.ROWS.get(pattern, (1,) * len(ours)), named, ranks)
        notes["taken apart"] += 1
        return [(name, part) for name, part in zip(ours, parts, strict=True) if part is not None]
    return [(ours[0], turned(layer, pattern))]


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
