"""Stepping rules against exact solutions: data of one Gaussian has a known denoiser and a known path."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.noise import PictureNoise
from fastsd_lib.generation.ode_steps import adams_weights
from fastsd_lib.generation.rules import RULES
from fastsd_lib.generation.samplers import (
    SAMPLER_NAMES,
    SAMPLERS,
    SCHEDULES,
    choose,
    find_sampler,
    find_schedule,
)
from fastsd_lib.generation.sigmas import noise_levels, sigmas_for
from fastsd_lib.generation.stepping import Estimate, SamplerSettings

MEAN, SPREAD = 0.7, 0.5  # of the data
LEVELS = noise_levels(
    {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "set_alpha_to_one": False}
)
# LCM takes each estimate whole, which is right for a consistency model only: it has a test of its own.
RANDOM = [name for name, entry in SAMPLERS.items() if entry.eta and name != "lcm"]
SHAPE = (1, 8, 8)


def denoised(x, sigma):
    """The mean of the data behind x: what a perfect model would answer."""
    return (SPREAD**2 * x + sigma**2 * MEAN) / (SPREAD**2 + sigma**2)


def exact(x, sigma, sigma_next):
    """The probability flow ODE in closed form."""
    return MEAN + (x - MEAN) * math.sqrt((SPREAD**2 + sigma_next**2) / (SPREAD**2 + sigma**2))


def walk(name, sigmas, settings=None, seeds=(3,), x=None):
    """Run one rule against the perfect model; returns (its result, where it began, the asks)."""
    settings = settings or SamplerSettings()
    noise = PictureNoise(seeds, SHAPE, torch.device("cpu"))
    start = noise.first().double() * sigmas[0] if x is None else x
    rule, asks = RULES[name](start, sigmas, noise, settings), []
    try:
        ask = next(rule)
        while True:
            asks.append(ask)
            estimate = denoised(ask.x, ask.sigma)
            ask = rule.send(Estimate(estimate, estimate))
    except StopIteration as end:
        return end.value, start, asks


def error(name, steps):
    """Of the ODE solution from 10 to 0.5, in steps even in log sigma."""
    sigmas = [10 * (0.05) ** (number / steps) for number in range(steps + 1)]
    result, start, _ = walk(name, sigmas)
    return (result - exact(start, 10, 0.5)).abs().max().item()


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("euler", 1), ("ddim", 1), ("euler_a", 1), ("ddim_cfgpp", 1), ("heun", 2), ("dpm2", 2), ("dpm2_a", 2),
        ("dpmpp_2s_a", 2), ("dpmpp_2m", 2), ("dpmpp_sde", 1.9), ("dpmpp_2m_sde", 2), ("dpmpp_2m_sde_heun", 2),
        ("dpmpp_3m_sde", 1.8), ("lms", 2.8), ("unipc", 2), ("dpm_fast", 3),
    ],
)  # fmt: skip
def test_without_noise_a_rule_reaches_the_exact_solution_with_its_published_order(name, order):
    """The first steps of LMS are of lower order; its weights have a test of their own, below."""
    steps = 96 if name != "dpm_fast" else 98  # 98 = 32 steps of order 3 and one of order 2
    coarse, fine = error(name, steps), error(name, 2 * steps if name != "dpm_fast" else 197)
    assert fine < 0.03
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35) or math.log2(coarse / fine) > order


def test_lms_integrates_cubic_slopes_exactly():
    known, ahead = [5.0, 3.5, 2.0, 1.2], 0.3
    weights = adams_weights(known, ahead)
    found = sum(weight * (sigma**3 - 2 * sigma) for weight, sigma in zip(weights, known, strict=True))
    assert found == pytest.approx((ahead**4 - 1.2**4) / 4 - (ahead**2 - 1.2**2))


class Silence:
    """No noise, so that the drift alone is seen."""

    def between(self, sigma, sigma_next):
        return torch.zeros(1, 1, 1, 1).double()


@pytest.mark.parametrize("name", ["dpmpp_2m_sde_heun", "dpmpp_3m_sde"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_multistep_sde_rules_are_exact_for_estimates_that_are_linear_in_log_sigma(name, eta):
    """x' = p (D - x) over t = -log sigma, with p = 1 + eta and D = t, soon is t - 1/p."""
    sigmas = [10 * 1e-9 ** ((number / 60) ** 1.2) for number in range(61)]
    rule = RULES[name](torch.zeros(1, 1, 1, 1).double(), sigmas, Silence(), SamplerSettings(eta=eta))
    ask = next(rule)
    with pytest.raises(StopIteration) as end:
        while True:
            estimate = torch.full((1, 1, 1, 1), -math.log(ask.sigma)).double()
            ask = rule.send(Estimate(estimate, estimate))
    assert end.value.value.item() == pytest.approx(-math.log(sigmas[-1]) - 1 / (1 + eta), abs=1e-5)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("lcm", "restart")])
