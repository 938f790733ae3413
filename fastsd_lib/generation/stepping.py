"""What every stepping rule has in common: what it asks for, what it is told, and the words of its settings.

A rule is a generator. It yields an `Ask`, a noisy picture at a noise level; it is sent an `Estimate`, the
picture that the model sees behind the noise; and it returns the finished latents. It knows no model: whoever
drives it may put the asks of many requests into one forward, each with its own sampler and steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch


class Ask(NamedTuple):
    x: torch.Tensor  # (B, C, h, w) float32, picture + sigma * noise
    sigma: float
    step: int  # of the sampler, from 0; several asks of one step are its inner evaluations


class Estimate(NamedTuple):
    denoised: torch.Tensor  # like x: the picture behind the noise, guided by the prompt
    unconditional: torch.Tensor  # the same without the prompt; `denoised` where nothing is guided


class Noise(Protocol):
    """Fresh noise in the shape of x, of variance 1; a picture's noise is a function of its seed alone."""

    def fresh(self) -> torch.Tensor: ...

    def between(self, sigma: float, sigma_next: float) -> torch.Tensor:
        """The part of one random walk that lies between two noise levels: finer steps walk the same path."""
        ...


@dataclass(frozen=True)
class SamplerSettings:
    """Karras et al. 2022, algorithm 2 (churn), and the noise of the ancestral and SDE rules."""

    eta: float = 0.0  # share of fresh noise per step
    s_churn: float = 0.0  # extra noise before each step, over all steps
    s_tmin: float = 0.0  # churn only at noise levels in s_tmin..s_tmax
    s_tmax: float = math.inf
    s_noise: float = 1.0  # how strong all fresh noise is


Steps = Generator[Ask, Estimate, torch.Tensor]
Rule = Callable[[torch.Tensor, list[float], Noise, SamplerSettings], Steps]


def slope(x: torch.Tensor, sigma: float, denoised: torch.Tensor) -> torch.Tensor:
    """dx/dsigma of the probability flow ODE, which is also the noise in x (Karras et al. 2022, equation 3)."""
    return (x - denoised) / sigma


def churned(
    x: torch.Tensor, sigma: float, steps: int, noise: Noise, settings: SamplerSettings
) -> tuple[torch.Tensor, float]:
    """Karras et al. 2022, algorithm 2, lines 4 to 6: raise the noise a little before the step."""
    if not settings.s_churn or not settings.s_tmin <= sigma <= settings.s_tmax:
        return x, sigma
    raised = sigma * (1 + min(settings.s_churn / steps, math.sqrt(2) - 1))
    return x + noise.fresh() * (settings.s_noise * math.sqrt(raised**2 - sigma**2)), raised


def split_step(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """How far down to step, and how much noise to add back to stand at sigma_next.

    Song et al. 2021 (DDIM), equation 16, in terms of sigma: down**2 + up**2 == sigma_next**2.
    """
    if sigma_next == 0 or eta == 0:
        return sigma_next, 0.0
    up = min(sigma_next, eta * math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2)) / sigma)
    return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up


def log_snr(sigma: float) -> float:
    """The half-logarithm of signal to noise, the time of the DPM-Solvers; infinite without noise."""
    return math.inf if sigma == 0 else -math.log(sigma)


def exponential_step(
    x: torch.Tensor, denoised: torch.Tensor, sigma: float, sigma_next: float
) -> torch.Tensor:
    """The exact step if `denoised` stayed as it is: DDIM, and DPM-Solver++ of first order (equation 8)."""
    share = sigma_next / sigma
    return share * x + (1 - share) * denoised
