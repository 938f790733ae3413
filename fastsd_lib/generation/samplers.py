"""Our sampler names, and the stepping rule of diffusers behind each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastsd_lib.core.errors import UserError


@dataclass(frozen=True)
class Sampler:
    """One stepping rule: where diffusers keeps it, and the settings that make it the one users know."""

    label: str  # as picture metadata and other programs name it
    module: str  # below diffusers.schedulers; importing just this one is quick
    class_name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIM", "scheduling_ddim", "DDIMScheduler"),
    "euler": Sampler("Euler", "scheduling_euler_discrete", "EulerDiscreteScheduler"),
    "euler_a": Sampler("Euler a", "scheduling_euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "dpmpp_2m": Sampler("DPM++ 2M", "scheduling_dpmsolver_multistep", "DPMSolverMultistepScheduler"),
    "unipc": Sampler("UniPC", "scheduling_unipc_multistep", "UniPCMultistepScheduler"),
    "pndm": Sampler("PLMS", "scheduling_pndm", "PNDMScheduler", {"skip_prk_steps": True}),
    "heun": Sampler("Heun", "scheduling_heun_discrete", "HeunDiscreteScheduler"),
    "lms": Sampler("LMS", "scheduling_lms_discrete", "LMSDiscreteScheduler"),
}


def sampler(name: str) -> Sampler:
    if name not in SAMPLERS:
        raise UserError(f"No sampler {name!r}.", fix=f"take one of: {', '.join(SAMPLERS)}.")
    return SAMPLERS[name]


def make_scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """A fresh stepping rule on the noise schedule that the model was trained with.

    `config` is the model's scheduler_config.json; entries that the rule does not know are left out.
    """
    chosen = sampler(name)
    module = importlib.import_module(f"diffusers.schedulers.{chosen.module}")
    schedule = {key: value for key, value in config.items() if not key.startswith("_")}
    return getattr(module, chosen.class_name).from_config({**schedule, **chosen.settings})
