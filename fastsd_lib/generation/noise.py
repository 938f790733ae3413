"""Each picture's randomness: a function of its own seed, drawn on the CPU, whatever is drawn beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

# The random walk's ends in log sigma: beyond the levels of any model. 2**15 cells of 0.0006 between them.
WALK_FROM, WALK_TO, WALK_DEPTH = math.log(1e-4), math.log(1e4), 15


@dataclass(frozen=True)
class Variation:
    """Another seed mixed into the first noise, and the size that the noise was first drawn for."""

    other_seeds: Sequence[int] = ()
    strength: float = 0.0  # 0 = the seed's own noise, 1 = the other seed's
    from_size: tuple[int, int] | None = None  # latents (h, w); the picture keeps its middle when resized


class PictureNoise:
    """The noise of one batch of pictures, shape (C, h, w) each; row i is a function of `seeds[i]` alone."""

    def __init__(
        self,
        seeds: Sequence[int],
        shape: tuple[int, int, int],
        device: torch.device,
        variation: Variation | None = None,
    ) -> None:
        self.shape, self.device, self.variation = shape, device, variation or Variation()
        self.seeds = list(seeds)
        self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        self.walks = [RandomWalk(seed, shape) for seed in seeds]

    def first(self) -> torch.Tensor:
        """(B, C, h, w) of variance 1: what the picture begins with."""
        variation = self.variation
        own = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        if variation.from_size in (None, self.shape[1:]):
            if variation.strength:
                own = [
                    slerp(noise, _drawn(other, self.shape), variation.strength)
                    for noise, other in zip(own, variation.other_seeds, strict=True)
                ]
            return torch.stack(own).to(self.device)
        small = (self.shape[0], *variation.from_size)
        middles = [_drawn(seed, small) for seed in self.seeds]
        if variation.strength:
            middles = [
                slerp(noise, _drawn(other, small), variation.strength)
                for noise, other in zip(middles, variation.other_seeds, strict=True)
            ]
        return torch.stack([_centred(*pair) for pair in zip(own, middles, strict=True)]).to(self.device)

    def fresh(self) -> torch.Tensor:
        return torch.stack([torch.randn(self.shape, generator=each) for each in self.generators]).to(
            self.device
        )

    def between(self, sigma: float, sigma_next: float) -> torch.Tensor:
        return torch.stack([walk.between(sigma, sigma_next) for walk in self.walks]).to(self.device)


class RandomWalk:
    """A Brownian motion over log sigma that can be asked for anywhere, in any order, without remembering.

    Lévy's construction: the middle of an interval is the mean of its ends plus noise that is seeded by the
    picture's seed and the interval's number. So more steps walk the same path more finely, and the picture
    settles as steps grow (Li et al. 2020, "Scalable Gradients for Stochastic Differential Equations", section 4).
    """

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.seed, self.shape = seed, shape
        self._last: tuple[int, torch.Tensor] | None = None

    def between(self, sigma: float, sigma_next: float) -> torch.Tensor:
        """Its increment from one level to the other, over the root of its length: noise of variance 1."""
        start, end = self._cell(sigma), self._cell(sigma_next)
        if start == end:  # closer than the walk is fine
            return self._node(2 * 2**WALK_DEPTH + start, 1.0)
        width = abs(end - start) / 2**WALK_DEPTH
        return (self._at(end) - self._at(start)) / math.sqrt(width)

    def _cell(self, sigma: float) -> int:
        place = (math.log(max(sigma, 1e-4)) - WALK_FROM) / (WALK_TO - WALK_FROM)
        return round(min(place, 1.0) * 2**WALK_DEPTH)

    def _at(self, cell: int) -> torch.Tensor:
        """Where it stands at `cell` of 2**WALK_DEPTH, having begun at 0 and walked for a time of 1."""
        if self._last and self._last[0] == cell:  # the end of one step is the start of the next
            return self._last[1]
        low, high, node = 0, 2**WALK_DEPTH, 1
        before, after = torch.zeros(self.shape), self._node(0, 1.0)
        while cell not in (low, high):
            middle = (low + high) // 2
            spread = math.sqrt((high - low) / 2**WALK_DEPTH) / 2
            value = (before + after) / 2 + self._node(node, spread)
            node *= 2
            if cell < middle:
                high, after = middle, value
            else:
                low, before, node = middle, value, node + 1
        found = before if cell == low else after
        self._last = cell, found
        return found

    def _node(self, number: int, spread: float) -> torch.Tensor:
        return _drawn(_mixed(self.seed, number), self.shape) * spread


def slerp(one: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """From `one` to `other` along the sphere (Shoemake 1985): unlike a mean, it keeps the noise's strength."""
    cosine = float((one / one.norm() * (other / other.norm())).sum().clamp(-1, 1))
    angle = math.acos(cosine)
    if math.sin(angle) < 1e-4:
        return torch.lerp(one, other, share)
    return (math.sin((1 - share) * angle) * one + math.sin(share * angle) * other) / math.sin(angle)


def _drawn(seed: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def _centred(canvas: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
    """`middle` laid over the middle of `canvas`; what hangs over is cut off."""
    result = canvas.clone()
    height, width = (min(canvas.shape[side], middle.shape[side]) for side in (1, 2))
    top, left = ((canvas.shape[1] - height) // 2, (canvas.shape[2] - width) // 2)
    upper, lefter = ((middle.shape[1] - height) // 2, (middle.shape[2] - width) // 2)
    result[:, top : top + height, left : left + width] = middle[
        :, upper : upper + height, lefter : lefter + width
    ]
    return result


def _mixed(seed: int, number: int) -> int:
    """SplitMix64 (Steele et al. 2014): seeds that look nothing like one another, in 63 bits."""
    value = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ (value >> shift)) * factor % 2**64
    return (value ^ (value >> 31)) % 2**63
