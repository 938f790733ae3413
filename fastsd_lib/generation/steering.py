"""ControlNets at work: what they add to the U-Net, for exactly the rows that asked for it.

Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models", arXiv 2302.05543.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from fastsd_lib.generation.seen_text import SeenText, join
from fastsd_lib.generation.tiling import seamless

SOFTNESS = 0.825  # per block away from the middle one, of A1111's extension in the modes other than balanced


@dataclass(frozen=True)
class Steering:
    """One ControlNet with its picture, in one pass."""

    net: torch.nn.Module
    hint: torch.Tensor  # (1, 3, H, W) in [0, 1]; -1 where an inpainting ControlNet is to draw anew
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"  # one of control_request.CONTROL_MODES
    region: torch.Tensor | None = None  # (1, 1, h, w) in [0, 1]: how much it acts where
    tiling: bool = False

    def acts(self, step: int, steps: int) -> bool:
        """Whether the whole of this step lies within its part of the pass, as diffusers counts."""
        return bool(self.weight) and acts(step, steps, self.start, self.end)

    def scales(self, count: int) -> list[float]:
        """Its weight on each of the `count` residuals, the outermost first and the middle block's last."""
        softness = 1.0 if self.mode == "balanced" else SOFTNESS
        return [self.weight * softness ** (count - 1 - place) for place in range(count)]


class Seen(NamedTuple):
    """Some pictures in the U-Net's batch with the text that they are seen with."""

    x: torch.Tensor  # (B, C, h, w)
    time: float
    text: SeenText
    prompted: bool  # False: the negative prompt
    control: Sequence[Steering]  # those that act now


def acts(step: int, steps: int, start: float, end: float) -> bool:
    return step / steps >= start and (step + 1) / steps <= end


def residuals(blocks: Sequence[Seen]) -> dict[str, Any]:
    """The U-Net's arguments for all rows of the blocks, in their order; none where nothing steers.

    Rows without a ControlNet get zeros. A ControlNet sees all rows that are of the same length of text at once.
    """
    calls: dict[tuple[int, int], list[tuple[int, Steering]]] = defaultdict(list)
    for place, block in enumerate(blocks):
        for one in block.control:
            if block.prompted or one.mode != "control":
                calls[id(one.net), len(block.text.hidden)].append((place, one))
    sums: dict[int, list[torch.Tensor]] = {}
    for asked in calls.values():
        for (place, one), added in zip(asked, _answers(blocks, asked), strict=True):
            scaled = [
                level * scale if one.region is None else level * scale * _at_size(one.region, level)
                for level, scale in zip(added, one.scales(len(added)), strict=True)
            ]
            before = sums.get(place)
            sums[place] = [a + b for a, b in zip(before, scaled, strict=True)] if before else scaled
    if not sums:
        return {}
    shapes = [level.shape[1:] for level in next(iter(sums.values()))]
    levels = []
    for number, shape in enumerate(shapes):
        like = next(iter(sums.values()))[number]
        rows = [
            sums[place][number] if place in sums else like.new_zeros(len(block.x), *shape)
            for place, block in enumerate(blocks)
        ]
        levels.append(torch.cat(rows))
    return {
        "down_block_additional_residuals": tuple(levels[:-1]),
        "mid_block_additional_residual": levels[-1],
    }


def _answers(blocks: Sequence[Seen], asked: list[tuple[int, Steering]]) -> list[list[torch.Tensor]]:
    """One call of one ControlNet: what it adds to each of the asked blocks, level by level."""
    net = asked[0][1].net
    like = next(net.parameters())
    channels = net.config.in_channels  # of the picture; an inpainting model's mask is not for it
    chosen = [(blocks[place], one) for place, one in asked]
    with seamless(asked[0][1].tiling, net):  # all that share a call of the U-Net are of one kind
        down, middle = net(
            torch.cat([block.x[:, :channels] for block, _ in chosen]).to(like.dtype),
            torch.tensor(
                [block.time for block, _ in chosen for _ in block.x], dtype=torch.float32, device=like.device
            ),
            **join([(block.text, len(block.x)) for block, _ in chosen]),
            controlnet_cond=torch.cat(
                [one.hint.expand(len(block.x), -1, -1, -1) for block, one in chosen]
            ).to(like),
            return_dict=False,
        )
    sizes = [len(block.x) for block, _ in chosen]
    return [list(levels) for levels in zip(*(level.split(sizes) for level in (*down, middle)), strict=True)]


def _at_size(region: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    if 1 in level.shape[2:]:  # pooled: it acts as much as the region is large
        return region.mean().to(level)
    return F.interpolate(region.float(), level.shape[2:], mode="bilinear", antialias=True).to(level)