def test_every_rule_without_noise_ends_at_the_exact_picture(name):
    sigmas = sigmas_for(name, "automatic", 200, LEVELS)
    result, start, _ = walk(name, sigmas)
    expected = exact(start, sigmas[0], sigmas[-1])
    assert (result - expected).abs().max() < 0.05
    assert result.std() > 0.3  # the pictures differ: no collapse to the mean


@pytest.mark.parametrize("name", [*RANDOM, "ddim", "restart"])
def test_every_rule_with_noise_gives_the_spread_of_the_data(name):
    seeds = range(40)
    sigmas = sigmas_for(name, "automatic", 100, LEVELS)
    if SAMPLERS[name].alone:
        result = torch.cat([walk(name, sigmas, SamplerSettings(eta=1.0), (seed,))[0] for seed in seeds])
    else:
        result = walk(name, sigmas, SamplerSettings(eta=1.0), seeds)[0]
    assert result.mean().item() == pytest.approx(MEAN, abs=0.03)
    # DPM adaptive allows itself an error of 5 % per step
    assert result.std().item() == pytest.approx(SPREAD, rel=0.1 if SAMPLERS[name].alone else 0.06)
    assert len({round(float(row.mean()), 6) for row in result}) == len(seeds)


def test_churn_keeps_the_spread_and_only_stirs_between_its_bounds():
    sigmas = sigmas_for("euler", "karras", 200, LEVELS)
    stirred = walk("euler", sigmas, SamplerSettings(s_churn=40), range(40))[0]
    assert stirred.std().item() == pytest.approx(SPREAD, rel=0.06)
    still = walk("euler", sigmas)[0]
    assert not torch.equal(walk("euler", sigmas, SamplerSettings(s_churn=40))[0], still)
    assert torch.equal(walk("euler", sigmas, SamplerSettings(s_churn=40, s_tmin=1000))[0], still)
    assert torch.equal(walk("euler", sigmas, SamplerSettings(s_churn=40, s_tmax=0.001))[0], still)


def test_lcm_takes_each_estimate_whole():
    result, _, asks = walk("lcm", [10.0, 3.0, 0.0], SamplerSettings(eta=1.0))
    assert torch.equal(result, denoised(asks[-1].x, 3.0))
    noise = (asks[1].x - denoised(asks[0].x, 10.0)) / 3
    again = PictureNoise((3,), SHAPE, torch.device("cpu"))
    again.first()
    assert torch.allclose(noise, again.fresh().double())


def test_cfgpp_puts_back_the_unconditional_noise():
    x = torch.ones(1, 1, 2, 2)
    rule = RULES["ddim_cfgpp"](x, [2.0, 1.0], None, SamplerSettings())
    next(rule)
    with pytest.raises(StopIteration) as end:
        rule.send(Estimate(torch.full_like(x, 0.5), torch.full_like(x, -1.0)))
    assert torch.equal(end.value.value, torch.full_like(x, 0.5 + (1 - -1) / 2))


