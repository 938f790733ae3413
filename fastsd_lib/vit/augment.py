"""Random changes of training pictures, a whole batch at once, without torchvision.

Every number that is drawn is a function of the seed, the epoch and the picture's index alone: no generator has a state
that a resumed run, another process or another batch size could get wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_GEOMETRY, _COLOUR, _MIX, _ERASE = range(4)  # streams of numbers that do not depend on one another
_GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Strength:
    """Largest changes; each picture gets a part of them."""

    turn_deg: float = 0.0
    shear: float = 0.0
    shift: float = 0.0  # of the side
    area: tuple[float, float] = (1.0, 1.0)  # share of the picture that is shown; above 1 it shrinks
    aspect: float = 1.0  # sides may be stretched by this factor against each other
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    odd: float = 0.0  # chance of each: grey, inverted above a threshold, few levels


STRENGTHS = {
    "none": Strength(),
    "light": Strength(turn_deg=10, shear=0.1, shift=0.06, area=(0.8, 1.2), brightness=0.1, contrast=0.1),
    "standard": Strength(
        turn_deg=10, area=(0.4, 1.0), aspect=4 / 3, brightness=0.2, contrast=0.2, saturation=0.2
    ),
    "strong": Strength(
        turn_deg=25,
        shear=0.2,
        shift=0.05,
        area=(0.25, 1.0),
        aspect=4 / 3,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        odd=0.1,
    ),
}


def uniform(seed: int, epoch: int, indices: np.ndarray, stream: int, count: int) -> np.ndarray:
    """(len(indices), count) numbers in [0, 1), the same for the same arguments.

    SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") as a hash of a counter.
    """
    key = _mixed(np.uint64(seed) ^ _mixed(np.uint64(epoch) ^ _mixed(np.uint64(stream))))
    rows = _mixed(indices.astype(np.uint64) ^ key)
    values = _mixed(rows[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(value: np.ndarray | np.uint64) -> np.ndarray:
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        value = np.asarray(value, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def changed(
    pictures: np.ndarray,
    size: tuple[int, int],
    strength: Strength,
    flip: bool,
    seed: int,
    epoch: int,
    indices: np.ndarray,
) -> torch.Tensor:
    """Pictures (B, H, W, 3) uint8 -> (B, 3, *size) float32 in [0, 1], moved, mirrored and recoloured."""
    values = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    if strength != STRENGTHS["none"] or flip or tuple(values.shape[2:]) != tuple(size):
        theta = torch.from_numpy(_matrices(strength, flip, uniform(seed, epoch, indices, _GEOMETRY, 8)))
        grid = F.affine_grid(theta.float(), [len(values), 3, *size], align_corners=False)
        values = F.grid_sample(values, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    if strength.brightness or strength.contrast or strength.saturation or strength.odd:
        values = _recoloured(values, strength, uniform(seed, epoch, indices, _COLOUR, 8))
    return values


def _matrices(strength: Strength, flip: bool, drawn: np.ndarray) -> np.ndarray:
    """(B, 2, 3): where each pixel of the result lies in the picture, both from -1 to 1."""
    signed = 2 * drawn - 1
    low, high = strength.area
    side = np.sqrt(np.exp(np.log(low) + drawn[:, 0] * (np.log(high) - np.log(low))))
    stretch = np.exp(signed[:, 1] * math.log(strength.aspect) / 2)
    width, height = side * stretch, side / stretch
    if high <= 1:  # a crop stays inside; what is left over decides where it may lie
        width, height = np.minimum(width, 1), np.minimum(height, 1)
    angle = signed[:, 2] * math.radians(strength.turn_deg)
    cos, sin, shear = np.cos(angle), np.sin(angle), signed[:, 3] * strength.shear
    mirror = np.where((drawn[:, 4] < 0.5) & flip, -1.0, 1.0)
    room_x, room_y = np.maximum(0, 1 - width), np.maximum(0, 1 - height)
    if high > 1:
        room_x = room_y = np.zeros_like(width)
    matrix = np.empty((len(drawn), 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * width * mirror, (shear - sin) * height
    matrix[:, 1, 0], matrix[:, 1, 1] = sin * width * mirror, cos * height
    matrix[:, 0, 2] = signed[:, 5] * (room_x + 2 * strength.shift)
    matrix[:, 1, 2] = signed[:, 6] * (room_y + 2 * strength.shift)
    return matrix


def _recoloured(values: torch.Tensor, strength: Strength, drawn: np.ndarray) -> torch.Tensor:
    numbers = torch.from_numpy(drawn).float()
    part = [(2 * numbers[:, n] - 1).view(-1, 1, 1, 1) for n in range(3)]
    weights = torch.tensor(_GREY).view(1, 3, 1, 1)
    values = values * (1 + strength.brightness * part[0])
    middle = (values * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    values = middle + (values - middle) * (1 + strength.contrast * part[1])
    if strength.saturation or strength.odd:
        grey = (values * weights).sum(1, keepdim=True)
        values = grey + (values - grey) * (1 + strength.saturation * part[2])
        values = torch.where(_happens(numbers[:, 3], strength.odd), grey.expand_as(values), values)
    values = values.clamp(0, 1)
    if strength.odd:
        values = torch.where(_happens(numbers[:, 4], strength.odd) & (values > 0.5), 1 - values, values)
        values = torch.where(
            _happens(numbers[:, 5], strength.odd), torch.floor(values * 8).clamp(max=7) / 7, values
        )
    return values


def _happens(numbers: torch.Tensor, chance: float) -> torch.Tensor:
    return (numbers < chance).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Mixture:
    """Which other picture is mixed into each, and how."""

    partners: np.ndarray  # (B,) indices
    share: np.ndarray  # (B,) how much of the picture itself stays, 1 = all
    paste: np.ndarray  # (B,) bool: a rectangle is pasted (CutMix), else all pixels are blended (mixup)
    centre: np.ndarray  # (B, 2) of the rectangle, in [0, 1): down, right


def draw_mixture(
    mixup: float, cutmix: float, pictures: int, seed: int, epoch: int, indices: np.ndarray
) -> Mixture:
    """Partners among `pictures` pictures, shares from Beta(alpha, alpha).

    Zhang et al. 2018 (arXiv 1710.09412), Yun et al. 2019 (arXiv 1905.04899); with both, a coin decides for each picture.
    """
    drawn = uniform(seed, epoch, indices, _MIX, 4)
    partners = np.minimum((drawn[:, 0] * pictures).astype(np.int64), pictures - 1)
    paste = drawn[:, 1] < (0.5 if mixup and cutmix else float(bool(cutmix)))
    alphas = np.where(paste, cutmix, mixup)
    share = np.array(
        [
            np.random.default_rng([seed, epoch, int(index)]).beta(alpha, alpha)
            for index, alpha in zip(indices, alphas, strict=True)
        ]
    )
    return Mixture(partners, share, paste, drawn[:, 2:4])


def mix(own: torch.Tensor, other: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, np.ndarray]:
    """Pictures and their partners (B, 3, H, W) mixed; and how much of each label stays, as pixels say it."""
    height, width = own.shape[2:]
    half = np.sqrt(1 - mixture.share)[:, None] * np.array([height, width]) / 2
    centre = mixture.centre * np.array([height, width])
    low = np.clip(np.round(centre - half), 0, [height, width]).astype(int)
    high = np.clip(np.round(centre + half), 0, [height, width]).astype(int)
    inside = _rectangles(low, high, height, width)
    paste = torch.from_numpy(mixture.paste).view(-1, 1, 1, 1)
    share = torch.from_numpy(mixture.share).float().view(-1, 1, 1, 1)
    keep = torch.where(paste, (~inside).float(), share.expand_as(inside))
    kept = np.where(mixture.paste, 1 - np.prod(high - low, 1) / (height * width), mixture.share)
    return own * keep + other * (1 - keep), kept


def erase(values: torch.Tensor, chance: float, seed: int, epoch: int, indices: np.ndarray) -> torch.Tensor:
    """Normalised pictures in which a rectangle of 2 to 33 % is zero (Zhong et al. 2020, arXiv 1708.04896)."""
    drawn = uniform(seed, epoch, indices, _ERASE, 5)
    height, width = values.shape[2:]
    area = 0.02 + drawn[:, 1] * 0.31
    stretch = np.exp((2 * drawn[:, 2] - 1) * math.log(3.3) / 2)
    sides = np.stack([np.sqrt(area) * stretch, np.sqrt(area) / stretch], 1).clip(0, 1) * [height, width]
    sides = np.maximum(1, np.round(sides)).astype(int)
    low = np.floor(drawn[:, 3:5] * ([height, width] - sides + 1)).astype(int)
    inside = _rectangles(low, low + sides, height, width)
    return values.masked_fill(inside & _happens(torch.from_numpy(drawn[:, 0]), chance), 0.0)


def _rectangles(low: np.ndarray, high: np.ndarray, height: int, width: int) -> torch.Tensor:
    """(B, 1, H, W) bool: inside the rectangle from `low` to `high`, each (B, 2) as (down, right)."""
    down, right = np.arange(height), np.arange(width)
    rows = (down >= low[:, :1]) & (down < high[:, :1])
    columns = (right >= low[:, 1:]) & (right < high[:, 1:])
    return torch.from_numpy(rows[:, :, None] & columns[:, None, :]).unsqueeze(1)
