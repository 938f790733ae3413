"""Stepping rules with fresh noise: ancestral ones, solvers of the reverse SDE, and those that throw back."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from fastsd_lib.generation.ode_steps import heun_step, midpoint_step
from fastsd_lib.generation.stepping import (
    Ask,
    Noise,
    SamplerSettings,
    Steps,
    exponential_step,
    log_snr,
    split_step,
)


def euler_ancestral(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """DDIM with its random part: Song et al. 2021, equation 12, in terms of sigma. With eta 0 it is DDIM."""
    for step in range(len(sigmas) - 1):
        down, up = split_step(sigmas[step], sigmas[step + 1], settings.eta)
        denoised = (yield Ask(x, sigmas[step], step)).denoised
        x = _stirred(exponential_step(x, denoised, sigmas[step], down), up, noise, settings)
    return x


def dpm2_ancestral(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Midpoint steps (Lu et al. 2022a, DPM-Solver-2) with DDIM's random part."""
    for step in range(len(sigmas) - 1):
        down, up = split_step(sigmas[step], sigmas[step + 1], settings.eta)
        x = yield from midpoint_step(x, sigmas[step], down, step)
        x = _stirred(x, up, noise, settings)
    return x


def dpmpp_2s_ancestral(
    x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings
) -> Steps:
    """DPM-Solver++(2S): Lu et al. 2022b, algorithm 1 with its inner point halfway, and DDIM's random part."""
    for step in range(len(sigmas) - 1):
        sigma = sigmas[step]
        down, up = split_step(sigma, sigmas[step + 1], settings.eta)
        denoised = (yield Ask(x, sigma, step)).denoised
        if down > 0:
            middle = math.sqrt(sigma * down)
            halfway = exponential_step(x, denoised, sigma, middle)
            denoised = (yield Ask(halfway, middle, step)).denoised
        x = _stirred(exponential_step(x, denoised, sigma, down), up, noise, settings)
    return x


def dpmpp_sde(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """DPM-Solver++ of second order for the reverse SDE, single step: Lu et al. 2022b, section 5, in two stages."""
    for step in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        denoised = (yield Ask(x, sigma, step)).denoised
        if sigma_next == 0:
            return denoised
        middle = math.sqrt(sigma * sigma_next)
        down, up = split_step(sigma, middle, settings.eta)
        halfway = exponential_step(x, denoised, sigma, down)
        if up:
            halfway = halfway + noise.between(sigma, middle) * (settings.s_noise * up)
        denoised = (yield Ask(halfway, middle, step)).denoised
        down, up = split_step(sigma, sigma_next, settings.eta)
        x = exponential_step(x, denoised, sigma, down)
        if up:
            x = x + noise.between(sigma, sigma_next) * (settings.s_noise * up)
    return x


def dpmpp_2m_sde(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """SDE-DPM-Solver++(2M): Lu et al. 2022b, equation 14, the slope of the estimates by the midpoint rule."""
    return (yield from _multistep_sde(x, sigmas, noise, settings, order=2, trapezoid=False))


def dpmpp_2m_sde_heun(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """The same with the slope integrated exactly."""
    return (yield from _multistep_sde(x, sigmas, noise, settings, order=2, trapezoid=True))


def dpmpp_3m_sde(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """DPM-Solver++(3M) of Lu et al. 2022b with SDE noise, on the last three estimates.

    Their code and every later one weigh the bend of the parabola by half of its exact integral, so that the
    order is 2 with a small constant. So do we: these are the pictures that go by this name.
    """
    return (yield from _multistep_sde(x, sigmas, noise, settings, order=3, trapezoid=True))


def _multistep_sde(
    x: torch.Tensor,
    sigmas: list[float],
    noise: Noise,
    settings: SamplerSettings,
    order: int,
    trapezoid: bool,
) -> Steps:
    """The estimates as a polynomial in log sigma through the last ones, against which the equation is exact.

    eta blends from the ODE (0) to the reverse SDE of the training noise (1): it scales the variance put back.
    """
    past: list[torch.Tensor] = []  # estimates, newest first
    widths: list[float] = []  # steps between them in log sigma, newest first
    for step in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        denoised = (yield Ask(x, sigma, step)).denoised
        if sigma_next == 0:
            return denoised
        h = log_snr(sigma_next) - log_snr(sigma)
        pull = h * (1 + settings.eta)
        first = -math.expm1(-pull)
        x = math.exp(-pull) * x + first * denoised
        second = math.expm1(-pull) / pull + 1
        if past and not trapezoid:
            second = first / 2
        if past:
            rise = (denoised - past[0]) / (widths[0] / h)
            if order == 3 and len(past) > 1:
                near, far = widths[0] / h, widths[1] / h
                earlier = (past[0] - past[1]) / far
                bend = (rise - earlier) / (near + far)
                rise = rise + bend * near
                x = x - (second / pull - 0.5) * bend
            x = x + second * rise
        if settings.eta:
            spread = sigma_next * math.sqrt(-math.expm1(-2 * h * settings.eta))
            x = x + noise.between(sigma, sigma_next) * (settings.s_noise * spread)
        past, widths = [denoised, *past][: order - 1], [h, *widths][: order - 1]
    return x


def lcm(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Multistep consistency sampling: Song et al. 2023, algorithm 1; Luo et al. 2023 for latents."""
    for step in range(len(sigmas) - 1):
        denoised = (yield Ask(x, sigmas[step], step)).denoised
        x = _stirred(denoised, sigmas[step + 1], noise, settings)
    return x


def restart(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Xu et al. 2023, "Restart Sampling": Heun's steps, thrown back from sigma 0.1 to 2 once or twice.

    The steps of the repetitions are taken from the budget, so that the sampler costs what its steps say.
    """
    for step, (sigma, sigma_next) in enumerate(legs := restart_legs(sigmas)):
        if step and sigma > legs[step - 1][1]:
            x = _stirred(x, math.sqrt(sigma**2 - legs[step - 1][1] ** 2), noise, settings)
        x = yield from heun_step(x, sigma, sigma_next, step)
    return x


def restart_legs(sigmas: list[float]) -> list[tuple[float, float]]:
    """(from, to) of every Heun step. Fewer than 20 steps leave no room for a restart."""
    steps = len(sigmas) - 1
    if steps < 20:
        return list(pairwise(sigmas))
    each, times = (steps // 4, 2) if steps >= 36 else (9, 1)
    main = [*_bent(sigmas[0], sigmas[-2], steps - each * times), sigmas[-1]]
    low = min(main[1:-1], key=lambda sigma: abs(sigma - 0.1))
    high = min(main, key=lambda sigma: abs(sigma - 2))
    legs = list(pairwise(main))
    if high > low:
        again = _bent(high, low, each + 1)
        place = main.index(low)
        legs[place:place] = list(pairwise(again)) * times
    return legs


def _bent(high: float, low: float, count: int) -> list[float]:
    """Karras et al. 2022, equation 5 with rho 7: the spacing that the restart paper uses."""
    ends = high ** (1 / 7), low ** (1 / 7)
    share = [number / max(count - 1, 1) for number in range(count)]
    bent = [(ends[0] + part * (ends[1] - ends[0])) ** 7 for part in share]
    return [high, *bent[1:-1], low] if count > 1 else [high]


def _stirred(x: torch.Tensor, up: float, noise: Noise, settings: SamplerSettings) -> torch.Tensor:
    return x + noise.fresh() * (settings.s_noise * up) if up else x
