"""A LoRA file of any naming as layers: which part of the model, which path, which tensors, which alpha."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import ByteRange, NewTensor, TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats import lora_names
from fastsd_lib.formats.lora_names import DOTTED_PARTS, KOHYA_PARTS

Place = tuple[str, str]  # part ("unet", "transformer", "text_encoder" ...), path of the layer in it
#: Metadata: what the other naming has no place for, so that the way back ends with the same file.
KEPT = "fastsd.lora_names"
ADAPTER_METADATA = (
    "lora_adapter_metadata"  # where diffusers keeps peft's settings: JSON, "unet.lora_alpha" ...
)
_NUMBERS = {"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i"}
# Widths of the two transformers, for files that name only layers which both have.
_FLUX_WIDTHS, _SD3_WIDTHS = {3072}, {1536, 2432}
_FLUX_ALONE = (
    "double_blocks.",
    "single_blocks.",
    "single_transformer_blocks.",
    "img_in",
    "txt_in",
    "guidance_in",
)
_BOTH_TRANSFORMERS = ("transformer_blocks.", "context_embedder", "time_text_embed.", "norm_out.")
_SAY_FAMILY = ("ss_base_model_version", "modelspec.architecture", KEPT)
_TEXT_WIDTHS = {768: "sd", 1024: "sd", 2048: "sdxl"}  # what the U-Net's cross-attention reads


@dataclass(frozen=True)
class Layer:
    """What a LoRA file says of one layer. down: (rank, in, ...); up: (out, rank, ...)."""

    name: str  # in the file, for messages
    tensors: Mapping[str, NewTensor]  # role -> tensor, without alpha
    alpha: float | None = None  # None: the rank, so that the scale is 1
    alpha_tensor: NewTensor | None = None  # where the file keeps it as one

    @property
    def plain(self) -> bool:
        """Whether it is down and up, with DoRA's lengths at most."""
        return {"down", "up"} <= set(self.tensors) <= {"down", "up", "dora"}

    @property
    def rank(self) -> int:
        return self.tensors["down"].shape[0]

    @property
    def scale_alpha(self) -> float:
        return float(self.rank) if self.alpha is None else self.alpha


@dataclass(frozen=True)
class LoraLayers:
    file: TensorFile
    layers: Mapping[Place, Layer]
    naming: Literal["kohya", "peft"]
    family: Literal["sd", "sdxl", "flux", "sd3"]  # "sd": 1.x and 2.x, whose layers have the same names
    text_prefix: str = ""  # kohya's of the first text encoder, as this file has it


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
            raise UserError(
                f"{named} holds one layer twice: {escaped(roles[ending[1]])[:120]} and {escaped(name)[:120]}.",
                fix="take the file as its trainer wrote it.",
            )
        roles[ending[1]] = name
        first_names.setdefault(place, ending[0])
    if not found:
        raise UserError(f"{named} is an empty LoRA.", fix="download or copy it again.")
    naming: Literal["kohya", "peft"] = "kohya" if kohya else "peft"
    said = _Settings(file.metadata, named)
    layers = {}
    for place, roles in found.items():
        layer = _layer(file, named, first_names[place], roles)
        if layer.alpha is None and naming == "peft" and layer.plain:
            layer = Layer(layer.name, layer.tensors, said.alpha(place, layer.rank))
        layers[place] = layer
    family = _family(file, layers, named)
    text = next(
        (one for one in ("lora_te1_", "lora_te_") if any(n.startswith(one) for n in file.tensors)), ""
    )
    return LoraLayers(file, _settled(layers, family), naming, family, text)


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


def _layer(file: TensorFile, named: Path, name: str, roles: Mapping[str, str]) -> Layer:
    tensors = {
        "dora" if role == "magnitude" else role: _as_it_lies(file, tensor)
        for role, tensor in roles.items()
        if role != "alpha"
    }
    _check(named, roles, tensors)
    if "alpha" not in roles:
        return Layer(name, tensors)
    return Layer(name, tensors, _number(file, named, roles["alpha"]), _as_it_lies(file, roles["alpha"]))


def _as_it_lies(file: TensorFile, name: str) -> NewTensor:
    one = file.tensors[name]
    return NewTensor.copied(name, one.dtype, one.shape, [ByteRange(file.path, one.start, one.end)])


