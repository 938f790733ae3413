"""Networks that enlarge pictures, read from their files: ESRGAN, Real-ESRGAN and Real-ESRGAN's compact ones.

RRDBNet: "ESRGAN" (arXiv 1809.00219) and "Real-ESRGAN" (arXiv 2107.10833). SRVGGNetCompact: Real-ESRGAN's small
models for animation. Depth, width and scale are read from the tensors, under any of three sets of names.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.core.tensor_file import read_tensor_file

ENDINGS = (".safetensors", ".pth")
LARGEST_SCALE = 16
_WRAPPERS = ("params_ema", "params", "state_dict")  # where a training program puts the weights

# Real-ESRGAN's names of the layers around the blocks, and those of ESRGAN's second generation -> ours.
_AROUND = {
    "conv_first": "first", "conv_body": "trunk", "trunk_conv": "trunk", "conv_hr": "large", "HRconv": "large",
    "conv_last": "last", "conv_up1": "up.0", "upconv1": "up.0", "conv_up2": "up.1", "upconv2": "up.1",
}  # fmt: skip
_BLOCK = re.compile(
    r"(?:body|RRDB_trunk|model\.1\.sub)\.(\d+)\.(?:rdb|RDB)([123])\.conv([1-5])(?:\.0)?\.(weight|bias)"
)
_OLD_TRUNK = re.compile(r"model\.1\.sub\.(\d+)\.(weight|bias)")
_OLD_AROUND = re.compile(r"model\.(\d+)\.(weight|bias)")


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees what all before it gave. (B, width, h, w) -> the same shape."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(width + number * growth, width if number == 4 else growth, 3, padding=1)
            for number in range(5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x
        for conv in self.convs[:4]:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), 0.2)], dim=1)
        return x + 0.2 * self.convs[4](seen)


class RRDBNet(nn.Module):
    """Residual blocks of residual dense blocks, then as many doublings as there are `up` layers.

    `unshuffle` packs that many pixels of each axis into channels first, so that a network of two doublings
    enlarges by 4 / unshuffle. (B, 3, H, W) in [0, 1] -> (B, 3, H * scale, W * scale).
    """

    def __init__(self, width: int, growth: int, blocks: int, doublings: int, unshuffle: int = 1) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.scale = 2**doublings // unshuffle

        def conv(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 3, padding=1)

        self.first = conv(3 * unshuffle**2, width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(DenseBlock(width, growth) for _ in range(3)) for _ in range(blocks)
        )
        self.trunk = conv(width, width)
        self.up = nn.ModuleList(conv(width, width) for _ in range(doublings))
        self.large, self.last = conv(width, width), conv(width, 3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[2:]
        if self.unshuffle > 1:
            rest = -width % self.unshuffle, -height % self.unshuffle
            pixels = F.pad(pixels, (0, rest[0], 0, rest[1]), mode="replicate")
            pixels = F.pixel_unshuffle(pixels, self.unshuffle)
        first = x = self.first(pixels)
        for block in self.blocks:
            inner = x
            for dense in block:
                inner = dense(inner)
            x = x + 0.2 * inner
        x = first + self.trunk(x)
        for up in self.up:
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        x = self.last(F.leaky_relu(self.large(x), 0.2))
        return x[:, :, : height * self.scale, : width * self.scale]


class CompactNet(nn.Module):
    """Convolutions at the small size, whose channels become pixels at the end; they say what to add to the picture."""

    def __init__(self, width: int, layers: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        body: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(layers):
            body += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        self.body = nn.Sequential(*body, nn.Conv2d(width, 3 * scale**2, 3, padding=1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        added = F.pixel_shuffle(self.body(pixels), self.scale)
        return added + F.interpolate(pixels, scale_factor=self.scale, mode="nearest")


Net = RRDBNet | CompactNet


def load_net(path: Path, device: torch.device | str = "cpu") -> Net:
    """The network of a file, in float32. Nothing in a file is executed.

    Keeps the last ones, by path, size and time. UserError for a file that is damaged or is another network.
    """
    with plain_disk_errors(f"read {path.name}"):
        stat = path.stat()
        return _load(path, str(device), stat.st_size, stat.st_mtime_ns)


def scale_of(path: Path) -> int:
    """By how much the network of a file enlarges; remembered, so that lists read each file once."""
    with plain_disk_errors(f"read {path.name}"):
        stat = path.stat()
        return _scale(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1000)
def _scale(path: Path, size_bytes: int, changed_ns: int) -> int:
    return _made(path, _read(path)).scale


@lru_cache(maxsize=3)
def _load(path: Path, device: str, size_bytes: int, changed_ns: int) -> Net:
    with torch.inference_mode(False):  # whoever asks: what is kept is for everybody
        return _made(path, _read(path)).to(device).eval().requires_grad_(False)


def _made(path: Path, weights: Mapping[str, torch.Tensor]) -> Net:
    try:
        net = _compact(weights) if "body.0.weight" in weights else _rrdb(weights)
        net.load_state_dict({name: tensor.float() for name, tensor in named_alike(weights).items()})
    except (KeyError, RuntimeError, ValueError, IndexError):  # names or shapes that no such network has
        raise UserError(
            f"{path.name} is no ESRGAN or Real-ESRGAN network.",
            fix="take a file of RRDBNet or SRVGGNetCompact weights, such as RealESRGAN_x4plus.pth.",
        ) from None
    if not all(torch.isfinite(tensor).all() for tensor in net.state_dict().values()):
        raise UserError(f"{path.name} holds values that are no numbers.", fix="download it again.")
    return net


def named_alike(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names that the classes here use. KeyError for a name that no such network has."""
    if "body.0.weight" in weights:
        return dict(weights)
    old = sorted({int(found[1]) for name in weights if (found := _OLD_AROUND.fullmatch(name))})
    places = ["first", *(f"up.{number}" for number in range(len(old) - 3)), "large", "last"]
    around = (
        {f"model.{number}": place for number, place in zip(old, places, strict=bool(old))} if old else _AROUND
    )
    named = {}
    for name, tensor in weights.items():
        layer, _, kind = name.rpartition(".")
        if found := _BLOCK.fullmatch(name):
            block, dense, conv = int(found[1]), int(found[2]) - 1, int(found[3]) - 1
            named[f"blocks.{block}.{dense}.convs.{conv}.{found[4]}"] = tensor
        elif found := _OLD_TRUNK.fullmatch(name):
            named[f"trunk.{found[2]}"] = tensor
        else:
            named[f"{around[layer]}.{kind}"] = tensor
    return named


