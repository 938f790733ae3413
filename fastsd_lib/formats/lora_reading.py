"""A LoRA file of any naming as layers: which part of the model, which path in it, which tensors, which alpha."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.lora_family import family_of
from fastsd_lib.formats.lora_layers import Layer, LoraLayers, Place, layer_of
from fastsd_lib.formats.lora_names import DOTTED_PARTS, KOHYA_PARTS
from fastsd_lib.formats.lora_settings import PeftSettings


def read_layers(file: TensorFile, named: Path) -> LoraLayers:
    """The header's tensors by layer; no weight is read but the alphas.

    `named`: the file that the user named. UserError, naming the tensor, for what is no LoRA, half of one, or whose
    matrices do not go together.
    """
    found: dict[Place, dict[str, str]] = {}
    first_names: dict[Place, str] = {}
    kohya = 0
    for name in file.tensors:
        ending = lora_names.split_ending(name)
        place = _place(ending[0]) if ending else None
        if ending is None or place is None:
            what = "is no tensor of a LoRA" if ending is None else "is of a layer that no known model has"
            raise UserError(
                f"{named} is no LoRA that is known here: {escaped(name)[:120]} {what}.",
                fix="take a LoRA for SD 1.x, 2.x, SDXL, SD 3 or Flux; `identify` says what the file is.",
            )
        kohya += name.startswith(tuple(KOHYA_PARTS))
        roles = found.setdefault(place, {})
        if ending[1] in roles:
            raise _twice(named, roles[ending[1]], name)
        roles[ending[1]] = name
        first_names.setdefault(place, ending[0])
    if not found:
        raise UserError(f"{named} is an empty LoRA.", fix="download or copy it again.")
    naming: Literal["kohya", "peft"] = "kohya" if kohya else "peft"
    said = PeftSettings(file.metadata, named)
    layers = {}
    for place, roles in found.items():
        layer = layer_of(file, named, first_names[place], roles)
        if layer.alpha is None and naming == "peft" and layer.plain:
            layer = replace(layer, alpha=said.alpha(place, layer.rank))
        layers[place] = layer
    family = family_of(file.metadata, layers, named)
    text = next(
        (one for one in ("lora_te1_", "lora_te_") if any(n.startswith(one) for n in file.tensors)), ""
    )
    return LoraLayers(file, _settled(layers, family, named), naming, family, text)


def _place(module: str) -> Place | None:
    kohya = next((one for one in KOHYA_PARTS if module.startswith(one)), "")
    if kohya:
        part, path = KOHYA_PARTS[kohya], lora_names.dotted(module.removeprefix(kohya))
    else:
        prefix = next(one for one in DOTTED_PARTS if module.startswith(one))
        part, path = DOTTED_PARTS[prefix], module.removeprefix(prefix)
        if prefix == "base_model.model.text_model.":
            path = f"text_model.{path}"
        if lora_names.dotted(lora_names.underscored(path)) != path:
            return None
    if not path:
        return None
    return part, lora_names.with_text_model(path) if part.startswith("text_") else path


def _settled(layers: Mapping[Place, Layer], family: str, named: Path) -> dict[Place, Layer]:
    """The body of the model by its real name, and Flux' T5 by its number in diffusers."""
    body = "transformer" if family in lora_names.TRANSFORMERS else "unet"
    names = {"unet": body, "transformer": body}
    if family == "flux":
        names["text_encoder_3"] = "text_encoder_2"
    found: dict[Place, Layer] = {}
    for (part, path), layer in layers.items():
        place = names.get(part, part), path
        if place in found:
            raise _twice(named, found[place].name, layer.name)
        found[place] = layer
    return found


def _twice(named: Path, one: str, other: str) -> UserError:
    return UserError(
        f"{named} holds one layer twice: {escaped(one)[:120]} and {escaped(other)[:120]}.",
        fix="take the file as its trainer wrote it.",
    )
