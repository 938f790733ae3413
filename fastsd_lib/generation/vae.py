"""Pictures <-> latents, within the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts

if TYPE_CHECKING:
    from PIL.Image import Image

DECODE_PIXELS = 512 * 512  # the VAE's memory peaks at full resolution, so it takes fewer at once


def decode(parts: Parts, latents: torch.Tensor, note: Callable[[str], None]) -> list[Image]:
    """Latents (B, C, h, w) -> RGB pictures. `note` hears what was done when memory did not suffice."""
    from PIL import Image

    like = next(parts.vae.parameters())
    scaled = (latents / parts.vae.config.scaling_factor).to(like.dtype)
    pictures = []
    for some in scaled.split(_at_once(parts, scaled)):
        pixels = _thrifty(parts, some, lambda x: parts.vae.decode(x, return_dict=False)[0], note)
        levels = (pixels.float() * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8)
        arrays = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        pictures += [Image.fromarray(array) for array in arrays]
    return pictures


def encode(parts: Parts, pictures: Sequence[Image], note: Callable[[str], None]) -> torch.Tensor:
    """RGB pictures of one size -> latents (B, C, h, w), float32: the mean of what the VAE would draw from."""
    import numpy as np

    like = next(parts.vae.parameters())
    arrays = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W) in [-1, 1]
    means = [
        _thrifty(parts, one.to(like), lambda x: parts.vae.encode(x).latent_dist.mean, note)
        for one in pixels.split(1)
    ]
    return torch.cat(means).float() * parts.vae.config.scaling_factor


def _at_once(parts: Parts, latents: torch.Tensor) -> int:
    return max(1, DECODE_PIXELS // (latents.shape[2] * latents.shape[3] * parts.vae_factor**2))


def _thrifty(
    parts: Parts,
    batch: torch.Tensor,
    work: Callable[[torch.Tensor], torch.Tensor],
    note: Callable[[str], None],
) -> torch.Tensor:
    """All at once, else one by one, else each in overlapping tiles."""
    try:
        return work(batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
    release()
    if len(batch) > 1:
        note("out of memory in the VAE: pictures are decoded one by one")
        return torch.cat([_thrifty(parts, one, work, note) for one in batch.split(1)])
    note("out of memory in the VAE: the picture is decoded in tiles")
    parts.vae.enable_tiling()
    try:
        return work(batch)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            "The memory does not suffice for a picture of this size.", fix="take a smaller width and height."
        ) from None
    finally:
        parts.vae.disable_tiling()


def out_of_memory(error: RuntimeError) -> bool:
    """The GPU's allocator has an error of its own; the CPU's only says so."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def release() -> None:
    """Give back what the allocator keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
