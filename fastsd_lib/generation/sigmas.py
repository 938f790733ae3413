"""The noise levels of a model, and the spacings in which a sampler walks down them.

A noise level is sigma = noise / picture in the model's mixture: x = picture + sigma * noise (Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models"). SD 1.x goes from 14.6 to 0.029.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES

# Sabour et al. 2024, "Align Your Steps", the levels they publish for SD 1.5 and SDXL at ten steps.
ALIGN_YOUR_STEPS = {
    "sd1": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
# A model trained to zero signal has an infinite last level; this share of signal stands in for none.
LEAST_SIGNAL = 2.0**-24


@dataclass(frozen=True)
class NoiseLevels:
    """The levels a model was trained on, and what its output means."""

    sigmas: np.ndarray  # (training steps,) float64, rising
    prediction: str = "epsilon"  # or "v_prediction", "sample"
    offset: int = 0  # the first training step that the "ddim" spacing takes
    family: str = "sd1"  # the model's, for schedules that were found by trying on one
    floor: float = 0.0  # where samplers end that end at the lowest trained level; 0 = no noise at all

    @property
    def lowest(self) -> float:
        return float(self.sigmas[0])

    @property
    def highest(self) -> float:
        return float(self.sigmas[-1])

    def sigma(self, timestep: float) -> float:
        """Between training steps log sigma is interpolated."""
        steps = np.arange(len(self.sigmas))
        return float(np.exp(np.interp(timestep, steps, np.log(self.sigmas))))

    def timestep(self, sigma: float) -> float:
        """What to tell the model at this level; the trained steps themselves come out whole."""
        logs = np.log(self.sigmas)
        found = float(np.interp(math.log(max(sigma, 1e-10)), logs, np.arange(len(logs))))
        return float(round(found)) if abs(found - round(found)) < 1e-6 else found


def noise_levels(config: Mapping[str, Any], family: str = "sd1") -> NoiseLevels:
    """From a model's scheduler_config.json; absent entries mean what they mean to diffusers."""
    steps = config.get("num_train_timesteps", 1000)
    first, last = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
    kind = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], dtype=np.float64)
    elif kind == "linear":
        betas = np.linspace(first, last, steps)
    elif kind == "scaled_linear":
        betas = np.linspace(first**0.5, last**0.5, steps) ** 2
    elif kind == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021
        share = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - share[1:] / share[:-1], 0.999)
    else:
        raise UserError(
            f"The model's scheduler config names the beta_schedule {kind!r}.",
            fix="take linear, scaled_linear or squaredcos_cap_v2, the ones pictures are drawn with.",
        )
    signal = np.cumprod(1 - betas)
    if config.get("rescale_betas_zero_snr"):  # Lin et al. 2024, algorithm 1
        root = np.sqrt(signal)
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        signal = np.maximum(root**2, LEAST_SIGNAL)
    sigmas = np.sqrt((1 - signal) / signal)
    return NoiseLevels(
        sigmas,
        config.get("prediction_type", "epsilon"),
        config.get("steps_offset", 0),
        family,
        0.0 if config.get("set_alpha_to_one", True) else float(sigmas[0]),
    )


def sigmas_for(
    sampler: str, schedule: str, steps: int, levels: NoiseLevels, rho: float | None = None
) -> list[float]:
    """`steps` falling noise levels and the one to end at, by our names of a sampler and a schedule."""
    chosen = SAMPLERS[sampler]
    spacing = chosen.schedule if schedule == "automatic" else schedule
    if rho is None:
        rho = SCHEDULES[spacing].rho or 1.0
    more = steps + chosen.drops_next_to_last
    falling = [float(sigma) for sigma in SPACINGS[spacing](more, levels, rho)]
    if chosen.drops_next_to_last and steps > 1:
        del falling[-1]
    falling = falling[:steps]
    return [*falling, levels.floor if chosen.ends_at_floor and falling[-1] > levels.floor * 1.001 else 0.0]


def _uniform(steps: int, levels: NoiseLevels, rho: float) -> list[float]:
    """Even in training steps, from the last to the first."""
    return [levels.sigma(step) for step in np.linspace(len(levels.sigmas) - 1, 0, steps)]


