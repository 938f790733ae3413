"""Stepping rules along the probability flow ODE: without fresh noise, unless churn asks for some."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from fastsd_lib.generation.stepping import (
    Ask,
    Noise,
    SamplerSettings,
    Steps,
    churned,
    exponential_step,
    log_snr,
    slope,
)


def euler(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Karras et al. 2022, algorithm 2 without the correction of second order."""
    steps = len(sigmas) - 1
    for step in range(steps):
        x, sigma = churned(x, sigmas[step], steps, noise, settings)
        denoised = (yield Ask(x, sigma, step)).denoised
        x = x + slope(x, sigma, denoised) * (sigmas[step + 1] - sigma)
    return x


def heun(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Karras et al. 2022, algorithm 2."""
    steps = len(sigmas) - 1
    for step in range(steps):
        x, sigma = churned(x, sigmas[step], steps, noise, settings)
        x = yield from heun_step(x, sigma, sigmas[step + 1], step)
    return x


def heun_step(x: torch.Tensor, sigma: float, sigma_next: float, step: int) -> Steps:
    """One trapezoidal step; to no noise at all, where there is no slope, an Euler step."""
    first = slope(x, sigma, (yield Ask(x, sigma, step)).denoised)
    ahead = x + first * (sigma_next - sigma)
    if sigma_next == 0:
        return ahead
    second = slope(ahead, sigma_next, (yield Ask(ahead, sigma_next, step)).denoised)
    return x + (first + second) / 2 * (sigma_next - sigma)


def dpm2(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Midpoint steps, the midpoint in log sigma as in DPM-Solver-2 (Lu et al. 2022a), with Karras' churn."""
    steps = len(sigmas) - 1
    for step in range(steps):
        x, sigma = churned(x, sigmas[step], steps, noise, settings)
        x = yield from midpoint_step(x, sigma, sigmas[step + 1], step)
    return x


def midpoint_step(x: torch.Tensor, sigma: float, sigma_next: float, step: int) -> Steps:
    first = slope(x, sigma, (yield Ask(x, sigma, step)).denoised)
    if sigma_next == 0:
        return x - first * sigma
    middle = math.sqrt(sigma * sigma_next)
    halfway = x + first * (middle - sigma)
    second = slope(halfway, middle, (yield Ask(halfway, middle, step)).denoised)
    return x + second * (sigma_next - sigma)


def lms(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Adams-Bashforth of fourth order on uneven steps: the last slopes' polynomial in sigma, integrated."""
    slopes: list[torch.Tensor] = []
    for step in range(len(sigmas) - 1):
        slopes.append(slope(x, sigmas[step], (yield Ask(x, sigmas[step], step)).denoised))
        slopes = slopes[-4:]
        known = sigmas[step + 1 - len(slopes) : step + 1]
        for weight, past in zip(adams_weights(known, sigmas[step + 1]), slopes, strict=True):
            x = x + weight * past
    return x


def adams_weights(known: Sequence[float], ahead: float) -> list[float]:
    """The integral from known[-1] to `ahead` of each Lagrange polynomial through the points `known`."""
    weights = []
    for number, point in enumerate(known):
        others = [other for place, other in enumerate(known) if place != number]
        basis = np.poly1d(others, r=True) / math.prod(point - other for other in others)
        area = basis.integ()
        weights.append(float(area(ahead) - area(known[-1])))
    return weights


def dpmpp_2m(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """DPM-Solver++(2M): Lu et al. 2022b, algorithm 2."""
    before = None
    for step in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        denoised = (yield Ask(x, sigma, step)).denoised
        ahead = denoised
        if before is not None and sigma_next > 0:  # to no noise at all a first-order step is exact enough
            ratio = math.log(sigmas[step - 1] / sigma) / math.log(sigma / sigma_next)
            ahead = denoised + (denoised - before) / (2 * ratio)
        x, before = exponential_step(x, ahead, sigma, sigma_next), denoised
    return x


def ddim_cfgpp(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Chung et al. 2024, "CFG++", algorithm 2: the noise that is put back is the unconditional one."""
    for step in range(len(sigmas) - 1):
        told = yield Ask(x, sigmas[step], step)
        x = told.denoised + slope(x, sigmas[step], told.unconditional) * sigmas[step + 1]
    return x


def plms(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """PLMS: Liu et al. 2022, "Pseudo Numerical Methods", equation 12; begun with one pseudo improved Euler step.

    The weights are those of even steps, whatever the schedule, as published.
    """
    slopes: list[torch.Tensor] = []
    for step in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        slopes.append(slope(x, sigma, (yield Ask(x, sigma, step)).denoised))
        if len(slopes) == 1 and sigma_next > 0:
            ahead = x + slopes[0] * (sigma_next - sigma)
            there = slope(ahead, sigma_next, (yield Ask(ahead, sigma_next, step)).denoised)
            mixed = (slopes[0] + there) / 2
        else:
            slopes = slopes[-4:]
            weights = ADAMS_EVEN[len(slopes) - 1]
            mixed = sum(weight * past for weight, past in zip(weights, slopes, strict=True))
        x = x + mixed * (sigma_next - sigma)
    return x


ADAMS_EVEN = ((1.0,), (-1 / 2, 3 / 2), (5 / 12, -16 / 12, 23 / 12), (-9 / 24, 37 / 24, -59 / 24, 55 / 24))


def unipc(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """UniPC of second order with B(h) = exp(h) - 1: Zhao et al. 2023, algorithms 5 and 6 for predicted data.

    Each estimate first corrects the point that it was made at, then predicts the next one.
    """
    steps, order = len(sigmas) - 1, 0
    past: list[tuple[float, torch.Tensor]] = []  # (log snr, denoised), oldest first
    origin = x
    for step in range(steps):
        sigma = sigmas[step]
        denoised = (yield Ask(x, sigma, step)).denoised
        if past:
            x = _unified(origin, sigmas[step - 1], sigma, past[-order:], denoised)
        past = [*past, (log_snr(sigma), denoised)][-UNIPC_ORDER:]
        order = min(len(past), UNIPC_ORDER, steps - step)
        origin = x
        x = _unified(origin, sigma, sigmas[step + 1], past[-order:], None)
    return x


UNIPC_ORDER = 2


def _unified(
    x: torch.Tensor,
    sigma: float,
    sigma_next: float,
    past: Sequence[tuple[float, torch.Tensor]],
    ahead: torch.Tensor | None,
) -> torch.Tensor:
    """One step of UniPC from sigma to sigma_next; with `ahead`, the estimate there, the corrected step."""
    here, denoised = past[-1]
    moved = exponential_step(x, denoised, sigma, sigma_next)
    known = [((time - here), other - denoised) for time, other in past[-2::-1]]
    if ahead is not None:
        known.append((log_snr(sigma_next) - here, ahead - denoised))
    if not known:
        return moved
    h = log_snr(sigma_next) - here
    places = np.array([time / h for time, _ in known])
    if len(known) == 1:
        weights = [0.5]  # the paper's choice where one condition is left
    else:
        powers = np.stack([places**power for power in range(len(known))])
        weights = np.linalg.solve(powers, _unipc_targets(-h, len(known))).tolist()
    shift = sum(
        weight / place * change for weight, place, (_, change) in zip(weights, places, known, strict=True)
    )
    return moved - math.expm1(-h) * shift


def _unipc_targets(h: float, count: int) -> np.ndarray:
    """The right-hand sides phi_2, phi_3 ... of the order conditions, over B(h)."""
    phi, factorial, targets = math.expm1(h) / h - 1, 1, []
    for number in range(1, count + 1):
        targets.append(phi * factorial / math.expm1(h))
        factorial *= number + 1
        phi = phi / h - 1 / factorial
    return np.array(targets)
