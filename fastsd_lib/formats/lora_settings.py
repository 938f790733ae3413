"""What stands in the metadata of a converted LoRA: peft's settings, and what the other naming has no place for."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.lora_layers import NUMBER_CODES, Layer, LoraLayers, Place

ADAPTER_METADATA = (
    "lora_adapter_metadata"  # where diffusers keeps peft's settings: JSON, "unet.lora_alpha" ...
)
KEPT = "fastsd.lora_names"  # what the way back needs, so that it ends with the same file
NOTE = "fastsd.conversion"  # what was done, in words


class PeftSettings:
    """peft's settings, which diffusers puts into the metadata, part by part."""

    def __init__(self, metadata: Mapping[str, str], named: Path) -> None:
        try:
            said = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise UserError(
                f"{named} has settings of peft ({ADAPTER_METADATA}) that are no JSON object.",
                fix="take the file as its trainer wrote it.",
            )
        self._said, self._named = said, named

    def alpha(self, place: Place, rank: int) -> float | None:
        """alpha of one layer, as peft would have it; None when nothing says it."""
        part, path = place
        parts = ("transformer.", "unet.", "") if part in ("unet", "transformer") else (f"{part}.", "")
        prefix = next((one for one in parts if f"{one}lora_alpha" in self._said), None)
        if prefix is None:
            return None
        value: Any = self._said[f"{prefix}lora_alpha"]
        patterns = self._said.get(f"{prefix}alpha_pattern") or {}
        for pattern, own in patterns.items() if isinstance(patterns, dict) else ():
            if self._matches(pattern, path):
                value = own
                break
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise UserError(
                f"{self._named} has an alpha that is no number: {escaped(str(value))[:60]} for {path}.",
                fix="take the file as its trainer wrote it.",
            )
        # rsLoRA divides by the root of the rank; kohya's names know the rank alone.
        return value * math.sqrt(rank) if self._said.get(f"{prefix}use_rslora") else float(value)

    def _matches(self, pattern: str, path: str) -> bool:
        whole = pattern.startswith("^")
        plain = pattern.removeprefix("^").replace("\\.", ".")
        if re.search(r"[*+?()\[\]{}|$\\^]", plain):  # an expression of its own: nobody writes them to files
            raise UserError(
                f"{self._named} gives alphas by the expression {escaped(pattern)[:80]!r}, which is not read here.",
                fix="save the LoRA with a recent diffusers, which names the layers.",
            )
        return path == plain or (not whole and path.endswith(f".{plain}"))


def peft_settings(part: str, layers: Mapping[str, Layer], named: Path) -> dict[str, Any]:
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


def kept_of_kohya(lora: LoraLayers) -> dict[str, Any]:
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


def kept_in(lora: LoraLayers) -> dict[str, Any]:
    """As `kept_of_kohya` wrote it; what another hand put there is left aside."""
    try:
        said = json.loads(lora.file.metadata.get(KEPT, "{}"))
    except (ValueError, RecursionError):
        return {}
    said = said if isinstance(said, dict) else {}
    ranks = said.get("ranks")
    return {
        key: said[key]
        for key, known in (("blocks", ("original", "diffusers")), ("text", ("lora_te_", "lora_te1_")),
                           ("alpha", (*NUMBER_CODES, "BF16", "none")))
        if said.get(key) in known
    } | ({"ranks": {k: v for k, v in ranks.items() if _are_ranks(v)}} if isinstance(ranks, dict) else {})  # fmt: skip


def _are_ranks(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def note_of(lora: LoraLayers, naming: str, notes: Counter[str]) -> str:
    said = f"{lora.naming} -> {naming}"
    scaled = any(layer.plain and layer.scale_alpha != layer.rank for layer in lora.layers.values())
    if naming == "peft" and scaled:
        said += "; alpha stands in the metadata, where recent versions of diffusers look for it"
    if notes["taken apart"]:
        said += f"; {notes['taken apart']} joined layers were taken apart"
    if notes["put together"]:
        said += f"; {notes['put together']} layers were joined of several"
    if notes["on the diagonal"]:
        said += f", {notes['on the diagonal']} of them with the ranks of all parts together"
    return said