def _karras(steps: int, levels: NoiseLevels, rho: float) -> np.ndarray:
    """Karras et al. 2022, equation 5: even in the rho-th root."""
    high, low = levels.highest ** (1 / rho), levels.lowest ** (1 / rho)
    return np.linspace(high, low, steps) ** rho


def _exponential(steps: int, levels: NoiseLevels, rho: float) -> np.ndarray:
    """Even in log sigma."""
    return np.exp(np.linspace(math.log(levels.highest), math.log(levels.lowest), steps))


def _polyexponential(steps: int, levels: NoiseLevels, rho: float) -> np.ndarray:
    """A power of an even fall in log sigma; rho 1 is the exponential schedule."""
    ramp = np.linspace(1, 0, steps) ** rho
    low, high = math.log(levels.lowest), math.log(levels.highest)
    return np.exp(ramp * (high - low) + low)


def _sgm_uniform(steps: int, levels: NoiseLevels, rho: float) -> list[float]:
    """Even in training steps, without the very last: Stability's generative-models."""
    return [levels.sigma(step) for step in np.linspace(len(levels.sigmas) - 1, 0, steps + 1)[:-1]]


def _kl_optimal(steps: int, levels: NoiseLevels, rho: float) -> np.ndarray:
    """Sabour et al. 2024, theorem 3.1: the optimum for Gaussian data, even in arctan sigma."""
    return np.tan(np.linspace(math.atan(levels.highest), math.atan(levels.lowest), steps))


def _align_your_steps(steps: int, levels: NoiseLevels, rho: float) -> np.ndarray:
    """Sabour et al. 2024: levels optimised for SD 1.5 or SDXL, interpolated in log sigma."""
    published = ALIGN_YOUR_STEPS["sdxl" if levels.family == "sdxl" else "sd1"]
    places = np.linspace(0, 1, len(published))
    return np.exp(np.interp(np.linspace(0, 1, steps), places, np.log(published)))


def _simple(steps: int, levels: NoiseLevels, rho: float) -> list[float]:
    """Every n-th trained level, from the highest."""
    stride = len(levels.sigmas) / steps
    return [levels.sigmas[-1 - int(step * stride)] for step in range(steps)]


def _ddim(steps: int, levels: NoiseLevels, rho: float) -> list[float]:
    """Song et al. 2021 as published with SD 1.x: every n-th trained level, from the lowest plus the offset."""
    last = len(levels.sigmas) - 1
    stride = max(len(levels.sigmas) // steps, 1)
    offset = levels.offset if (steps - 1) * stride + levels.offset <= last else 0
    return [levels.sigmas[step * stride + offset] for step in reversed(range(steps))]


def _beta(steps: int, levels: NoiseLevels, rho: float) -> list[float]:
    """Lee et al. 2024, "Beta Sampling is All You Need": training steps by quantiles of Beta(0.6, 0.6)."""
    quantiles = _beta_quantiles(1 - np.linspace(0, 1, steps), 0.6)
    return [levels.sigma(step) for step in quantiles * (len(levels.sigmas) - 1)]


def _beta_quantiles(shares: np.ndarray, bend: float) -> np.ndarray:
    """Of Beta(bend, bend), by summing its density over the angle whose squared sine is the value."""
    edges = np.linspace(0, np.pi / 2, 200_001)
    middles = (edges[1:] + edges[:-1]) / 2
    area = np.concatenate([[0], np.cumsum(np.sin(2 * middles) ** (2 * bend - 1))])
    return np.sin(np.interp(shares, area / area[-1], edges)) ** 2


SPACINGS: dict[str, Callable[[int, NoiseLevels, float], Any]] = {
    "uniform": _uniform,
    "normal": _uniform,  # ComfyUI's name for the same
    "karras": _karras,
    "exponential": _exponential,
    "polyexponential": _polyexponential,
    "sgm_uniform": _sgm_uniform,
    "kl_optimal": _kl_optimal,
    "align_your_steps": _align_your_steps,
    "simple": _simple,
    "ddim": _ddim,
    "beta": _beta,
}
