"""DPM-Solver of order 1 to 3 on predicted noise (Lu et al. 2022a): "DPM fast" and "DPM adaptive"."""

from __future__ import annotations

import math

import torch

from fastsd_lib.generation.stepping import Ask, Noise, SamplerSettings, Steps, log_snr, slope, split_step


def dpm_fast(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Lu et al. 2022a, section 3.4 "DPM-Solver-fast": as many U-Net calls as steps, in steps of order 3, 2, 1.

    The last call takes away the noise that the solver cannot: its time is log sigma, which never reaches 0.
    """
    start, end, calls = _span(sigmas)
    left = calls % 3
    orders = [3] * (calls // 3) + [left] if left else [3] * (calls // 3 - 1) + [2, 1] * (calls > 0)
    done = 0
    for number, order in enumerate(orders):
        times = (start + place * (end - start) / len(orders) for place in (number, number + 1))
        sigma, sigma_next = (math.exp(-time) for time in times)
        down, up = split_step(sigma, sigma_next, settings.eta)
        points = yield from solver_step(x, sigma, down, order, done)
        x = points[-1] + (noise.fresh() * (settings.s_noise * up) if up else 0)
        done += order
    return (yield from _cleared(x, sigmas))


def dpm_adaptive(x: torch.Tensor, sigmas: list[float], noise: Noise, settings: SamplerSettings) -> Steps:
    """Lu et al. 2022a, appendix C "DPM-Solver-12/23": order 3 steps, their size by the error of order 2.

    The number of steps only measures progress; x must be one picture, for the error is measured over all of x.
    """
    start, end, calls = _span(sigmas)
    time, width, before = start, 0.05, x
    while time < end - 1e-5:
        width = min(width, end - time)
        sigma, sigma_next = math.exp(-time), math.exp(-time - width)
        down, up = split_step(sigma, sigma_next, settings.eta)
        step = int((time - start) / (end - start) * calls)
        rough, fine = yield from solver_step(x, sigma, down, 3, step)
        allowed = torch.maximum(rough.abs(), before.abs()).mul(0.05).clamp(min=0.0078)
        error = float(((rough - fine) / allowed).square().mean().sqrt())
        factor = 1 + math.atan((1 / max(error, 1e-8)) ** (1 / 3) - 1)  # at most a good double
        if factor >= 0.81:
            before = rough
            x = fine + (noise.fresh() * (settings.s_noise * up) if up else 0)
            time += width
        width *= factor
    return (yield from _cleared(x, sigmas))


def solver_step(x: torch.Tensor, sigma: float, sigma_next: float, order: int, step: int) -> Steps:
    """Algorithms 1 and 2 and equation 3.7 of Lu et al. 2022a; returns the results of order 2 and 3 for order 3.

    x is divided by the signal's share here, which leaves of their formulas the powers of exp(h).
    """
    h = log_snr(sigma_next) - log_snr(sigma)

    def at(share: float) -> float:
        return sigma * math.exp(-share * h)

    first = slope(x, sigma, (yield Ask(x, sigma, step)).denoised)
    if order == 1:
        return (x - sigma_next * math.expm1(h) * first,)
    inner = 1 / 2 if order == 2 else 1 / 3
    there = x - at(inner) * math.expm1(inner * h) * first
    second = slope(there, at(inner), (yield Ask(there, at(inner), step)).denoised)
    plain = x - sigma_next * math.expm1(h) * first
    of_second_order = plain - sigma_next * math.expm1(h) / (2 * inner) * (second - first)
    if order == 2:
        return (of_second_order,)
    two = 2 / 3
    there = x - at(two) * math.expm1(two * h) * first
    there = there - at(two) * (two / inner) * (math.expm1(two * h) / (two * h) - 1) * (second - first)
    third = slope(there, at(two), (yield Ask(there, at(two), step)).denoised)
    return of_second_order, plain - sigma_next / two * (math.expm1(h) / h - 1) * (third - first)


def _span(sigmas: list[float]) -> tuple[float, float, int]:
    """First and last level above zero, in half-log SNR, and the U-Net calls between them."""
    if sigmas[-1] > 0:
        return log_snr(sigmas[0]), log_snr(sigmas[-1]), len(sigmas) - 1
    return log_snr(sigmas[0]), log_snr(sigmas[-2]), len(sigmas) - 2


def _cleared(x: torch.Tensor, sigmas: list[float]) -> Steps:
    if sigmas[-1] > 0:
        return x
    return (yield Ask(x, sigmas[-2], len(sigmas) - 2)).denoised