def _check(named: Path, roles: Mapping[str, str], tensors: Mapping[str, NewTensor]) -> None:
    fix = "download or copy it again."
    for one, other in (("down", "up"), ("up", "down")):
        if one in tensors and other not in tensors:
            raise UserError(
                f"{named} is half a LoRA: {escaped(roles[one])[:120]} has no {other} matrix beside it.",
                fix=fix,
            )
    if "dora" in tensors and "down" not in tensors and not (tensors.keys() - {"dora"}):
        raise UserError(
            f"{named} is half a LoRA: {escaped(tensors['dora'].name)[:120]} stands alone.", fix=fix
        )
    if set(roles) == {"alpha"}:
        raise UserError(f"{named} is half a LoRA: {escaped(roles['alpha'])[:120]} stands alone.", fix=fix)
    down, up = tensors.get("down"), tensors.get("up")
    if down is None or up is None or "mid" in tensors:
        return
    if len(down.shape) not in (2, 4) or len(up.shape) != len(down.shape) or 0 in (*down.shape, *up.shape):
        raise UserError(
            f"{named} holds {escaped(roles['down'])[:120]} of the shape {list(down.shape)} and its other half of "
            f"{list(up.shape)}, which is no pair of matrices.",
            fix=fix,
        )
    if down.shape[0] != up.shape[1]:
        raise UserError(
            f"{named} does not fit itself: {escaped(roles['down'])[:120]} has rank {down.shape[0]}, "
            f"{escaped(roles['up'])[:120]} rank {up.shape[1]}.",
            fix=fix,
        )


def _number(file: TensorFile, named: Path, name: str) -> float:
    one = file.tensors[name]
    data = b"".join(file.chunks(name)) if one.size_bytes <= 8 else b""
    if one.dtype == "BF16":
        data, code = b"\0\0" + data, "<f"
    else:
        code = _NUMBERS.get(one.dtype, "")
    if math.prod(one.shape) != 1 or not code:
        raise UserError(
            f"{named} has no number for alpha in {escaped(name)[:120]}, but {list(one.shape)} of {one.dtype}.",
            fix="take the file as its trainer wrote it.",
        )
    value = float(struct.unpack(code, data)[0])
    if not math.isfinite(value):
        raise UserError(
            f"{named} is spoilt: {escaped(name)[:120]} is {value}.",
            fix="take an earlier state of the training.",
        )
    return value


class _Settings:
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
        parts = ("transformer.", "unet.", "") if part in ("unet", "transformer") else (f"{part}.",)
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


def _settled(layers: Mapping[Place, Layer], family: str) -> dict[Place, Layer]:
    """The body of the model by its real name, and Flux' T5 by its number in diffusers."""
    body = "transformer" if family in lora_names.TRANSFORMERS else "unet"
    names = {"unet": body, "transformer": body}
    if family == "flux":
        names["text_encoder_3"] = "text_encoder_2"
    return {(names.get(part, part), path): layer for (part, path), layer in layers.items()}


def _family(
    file: TensorFile, layers: Mapping[Place, Layer], named: Path
) -> Literal["sd", "sdxl", "flux", "sd3"]:
    body = [path for part, path in layers if part in ("unet", "transformer")]
    said = " ".join(str(file.metadata.get(key)) for key in _SAY_FAMILY).lower()
    if any(path.startswith(_FLUX_ALONE) for path in body) or (not body and "flux" in said):
        return "flux"
    if any(path.startswith("joint_blocks.") for path in body) or (not body and _says_sd3(said)):
        return "sd3"
    if any(path.startswith(_BOTH_TRANSFORMERS) for path in body):
        return _transformer_family(layers, said, named)
    parts = {part for part, _ in layers}
    if not body and "text_encoder_3" in parts:
        return "sd3"
    return "sdxl" if "text_encoder_2" in parts or _is_sdxl(layers, body, said) else "sd"


def _transformer_family(layers: Mapping[Place, Layer], said: str, named: Path) -> Literal["flux", "sd3"]:
    """Which of the two whose blocks diffusers gives the same names."""
    if "flux" in said:
        return "flux"
    if _says_sd3(said) or any(".attn2." in path for _, path in layers):
        return "sd3"
    for (_, path), layer in layers.items():
        if path.endswith((".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.add_q_proj")) and layer.plain:
            width = layer.tensors["down"].shape[1]
            if width in _FLUX_WIDTHS | _SD3_WIDTHS:
                return "flux" if width in _FLUX_WIDTHS else "sd3"
    raise UserError(
        f"{named} is a LoRA for Flux or for SD 3: its layers have names and shapes that do not tell which.",
        fix="write the model into its metadata (modelspec.architecture), or take another copy of the file.",
    )


def _says_sd3(said: str) -> bool:
    return "sd3" in said or "stable-diffusion-3" in said


def _is_sdxl(layers: Mapping[Place, Layer], body: list[str], said: str) -> bool:
    for (_, path), layer in layers.items():
        if ".attn2.to_" in path and path.endswith(("_k", "_v")) and "down" in layer.tensors:
            width = layer.tensors["down"].shape[1]
            if width in _TEXT_WIDTHS:
                return _TEXT_WIDTHS[width] == "sdxl"
    if "xl" in said or any(re.search(r"\.\d\.transformer_blocks\.1\.", path) for path in body):
        return True  # the others have one transformer block at each place
    original = [path for path in body if lora_names.is_original(path)]
    return bool(original) and lora_names.unet_kind(original) == "sdxl"
