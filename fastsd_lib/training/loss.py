"""Noise in, error out: the training objective of latent diffusion (Ho et al. 2020, arXiv 2006.11239)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.training.config import DreamBoothConfig


class NoiseScheduler:
    """Adds noise in training; read from a pipeline's scheduler_config.json.

    alphas_cumprod: (num_train_timesteps,), the share of the picture's variance that is left at each timestep.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        steps = int(config.get("num_train_timesteps", 1000))
        first, last = float(config.get("beta_start", 0.00085)), float(config.get("beta_end", 0.012))
        shape = config.get("beta_schedule", "scaled_linear")
        if shape == "scaled_linear":
            betas = torch.linspace(first**0.5, last**0.5, steps, dtype=torch.float32) ** 2
        elif shape == "linear":
            betas = torch.linspace(first, last, steps, dtype=torch.float32)
        else:
            raise UserError(
                f"This model was trained with the noise schedule {shape!r}.",
                fix="choose a Stable Diffusion 1.x or 2.x model.",
            )
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise UserError(
                f"This model predicts {self.prediction_type!r}.",
                fix="choose a model that predicts epsilon or v_prediction.",
            )
        self.alphas_cumprod = (1 - betas).cumprod(0)

    @property
    def timesteps(self) -> int:
        return len(self.alphas_cumprod)

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        kept = self._at(timesteps, latents)
        return kept.sqrt() * latents + (1 - kept).sqrt() * noise

    def target(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """What the U-Net should answer: the noise, or v (Salimans & Ho 2022, arXiv 2202.00512)."""
        if self.prediction_type == "epsilon":
            return noise
        kept = self._at(timesteps, latents)
        return kept.sqrt() * noise - (1 - kept).sqrt() * latents

    def snr_weights(self, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
        """(B,) min-SNR weights (Hang et al. 2023, arXiv 2303.09556); ones where gamma is 0."""
        if gamma <= 0:
            return torch.ones(len(timesteps))
        kept = self.alphas_cumprod[timesteps.cpu()]
        snr = kept / (1 - kept)
        divisor = snr if self.prediction_type == "epsilon" else snr + 1
        return snr.clamp(max=gamma) / divisor

    def _at(self, timesteps: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return self.alphas_cumprod[timesteps.cpu()].to(like.device, like.dtype).view(-1, 1, 1, 1)


def draw_noise(
    shape: torch.Size, timesteps: int, offset: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of `shape` and one timestep per picture, on the CPU, so that every device trains on the same draw.

    `offset` adds one value per channel, which lets a style reach full black and white.
    """
    noise = torch.randn(shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(shape[0], shape[1], 1, 1, generator=generator)
    return noise, torch.randint(timesteps, (shape[0],), generator=generator)


def dreambooth_loss(
    predicted: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, config: DreamBoothConfig
) -> torch.Tensor:
    """Mean squared error of the instances plus, with prior preservation, that of the class images in the second half.

    Ruiz et al. 2022 (arXiv 2208.12242), equation 2. Every picture keeps its own SNR weight.
    """
    errors = (predicted.float() - target.float()).square().mean((1, 2, 3)) * weights.to(predicted.device)
    if not config.prior_preservation:
        return errors.mean()
    instance, prior = errors.chunk(2)
    return instance.mean() + config.prior_loss_weight * prior.mean()


def learning_rate_factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """In [0, 1]: what the schedule leaves of the learning rate at `step` (from 0) of `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    part = (step - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1.0 - part, "cosine": 0.5 * (1 + math.cos(math.pi * part))}[schedule]