def test_restart_goes_back_up_within_its_budget():
    for steps in (19, 20, 36, 50):
        sigmas = sigmas_for("restart", "karras", steps, LEVELS)
        levels = [ask.sigma for ask in walk("restart", sigmas)[2]]
        rises = sum(later > earlier * 1.5 for earlier, later in pairwise(levels))
        assert rises == (0 if steps < 20 else 1 if steps < 36 else 2)
        assert 2 * steps - 3 <= len(levels) <= 2 * steps + 1


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_sampler_walks_every_schedule_with_any_number_of_steps(name, schedule):
    for steps in (1, 2, 3, 7, 21):
        sigmas = sigmas_for(name, schedule, steps, LEVELS)
        assert len(sigmas) == steps + 1
        assert all(high > low for high, low in pairwise(sigmas))
        result, _, asks = walk(name, sigmas, SamplerSettings(eta=SAMPLERS[name].eta))
        assert torch.isfinite(result).all()
        assert steps < 21 or result.abs().max() < 5  # a few steps from 14.6 to 0 are too bold for some
        assert all(0 <= ask.step < steps + 1 for ask in asks)
        if not SAMPLERS[name].alone:
            assert len(asks) <= SAMPLERS[name].evaluations * steps + 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_stay_apart_even_for_a_thousand_steps(schedule):
    sigmas = sigmas_for("euler", schedule, 1000, LEVELS)
    assert len(sigmas) == 1001 and all(a > b for a, b in pairwise(sigmas))


@pytest.mark.parametrize("name", ["dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_more_steps_of_an_sde_rule_settle_on_the_same_picture(name):
    def drawn(steps):
        return walk(name, sigmas_for(name, "karras", steps, LEVELS), SamplerSettings(eta=1.0))[0]

    distances = [(drawn(steps) - drawn(4 * steps)).std().item() for steps in (25, 100)]
    assert distances[1] < 0.7 * distances[0] < 0.5 * SPREAD


@pytest.mark.parametrize("name", [name for name in RANDOM if not SAMPLERS[name].alone])
def test_noise_belongs_to_the_seed_not_to_the_batch(name):
    sigmas = sigmas_for(name, "automatic", 6, LEVELS)
    settings = SamplerSettings(eta=1.0)
    together = walk(name, sigmas, settings, (5, 6, 7))[0]
    alone = walk(name, sigmas, settings, (6,))[0]
    assert torch.equal(together[1:2], alone)


def test_names_aliases_and_fused_names_are_found_in_any_case():
    assert (
        find_sampler("Euler a")
        == find_sampler("K_EULER_A")
        == find_sampler(" euler  A ")
        == ("euler_a", None)
    )
    assert find_sampler("DPM++ 2M Karras") == find_sampler("k_dpmpp_2m_ka") == ("dpmpp_2m", "karras")
    assert find_sampler("DPM++ 3M SDE Exponential") == ("dpmpp_3m_sde", "exponential")
    assert find_sampler("PLMS") == find_sampler("pndm") == ("plms", None)
    assert find_schedule("automatic") == find_schedule("Automatic") == "automatic"
    assert find_schedule("SGM Uniform") == find_schedule("sgm_uniform") == "sgm_uniform"
    for name, entry in SAMPLERS.items():
        for word in (name, entry.label, *entry.aliases):
            assert find_sampler(word) == (name, None)
    assert all(name in SAMPLERS for name, _ in SAMPLER_NAMES.values())
    assert set(RULES) == set(SAMPLERS)


def test_automatic_is_the_samplers_own_schedule_and_an_explicit_one_counts_most():
    assert choose("DPM++ 2M") == ("dpmpp_2m", "karras")
    assert choose("Euler") == ("euler", "uniform")
    assert choose("Euler Karras") == ("euler", "karras")
    assert choose("DPM++ 2M Karras", "Beta") == ("dpmpp_2m", "beta")
    assert choose("DPM++ 2M Automatic") == ("dpmpp_2m", "karras")


def test_an_unknown_name_is_answered_with_the_nearest_one():
    with pytest.raises(UserError, match="No sampler 'DPM\\+\\+ 2N'") as wrong:
        find_sampler("DPM++ 2N")
    assert "did you mean 'DPM++ 2M'?" in wrong.value.fix and "UniPC" in wrong.value.fix
    with pytest.raises(UserError, match="No sigma schedule 'karas'") as wrong:
        find_schedule("karas")
    assert "did you mean 'Karras'?" in wrong.value.fix
    with pytest.raises(UserError) as wrong:
        find_sampler("zzzzz")
    assert wrong.value.fix.startswith("take one of: DDIM, Euler")
