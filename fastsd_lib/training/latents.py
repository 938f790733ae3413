"""The latent cache: every picture goes through the VAE once, not once per step (1.3x to 1.5x per step)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, fingerprint
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.training.saving import save_tensors
from fastsd_lib.training.training_set import TrainingSet


@dataclass(frozen=True)
class LatentCache:
    """Moments, not samples, so that the VAE's noise stays fresh at every step.

    mean, deviation: (rows, views, C, H/f, W/f), unscaled; view 1 is the mirrored picture, if there is one.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def sample(self, rows: list[int], scaling_factor: float, generator: torch.Generator) -> torch.Tensor:
        """Scaled latents (len(rows), C, H/f, W/f)."""
        views = self.mean.shape[1]
        view = torch.randint(views, (len(rows),), generator=generator)
        mean, deviation = self.mean[rows, view], self.deviation[rows, view]
        return (mean + deviation * torch.randn(mean.shape, generator=generator)) * scaling_factor


@torch.inference_mode()
def encode(
    vae: torch.nn.Module, training_set: TrainingSet, resolution_px: int, flip: bool, report: Report = silent
) -> LatentCache:
    device, dtype = vae.device, vae.dtype
    total = len(training_set.prompts)
    report(ProgressEvent("latents", 0, total))
    means, deviations = [], []
    for row in range(total):
        pixels = training_set.pixels(row, resolution_px)
        views = torch.stack([pixels, pixels.flip(-1)] if flip else [pixels])
        posterior = vae.encode(views.to(device, dtype)).latent_dist
        means.append(posterior.mean.float().cpu())
        deviations.append(posterior.std.float().cpu())
        report(ProgressEvent("latents", row + 1, total))
    # In the order in which a file gives them back: a U-Net rounds other strides differently, and a resumed run
    # reads its latents from the file.
    return LatentCache(torch.stack(means).contiguous(), torch.stack(deviations).contiguous())


def load_or_encode(
    file: Path,
    vae: torch.nn.Module,
    vae_fingerprint: str,
    training_set: TrainingSet,
    resolution_px: int,
    flip: bool,
    report: Report = silent,
) -> LatentCache:
    """The cache of these very pictures by this very VAE: from `file` if it holds that, else made and written there."""
    wanted = fingerprint([vae_fingerprint, training_set.fingerprint, resolution_px, flip])
    held = _read(file, wanted)
    if held is not None:
        total = len(training_set.prompts)
        report(ProgressEvent("latents", total, total, {"from": "cache"}))
        return held
    made = encode(vae, training_set, resolution_px, flip, report)
    for row, prompt in enumerate(training_set.prompts):
        if not (torch.isfinite(made.mean[row]).all() and torch.isfinite(made.deviation[row]).all()):
            raise UserError(
                f"The VAE turned picture {row + 1} ({prompt!r}) into NaN.",
                fix="train with mixed_precision=no, or leave that photo out.",
            )
    with atomic_path(file) as scratch:
        save_tensors({"mean": made.mean, "deviation": made.deviation}, scratch, {"fingerprint": wanted})
    return made


def _read(file: Path, wanted: str) -> LatentCache | None:
    if not file.is_file():
        return None
    try:
        with safe_open(file, "pt") as held:
            if (held.metadata() or {}).get("fingerprint") != wanted:
                return None
            return LatentCache(held.get_tensor("mean"), held.get_tensor("deviation"))
    except (SafetensorError, OSError):  # damaged: it is only a cache
        return None
