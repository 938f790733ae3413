"""One layer of a LoRA file: its tensors where they lie, and its alpha."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.tensor_file import NewTensor, TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.formats.plans import new_tensor
from fastsd_lib.formats.stored_weight import Weight

Family = Literal["sd", "sdxl", "flux", "sd3"]  # "sd": 1.x and 2.x, whose layers have the same names
Place = tuple[str, str]  # part ("unet", "transformer", "text_encoder" ...), path of the layer in it
NUMBER_CODES = {"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i"}


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
    family: Family
    text_prefix: str = ""  # kohya's of the first text encoder, as this file has it


@dataclass(frozen=True)
class LoraPlan:
    """What a new file will hold."""

    tensors: list[NewTensor]
    metadata: dict[str, str]


def layer_of(file: TensorFile, named: Path, name: str, roles: Mapping[str, str]) -> Layer:
    """`roles`: what a tensor is -> its name. UserError for half a layer, and for matrices that do not go together."""
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
    return new_tensor(name, (Weight(file, name, file.tensors[name].shape),), None)


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
        code = NUMBER_CODES.get(one.dtype, "")
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


def unknown_layer(named: Path, layer: Layer) -> UserError:
    return UserError(
        f"{named} changes a layer that this model does not have: {escaped(layer.name)[:120]}.",
        fix="take a LoRA for SD 1.x, 2.x, SDXL, SD 3 or Flux; `identify` says what the file is.",
    )
