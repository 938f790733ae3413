"""Our names of samplers -> their stepping rules."""

from __future__ import annotations

from fastsd_lib.generation import dpm_solver, ode_steps, sde_steps
from fastsd_lib.generation.stepping import Rule

RULES: dict[str, Rule] = {
    "ddim": sde_steps.euler_ancestral,
    "euler": ode_steps.euler,
    "euler_a": sde_steps.euler_ancestral,
    "heun": ode_steps.heun,
    "lms": ode_steps.lms,
    "dpm2": ode_steps.dpm2,
    "dpm2_a": sde_steps.dpm2_ancestral,
    "dpmpp_2s_a": sde_steps.dpmpp_2s_ancestral,
    "dpmpp_2m": ode_steps.dpmpp_2m,
    "dpmpp_sde": sde_steps.dpmpp_sde,
    "dpmpp_2m_sde": sde_steps.dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": sde_steps.dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": sde_steps.dpmpp_3m_sde,
    "dpm_fast": dpm_solver.dpm_fast,
    "dpm_adaptive": dpm_solver.dpm_adaptive,
    "lcm": sde_steps.lcm,
    "restart": sde_steps.restart,
    "ddim_cfgpp": ode_steps.ddim_cfgpp,
    "plms": ode_steps.plms,
    "unipc": ode_steps.unipc,
}
