"""What the trainings of the embedded model's extras share: latents of the small world, and the loss on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.tiny_model.pictures import as_tensor
from fastsd_lib.formats.parts import Parts, load_parts
from fastsd_lib.models.registry import base_model

EXTRAS = Path(__file__).parents[2] / "fastsd_lib/models/embedded_extras"
MOST_WEIGHT = 10.0  # of a step's error in terms of the clean picture, where noise hides nearly all of it
MADE_BY = "python3 -m benchmarks.tiny_model."


def embedded_parts() -> Parts:
    return load_parts(base_model("embedded"), torch.device("cpu"), torch.float32)


@torch.no_grad()
def latents_of(parts: Parts, pictures: Sequence[Image.Image]) -> torch.Tensor:
    """(N, 4, 16, 16), scaled."""
    rows = [
        as_tensor(np.stack([np.asarray(one.convert("RGB")) for one in pictures[first : first + 64]]))
        for first in range(0, len(pictures), 64)
    ]
    clean = torch.cat([parts.vae.encode(one).latent_dist.mode() for one in rows])
    return clean * parts.vae.config.scaling_factor


def loss_of(parts: Parts, clean: torch.Tensor, states: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Error of the noise that the U-Net sees in `clean` (B, 4, 16, 16), at one noise level each.

    Weighed like the error of the clean picture, up to `MOST_WEIGHT`: colours are decided where noise is strong.
    """
    kept = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    kept = kept.square().neg().add(1).cumprod(0).float()
    batch = len(clean)
    times = ((torch.randperm(batch, generator=random) + torch.rand(batch, generator=random)) / batch) * 1000
    times = times.long()
    noise = torch.randn(clean.shape, generator=random)
    share = kept[times][:, None, None, None]
    answer = parts.unet(share.sqrt() * clean + (1 - share).sqrt() * noise, times, states, return_dict=False)[
        0
    ]
    weight = ((1 - kept) / kept).clamp(max=MOST_WEIGHT)[times]
    return ((answer - noise).square().mean((1, 2, 3)) * weight).mean()


def decaying(step: int, steps: int, warmup: int = 20) -> float:
    """Share of the learning rate: up at first, then down to nothing along a cosine."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + np.cos(np.pi * step / steps))
