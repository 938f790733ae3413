"""Latents as a rough picture, without the VAE's decoder."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fastsd_lib.formats.parts import Parts

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 16  # latents along the side of the pictures that the fit learns from
MOST_PX = 512  # of a preview's longer side

_fits: weakref.WeakKeyDictionary[torch.nn.Module, torch.Tensor] = weakref.WeakKeyDictionary()
_fitting = threading.Lock()


def rough_picture(parts: Parts, latents: torch.Tensor) -> Image:
    """Latents (1, C, h, w) -> RGB, each latent one colour: a linear fit to what this VAE makes of colours."""
    from PIL import Image

    with torch.inference_mode():
        cells = latents[0].float().cpu().flatten(1).T  # (h * w, C)
        colours = F.pad(cells, (0, 1), value=1.0) @ _fit(parts)
        levels = (colours.clamp(0, 1) * 255).round().to(torch.uint8).reshape(*latents.shape[2:], 3)
    small = Image.fromarray(levels.numpy())
    factor = min(parts.vae_factor, MOST_PX / max(small.size))
    return small.resize([max(round(side * factor), 1) for side in small.size], Image.Resampling.BICUBIC)


def _fit(parts: Parts) -> torch.Tensor:
    """(C + 1, 3): least squares over the cells of a few coloured pictures; made once per VAE."""
    with _fitting:
        found = _fits.get(parts.vae)
        if found is None:
            found = _fits[parts.vae] = _learned(parts)
        return found


def _learned(parts: Parts) -> torch.Tensor:
    like = next(parts.vae.parameters())
    generator = torch.Generator().manual_seed(0)
    colours = torch.cat(
        [
            F.interpolate(torch.rand(2, 3, patches, patches, generator=generator), size=SIDE, mode="bilinear")
            for patches in (2, 4, 8)
        ]
    )  # (6, 3, 16, 16) in 0..1
    pixels = F.interpolate(colours, scale_factor=parts.vae_factor, mode="nearest") * 2 - 1
    latents = parts.vae.encode(pixels.to(like)).latent_dist.mean.float() * parts.vae.config.scaling_factor
    cells = latents.cpu().permute(0, 2, 3, 1).flatten(0, 2)  # (6 * 16 * 16, C)
    wanted = colours.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.linalg.lstsq(F.pad(cells, (0, 1), value=1.0), wanted).solution
