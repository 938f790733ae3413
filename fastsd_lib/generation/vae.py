"""Pictures <-> latents, within the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.formats.parts import Parts

if TYPE_CHECKING:
    from PIL.Image import Image

DECODE_PIXELS = 512 * 512  # the VAE's memory peaks at full resolution, so it takes fewer at once


def decode(parts: Parts, latents: torch.Tensor, note: Callable[[str], None]) -> list[Image]:
    """Latents (B, C, h, w) -> RGB pictures. `note` hears what was done when memory or fp16 did not suffice."""
    from PIL import Image

    pictures = []
    with parts.at_work(parts.vae):
        for some in _unscaled(parts.vae.config, latents).split(_at_once(parts, latents)):
            pixels = _in_numbers(parts, some, lambda x: parts.vae.decode(x, return_dict=False)[0], note)
            levels = (pixels.float() * 127.5 + 127.5).round_().clamp_(0, 255).to(torch.uint8)
            arrays = levels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
            pictures += [Image.fromarray(array) for array in arrays]
    return pictures


def encode(
    parts: Parts, pictures: Sequence[Image], note: Callable[[str], None], hidden: Image | None = None
) -> torch.Tensor:
    """RGB pictures of one size -> latents (B, C, h, w), float32: the mean of what the VAE would draw from.

    `hidden`: a mask of that size (L); what is white in it becomes the exact middle gray, which is no level of 255.
    """
    import numpy as np

    arrays = np.stack([np.asarray(picture.convert("RGB"), dtype=np.float32) for picture in pictures])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1  # (B, 3, H, W) in [-1, 1]
    if hidden is not None:
        pixels = pixels * (1 - torch.from_numpy(np.asarray(hidden, dtype=np.float32)) / 255)
    with parts.at_work(parts.vae):
        means = [
            _in_numbers(parts, one, lambda x: parts.vae.encode(x).latent_dist.mean, note)
            for one in pixels.split(1)
        ]
    return _scaled(parts.vae.config, torch.cat(means).float())


def _scaled(config: Any, latents: torch.Tensor) -> torch.Tensor:
    """From the VAE's own numbers to those that the U-Net was trained on."""
    mean, std = _spread(config, latents)
    return (latents - mean) * config.scaling_factor / std


def _unscaled(config: Any, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _spread(config, latents)
    return latents * std / config.scaling_factor + mean


def _spread(config: Any, like: torch.Tensor) -> tuple[Any, Any]:
    """Mean and standard deviation by channel, of the few models that say them."""
    if not (getattr(config, "latents_mean", None) and getattr(config, "latents_std", None)):
        return 0, 1
    sides = (config.latents_mean, config.latents_std)
    return tuple(torch.tensor(side).to(like)[None, :, None, None] for side in sides)


def _in_numbers(
    parts: Parts,
    batch: torch.Tensor,
    work: Callable[[torch.Tensor], torch.Tensor],
    note: Callable[[str], None],
) -> torch.Tensor:
    """The VAE's answer to float32 numbers; SDXL's leaves the range of fp16, and then goes on in float32."""
    like = next(parts.vae.parameters())
    answer = _thrifty(parts, batch.to(like), work, note)
    if torch.isfinite(answer).all():
        return answer
    if like.dtype != torch.float32 and torch.isfinite(batch).all():
        name = str(like.dtype).removeprefix("torch.")
        note(f"the VAE gave no numbers (NaN) in {name}: it works in float32 from here on")
        with torch.inference_mode(False), torch.no_grad():  # its weights stay ordinary ones
            parts.vae.float()
        return _in_numbers(parts, batch, work, note)
    raise UserError(f"The VAE of {parts.name} gave no numbers (NaN).", fix="choose another VAE for it.")


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