def _rrdb(weights: Mapping[str, torch.Tensor]) -> RRDBNet:
    named = named_alike(weights)
    first, growth = named["first.weight"], named["blocks.0.0.convs.0.weight"]
    blocks = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("blocks."))
    doublings = sum(name.startswith("up.") and name.endswith(".weight") for name in named)
    unshuffle = math.isqrt(first.shape[1] // 3)
    if 3 * unshuffle**2 != first.shape[1] or not unshuffle <= 2**doublings <= LARGEST_SCALE:
        raise ValueError(f"{first.shape[1]} channels")
    return RRDBNet(first.shape[0], growth.shape[0], blocks, doublings, unshuffle)


def _compact(weights: Mapping[str, torch.Tensor]) -> CompactNet:
    last = max(int(name.split(".")[1]) for name in weights)
    scale = math.isqrt(weights[f"body.{last}.weight"].shape[0] // 3)
    if not 1 <= scale <= LARGEST_SCALE:
        raise ValueError(f"scale {scale}")
    return CompactNet(weights["body.0.weight"].shape[0], last // 2 - 1, scale)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        read_tensor_file(path)  # says what is wrong with it
        return load_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles of other versions, which are then refused
            value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        # What PyTorch says here advises to switch its protection off.
        raise UserError(
            f"{path.name} is not a whole file of plain weights; whatever else is in it is not opened.",
            fix="download it again from its makers, or take its .safetensors file.",
        ) from None
    while isinstance(value, dict) and (inner := next((one for one in _WRAPPERS if one in value), None)):
        value = value[inner]
    tensors = value if isinstance(value, dict) else {}
    return {name: one for name, one in tensors.items() if isinstance(name, str) and torch.is_tensor(one)}
