"""Networks put into the live weights of a model, and taken out to the last bit."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts
from fastsd_lib.generation.network_files import NetworkFile, change_of, fits, places, with_magnitude

Stamp = tuple[str, int, int]  # path, time of change in ns, size in bytes
Place = tuple[str, str]  # part, name of the weight in it


def stamp_of(path: Path) -> Stamp:
    stat = path.stat()
    return str(path), stat.st_mtime_ns, stat.st_size


@dataclass(frozen=True)
class Wanted:
    """One network, and how strongly each half of the model is to feel it."""

    file: NetworkFile
    stamp: Stamp
    text_encoder: float
    unet: float
    rank: int | None = None

    @property
    def key(self) -> Hashable:
        return self.stamp, self.text_encoder, self.unet, self.rank

    def strength(self, key: str) -> float:
        return self.unet if key.startswith("lora_unet_") else self.text_encoder


@dataclass
class InForce:
    """What is in force in one model; it hangs on its U-Net. Only the weights that are touched are kept twice."""

    key: Hashable = ()
    version: int = 0  # counts the changes
    originals: dict[Place, torch.Tensor] = field(default_factory=dict)  # in main memory
    _fits: dict[Stamp, tuple[dict[str, Place], str]] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Parts) -> InForce:
        return vars(parts.unet).setdefault("networks_in_force", cls())

    def check(self, parts: Parts, file: NetworkFile, stamp: Stamp) -> tuple[dict[str, Place], str]:
        """Key of each module that fits -> its layer (part, path); and an example of those that do not."""
        if stamp not in self._fits:
            known = places(parts)
            modules = {part: dict(one.named_modules()) for part, one in _parts(parts).items()}
            good, misfit = {}, ""
            for key, module in file.modules.items():
                part, path = known.get(key, ("", ""))
                layer = modules[part][path] if part else None
                bias = getattr(layer, "bias", None)
                if layer is not None and fits(
                    module, tuple(layer.weight.shape), None if bias is None else tuple(bias.shape)
                ):
                    good[key] = (part, path)
                else:
                    misfit = misfit or f"{key} is {'of another shape' if part else 'unknown'} there"
            while len(self._fits) > 200:
                del self._fits[next(iter(self._fits))]
            self._fits[stamp] = good, misfit
        return self._fits[stamp]

    @torch.inference_mode(False)
    @torch.no_grad()
    def exchange(self, parts: Parts, wanted: Sequence[Wanted]) -> None:
        """Put exactly these in force, unless they are. UserError, and none in force, when one fails."""
        key = tuple(one.key for one in wanted)
        if key == self.key:
            return
        self.version += 1
        live = _live(parts)
        try:
            with ExitStack() as opened:
                orders = self._orders(parts, wanted, opened)
                for place in [place for place in self.originals if place not in orders]:
                    live[place].copy_(self.originals.pop(place))
                for place, changes in orders.items():
                    if place not in self.originals:
                        self.originals[place] = live[place].detach().to("cpu", copy=True)
                    live[place].copy_(_changed(place, self.originals[place], live[place].device, changes))
        except BaseException:
            for place, original in self.originals.items():
                live[place].copy_(original)
            self.originals.clear()
            self.key = ()
            raise
        self.key = key

    def _orders(
        self, parts: Parts, wanted: Sequence[Wanted], opened: ExitStack
    ) -> dict[Place, list[_Change]]:
        """Weight -> what is to be added to it, in order."""
        orders: dict[Place, list[_Change]] = {}
        for one in wanted:
            handle = None
            for key, (part, path) in self.check(parts, one.file, one.stamp)[0].items():
                strength = one.strength(key)
                if not strength:
                    continue
                if handle is None:
                    handle = opened.enter_context(_open(one))
                change = _Change(one, key, handle, strength)
                roles = set(one.file.modules[key].names)
                if roles - {"diff_b", "alpha"}:
                    orders.setdefault((part, f"{path}.weight"), []).append(change)
                if "diff_b" in roles:
                    orders.setdefault((part, f"{path}.bias"), []).append(change)
        return orders


@dataclass(frozen=True)
class _Change:
    network: Wanted
    key: str
    handle: safe_open
    strength: float

    def of(self, original: torch.Tensor, bias: bool) -> torch.Tensor:
        """What is added to `original` at strength 1, fp32, on its device."""
        module = self.network.file.modules[self.key]
        tensors = {
            role: self.handle.get_tensor(name).to(original.device) for role, name in module.names.items()
        }
        if bias:
            change = tensors["diff_b"].float()
        else:
            change = change_of(module, tensors, self.network.rank).reshape(original.shape)
            change = with_magnitude(original, change, tensors)
        return change


def _changed(
    place: Place, original: torch.Tensor, device: torch.device, changes: Sequence[_Change]
) -> torch.Tensor:
    """Added up in fp32 and rounded once."""
    start = original.to(device).float()
    total = start.clone()
    for change in changes:
        total.add_(change.of(start, place[1].endswith(".bias")), alpha=change.strength)
    changed = total.to(original.dtype)
    if not torch.isfinite(changed.sum(dtype=torch.float32)):  # one number, where any NaN or infinity shows
        names = ", ".join(dict.fromkeys(change.network.file.path.name for change in changes))
        raise UserError(
            f"With {names} in force, weights are no numbers (NaN) or too large, in {'.'.join(place)}.",
            fix="take a smaller weight in the tag; if it stays so, the file is damaged: download it again.",
        )
    return changed


def _open(one: Wanted) -> safe_open:
    try:
        if stamp_of(one.file.path) != one.stamp:
            raise OSError
        return safe_open(one.file.path, framework="pt")
    except (OSError, SafetensorError):
        raise UserError(
            f"{one.file.path.name} changed while the picture waited.", fix="ask for the picture again."
        ) from None


def _parts(parts: Parts) -> dict[str, torch.nn.Module]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: getattr(parts, name) for name in names if getattr(parts, name, None) is not None}


def _live(parts: Parts) -> dict[Place, torch.Tensor]:
    return {
        (name, path): weight for name, one in _parts(parts).items() for path, weight in one.named_parameters()
    }
