"""LoRA layers under kohya's names: "lora_unet_down_blocks_0_....lora_down.weight"."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from fastsd_lib.core.tensor_file import NewTensor
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.lora_layers import NUMBER_CODES, Layer, LoraLayers, LoraPlan, Place, unknown_layer
from fastsd_lib.formats.lora_rows import put_together, turned
from fastsd_lib.formats.lora_settings import KEPT, NOTE, kept_in, note_of

Blocks = Literal["", "keep", "original", "diffusers"]
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


def to_kohya(lora: LoraLayers, named: Path, blocks: Blocks) -> LoraPlan:
    """`blocks`: as `convert_lora` has it; `named`: the file that the user named. UserError where no exact way is."""
    notes = Counter[str]()
    kept = kept_in(lora)
    layers, ranks = _joined_layers(lora, named, notes)
    prefixes = {"unet": "lora_unet_", "transformer": "lora_unet_"} | _KOHYA_TEXT[lora.family]
    if text := lora.text_prefix or kept.get("text"):
        prefixes["text_encoder"] = text
    blocks = blocks or kept.get("blocks", "") or ("original" if lora.family == "sdxl" else "diffusers")
    tensors: list[NewTensor] = []
    for (part, path), layer in layers.items():
        if part == "unet":
            path = _unet_path(path, layer, lora, blocks, named)
        if part not in prefixes:
            raise unknown_layer(named, layer)
        tensors += _kohya_tensors(prefixes[part] + lora_names.underscored(path), layer, kept.get("alpha", ""))
    header = _network_facts(lora, layers) | {NOTE: note_of(lora, "kohya", notes)}
    if ranks := ranks or kept.get("ranks", {}):
        header[KEPT] = json.dumps({"ranks": ranks})
    return LoraPlan(tensors, header)


def _unet_path(path: str, layer: Layer, lora: LoraLayers, blocks: str, named: Path) -> str:
    original = lora_names.is_original(path)
    if blocks == "keep" or (not original and blocks == "diffusers"):
        return path  # of a U-Net of any depth
    other = lora_names.unet_renamed(path, lora.family, not original)
    if other is None:
        raise unknown_layer(named, layer)
    return path if original == (blocks == "original") else other


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
        if pattern not in theirs or not layer.plain:
            raise unknown_layer(named, layer)
        name, at = theirs[pattern]
        original = name.replace("{}", number)
        if len(table[name]) == 1:
            layers[part, original] = turned(layer, name)
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
    code = NUMBER_CODES.get(dtype, "")
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
