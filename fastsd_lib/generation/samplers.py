"""Samplers and sigma schedules by every name that users know; light, so that a form needs no torch.

The stepping rules themselves stand in `ode_steps.py` and `sde_steps.py`, the spacings in `sigmas.py`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from fastsd_lib.core.errors import UserError


@dataclass(frozen=True)
class Sampler:
    """What a stepping rule is called, and what it needs to be the one users know."""

    label: str  # as A1111, picture metadata and other programs name it
    aliases: tuple[str, ...] = ()
    schedule: str = "uniform"  # what the schedule "automatic" means for it
    eta: float = 0.0  # its usual share of fresh noise: 0 none, 1 as much as the theory's random process
    evaluations: int = 1  # U-Net calls per step
    drops_next_to_last: bool = False  # takes one noise level more and leaves out the last but one
    ends_at_floor: bool = False  # ends at the model's lowest trained noise level, as DDIM was published
    alone: bool = False  # sizes its steps by looking at the picture, so each picture goes its own way
    guidance_factor: float = 1.0  # guidance scale -> what is multiplied


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIM", (), "ddim", ends_at_floor=True),
    "euler": Sampler("Euler", ("k_euler",)),
    "euler_a": Sampler("Euler a", ("k_euler_a", "k_euler_ancestral", "euler_ancestral"), eta=1.0),
    "heun": Sampler("Heun", ("k_heun",), evaluations=2),
    "lms": Sampler("LMS", ("k_lms",)),
    "dpm2": Sampler("DPM2", ("k_dpm_2", "dpm_2"), "karras", evaluations=2, drops_next_to_last=True),
    "dpm2_a": Sampler(
        "DPM2 a",
        ("k_dpm_2_a", "k_dpm_2_ancestral", "dpm_2_ancestral"),
        "karras",
        eta=1.0,
        evaluations=2,
        drops_next_to_last=True,
    ),
    "dpmpp_2s_a": Sampler(
        "DPM++ 2S a", ("k_dpmpp_2s_a", "dpmpp_2s_ancestral"), "karras", eta=1.0, evaluations=2
    ),
    "dpmpp_2m": Sampler("DPM++ 2M", ("k_dpmpp_2m",), "karras"),
    "dpmpp_sde": Sampler("DPM++ SDE", ("k_dpmpp_sde",), "karras", eta=1.0, evaluations=2),
    "dpmpp_2m_sde": Sampler("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), "exponential", eta=1.0),
    "dpmpp_2m_sde_heun": Sampler("DPM++ 2M SDE Heun", ("k_dpmpp_2m_sde_heun",), "exponential", eta=1.0),
    "dpmpp_3m_sde": Sampler(
        "DPM++ 3M SDE", ("k_dpmpp_3m_sde",), "exponential", eta=1.0, drops_next_to_last=True
    ),
    "dpm_fast": Sampler("DPM fast", ("k_dpm_fast",), eta=1.0),
    "dpm_adaptive": Sampler("DPM adaptive", ("k_dpm_ad", "k_dpm_adaptive"), eta=1.0, alone=True),
    "lcm": Sampler("LCM", ("k_lcm",), "sgm_uniform", eta=1.0),
    "restart": Sampler("Restart", ("restart",), "karras", evaluations=2),
    # The published rule guides by 0 to 1; A1111 users write 0 to 12.5 there, as with every other sampler.
    "ddim_cfgpp": Sampler(
        "DDIM CFG++", ("ddim_cfg++",), "ddim", ends_at_floor=True, guidance_factor=1 / 12.5
    ),
    "plms": Sampler("PLMS", ("pndm",), "ddim", ends_at_floor=True),
    "unipc": Sampler("UniPC", ("uni_pc", "uni_pc_bh2", "unipc_bh2"), "ddim"),
}


@dataclass(frozen=True)
class Schedule:
    """A spacing of noise levels between the model's highest and lowest."""

    label: str
    aliases: tuple[str, ...] = ()
    rho: float | None = None  # its usual bend, for the schedules that have one


SCHEDULES: dict[str, Schedule] = {
    "automatic": Schedule("Automatic", ("auto", "")),
    "uniform": Schedule("Uniform"),
    "karras": Schedule("Karras", ("ka",), rho=7.0),
    "exponential": Schedule("Exponential"),
    "polyexponential": Schedule("Polyexponential", rho=1.0),
    "sgm_uniform": Schedule("SGM Uniform", ("sgmuniform",)),
    "kl_optimal": Schedule("KL Optimal", ("kloptimal",)),
    "align_your_steps": Schedule("Align Your Steps", ("ays", "align_your_steps_sigmas")),
    "simple": Schedule("Simple"),
    "normal": Schedule("Normal"),
    "ddim": Schedule("DDIM", ("ddim_uniform",)),
    "beta": Schedule("Beta"),
}


def _names_of(name: str, entry: Sampler | Schedule) -> set[str]:
    return {word.lower() for word in (name, entry.label, *entry.aliases)}


SCHEDULE_NAMES: dict[str, str] = {
    word: name for name, entry in SCHEDULES.items() for word in _names_of(name, entry)
}
# Every name and alias, lower case -> (our name, the schedule it implies or None). A1111 up to 1.8 fused the two
# in one name, "DPM++ 2M Karras" and "k_dpmpp_2m_ka", which live on in millions of pictures.
SAMPLER_NAMES: dict[str, tuple[str, str | None]] = {
    f"{word}{mark}{spacing}": (name, schedule)
    for schedule, entry in SCHEDULES.items()
    for spacing in _names_of(schedule, entry) - {""}
    for name, sampler in SAMPLERS.items()
    for word in _names_of(name, sampler)
    for mark in (" ", "_")
} | {word: (name, None) for name, entry in SAMPLERS.items() for word in _names_of(name, entry)}


def find_sampler(name: str) -> tuple[str, str | None]:
    """Any name or alias, in any case -> our name, and the schedule that the name implies or None.

    "DPM++ 2M Karras" -> ("dpmpp_2m", "karras"). UserError with the nearest name for an unknown one.
    """
    known = SAMPLER_NAMES.get(" ".join(str(name).lower().split()))
    if known is None:
        raise _unknown("sampler", name, [entry.label for entry in SAMPLERS.values()], list(SAMPLER_NAMES))
    return known


def find_schedule(name: str) -> str:
    """Any name or label of a sigma schedule, in any case -> our name. UserError for an unknown one."""
    known = SCHEDULE_NAMES.get(" ".join(str(name).lower().split()))
    if known is None:
        raise _unknown("sigma schedule", name, [entry.label for entry in SCHEDULES.values()], [])
    return known


def choose(sampler: str, schedule: str = "automatic") -> tuple[str, str]:
    """The names as asked for -> our sampler, and the schedule that is really stepped along.

    An explicit schedule counts more than the one within a fused sampler name; "automatic" is the sampler's own.
    """
    name, implied = find_sampler(sampler)
    spacing = find_schedule(schedule)
    if spacing == "automatic":
        spacing = implied if implied not in (None, "automatic") else SAMPLERS[name].schedule
    return name, spacing


def _unknown(what: str, name: str, labels: list[str], more: list[str]) -> UserError:
    by_lower = {word: word for word in more} | {label.lower(): label for label in labels}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f"did you mean {by_lower[near[0]]!r}? There are: " if near else "take one of: "
    return UserError(f"No {what} {name!r}.", fix=f"{hint}{', '.join(labels)}.")
