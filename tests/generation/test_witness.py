"""Our stepping rules beside diffusers' schedulers: same noise levels, same U-Net with real weights, same noise."""

from __future__ import annotations

import math
from pathlib import Path

import diffusers
import pytest
import torch

import fastsd_lib
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.formats.parts import encode_prompts, load_parts
from fastsd_lib.generation.rules import RULES
from fastsd_lib.generation.sigmas import noise_levels, sigmas_for
from fastsd_lib.generation.stepping import Estimate, SamplerSettings

STEPS, SEED = 8, 11
# Ours -> diffusers' class, its settings, our eta. Those it has on sigmas, and those it has on signal shares.
PAIRS = {
    "euler": ("EulerDiscreteScheduler", {}, 0.0),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 0.0),
    "euler_exponential": ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, 0.0),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}, 1.0),
    "heun": ("HeunDiscreteScheduler", {}, 0.0),
    "lms": ("LMSDiscreteScheduler", {}, 0.0),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}, 0.0),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 0.0),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 1.0),
    "dpmpp_3m_sde": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 3, "lower_order_final": False},
        0.0,
    ),
    "dpm2": ("KDPM2DiscreteScheduler", {}, 0.0),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}, 1.0),
    "unipc": ("UniPCMultistepScheduler", {}, 0.0),
    "unipc_karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, 0.0),
    "ddim": ("DDIMScheduler", {}, 0.0),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}, 0.0),
}


@pytest.fixture(scope="module")
def parts():
    embedded = Path(fastsd_lib.__file__).parent / "models" / "embedded"
    return load_parts(ModelFiles("sd1", "diffusers", embedded), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def unet(parts):
    """(x in the model's own scale, training step) -> predicted noise."""
    with torch.inference_mode():
        text = encode_prompts(parts, ["a photo of a red star"])

    def predict(x, timestep):
        return parts.unet(x.float(), torch.tensor([float(timestep)]), text, return_dict=False)[0]

    return predict


class GivenNoise:
    """The same noise for both: diffusers draws it from a generator, one picture after the other."""

    def __init__(self, generator):
        self.generator = generator

    def fresh(self):
        return torch.randn((1, 4, 16, 16), generator=self.generator)

    def between(self, sigma, sigma_next):
        return self.fresh()


@pytest.mark.parametrize("pair", PAIRS)
def test_a_rule_steps_as_diffusers_does_on_the_embedded_model(parts, unet, pair):
    kind, settings, eta = PAIRS[pair]
    config = {key: value for key, value in parts.scheduler_config.items() if not key.startswith("_")}
    scheduler = getattr(diffusers, kind).from_config({**config, "timestep_spacing": "leading", **settings})
    scheduler.set_timesteps(STEPS)
    start = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(SEED))
    noise = GivenNoise(torch.Generator().manual_seed(SEED + 1))
    levels = noise_levels(config)
    if hasattr(scheduler, "sigmas") and len(getattr(scheduler, "sigmas", ())) > STEPS:
        sigmas = scheduler.sigmas.tolist()
        if kind.startswith("Heun"):
            sigmas = [sigmas[0], *sigmas[1:-1:2], sigmas[-1]]
        if kind.startswith("KDPM2"):
            sigmas = [sigmas[0], *sigmas[1:-1:2]]
    else:
        sigmas = sigmas_for(pair, "ddim", STEPS, levels)
    with torch.inference_mode():
        theirs, told = _theirs(scheduler, unet, start, torch.Generator().manual_seed(SEED + 1))
        ours = _ours(pair, sigmas, noise, SamplerSettings(eta=eta), unet, start, told)
    assert (ours - theirs).abs().max() < 2e-3 * theirs.abs().max()
    assert theirs.std() > 0.2


def _theirs(scheduler, unet, start, generator):
    """diffusers' loop; also the training steps that it told the U-Net."""
    import inspect

    x, told = start * scheduler.init_noise_sigma, []
    options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps:
        told.append(float(timestep))
        output = unet(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(output, timestep, x, return_dict=False, **options)[0]
    return x, told


def _ours(pair, sigmas, noise, settings, unet, start, told):
    """Our rule, told the same training steps as theirs: diffusers rounds those of the Karras schedule."""
    name = pair.removesuffix("_karras").removesuffix("_exponential")
    rule = RULES[name](start * math.sqrt(1 + sigmas[0] ** 2), sigmas, noise, settings)
    ask, steps = next(rule), iter(told)
    while True:
        output = unet(ask.x / math.sqrt(1 + ask.sigma**2), next(steps))
        estimate = ask.x - ask.sigma * output
        try:
            ask = rule.send(Estimate(estimate, estimate))
        except StopIteration as end:
            return end.value / math.sqrt(1 + sigmas[-1] ** 2)


@pytest.mark.parametrize(
    ("schedule", "settings"),
    [
        ("karras", {"use_karras_sigmas": True}),
        ("exponential", {"use_exponential_sigmas": True}),
        ("uniform", {"timestep_spacing": "linspace"}),
        ("ddim", {"timestep_spacing": "leading", "steps_offset": 1}),
    ],
)
def test_schedules_are_those_of_diffusers(parts, schedule, settings):
    config = {key: value for key, value in parts.scheduler_config.items() if not key.startswith("_")}
    theirs = diffusers.EulerDiscreteScheduler.from_config(
        {**config, "timestep_spacing": "linspace", **settings}
    )
    theirs.set_timesteps(STEPS)
    ours = sigmas_for("euler", schedule, STEPS, noise_levels(config))
    assert ours == pytest.approx(theirs.sigmas.tolist(), rel=1e-4)


def test_beta_quantiles_are_those_of_scipy():
    import numpy as np
    from scipy.stats import beta

    from fastsd_lib.generation.sigmas import _beta_quantiles

    shares = np.linspace(0, 1, 41)
    assert _beta_quantiles(shares, 0.6) == pytest.approx(beta.ppf(shares, 0.6, 0.6), abs=1e-5)


def test_zero_terminal_snr_and_other_noise_plans_are_those_of_diffusers():
    for config in (
        {"beta_schedule": "linear"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "rescale_betas_zero_snr": True,
        },
    ):
        theirs = diffusers.EulerDiscreteScheduler.from_config({**config, "timestep_spacing": "trailing"})
        shares = theirs.alphas_cumprod.double()
        expected = ((1 - shares) / shares).sqrt()
        assert noise_levels(config).sigmas[:-1] == pytest.approx(expected.tolist()[:-1], rel=2e-3)
        assert noise_levels(config).highest == pytest.approx(expected[-1].item(), rel=2e-3)


@pytest.mark.parametrize(("family", "published"), [("sd1", ""), ("sd2", ""), ("sdxl", "XL")])
def test_align_your_steps_has_the_levels_that_diffusers_has(parts, family, published):
    from diffusers.schedulers.scheduling_utils import AysSchedules

    levels = noise_levels(parts.scheduler_config, family)
    ours = sigmas_for("euler", "align_your_steps", 11, levels)
    theirs = AysSchedules[f"StableDiffusion{published}Sigmas"]
    assert ours[:10] == pytest.approx(theirs[:10], rel=1e-6)
    assert ours[10:] == pytest.approx([0.029, 0])  # theirs goes from the tenth level to none at once
