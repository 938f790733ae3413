"""What a picture's file says of how it was made: every choice, under our names and under A1111's."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastsd_lib.generation.plan import Plan
from fastsd_lib.generation.request import UPSCALER_LABELS, GenerationRequest
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES, choose

MASK_FILL_LABELS = {
    "fill": "fill",
    "original": "original",
    "latent_noise": "latent noise",
    "latent_nothing": "latent nothing",
}


def record_of(plan: Plan, number: int) -> dict[str, Any]:
    """Every choice behind picture `number`. None: the choice did not matter. Pictures are said by their size."""
    request = plan.request
    sampler, schedule = choose(request.sampler, request.schedule)
    like = next(plan.parts.unet.parameters())
    choices = {entry.name: getattr(request, entry.name) for entry in dataclasses.fields(request)}
    for name in ("init", "inpaint", "hires", "control"):
        choices[name] = described(choices[name])
    del choices["count"]
    varied = request.variation_strength > 0
    resized = request.seed_from_width_px, request.seed_from_height_px
    sizes = zip(resized, (plan.width_px, plan.height_px), strict=True)
    return {
        **choices,
        "guidance_scale": plan.guidance,
        "sampler": sampler,
        "schedule": schedule,
        "width_px": plan.width_px,
        "height_px": plan.height_px,
        "seed": plan.seeds[number],
        "variation_seed": request.variation_seed + number if varied else None,
        "seed_resize_from": "x".join(str(small or own) for small, own in sizes) if any(resized) else None,
        "strength": request.strength if request.init else request.hires.strength if request.hires else None,
        "noise_source": "CPU",
        "model": plan.parts.name,
        "device": str(like.device),
        "dtype": str(like.dtype).removeprefix("torch."),
        "extra_parameters": {
            **_of_inpaint(request),
            **_of_hires(request),
            **_of_sampler(request),
            **plan.networks.infotext(plan.learned_words),
            **{f"ControlNet {place}": unit.infotext for place, unit in enumerate(plan.control)},
        },
        "warnings": [*plan.warnings],
    }


def _of_inpaint(request: GenerationRequest) -> dict[str, Any]:
    inpaint = request.inpaint
    if inpaint is None:
        return {}
    return {
        **({"Mask mode": "Inpaint not masked"} if inpaint.invert else {}),
        "Mask blur": inpaint.blur_px,
        **(
            {"Inpaint area": "Only masked", "Masked area padding": inpaint.padding_px}
            if inpaint.only_masked
            else {}
        ),
        "Masked content": MASK_FILL_LABELS[inpaint.fill],
    }


def _of_hires(request: GenerationRequest) -> dict[str, Any]:
    hires = request.hires
    if hires is None:
        return {}
    found: dict[str, Any] = {}
    if hires.sampler:
        found["Hires sampler"] = SAMPLERS[choose(hires.sampler)[0]].label
    if hires.schedule:
        found["Hires schedule type"] = SCHEDULES[choose("euler", hires.schedule)[1]].label
    found |= {"Hires prompt": hires.prompt} if hires.prompt else {}
    found |= {"Hires negative prompt": hires.negative_prompt} if hires.negative_prompt else {}
    if hires.guidance_scale is not None:
        found["Hires CFG Scale"] = hires.guidance_scale
    if hires.width_px or hires.height_px:
        found["Hires resize"] = f"{hires.width_px or 0}x{hires.height_px or 0}"
    else:
        found["Hires upscale"] = hires.scale
    found |= {"Hires steps": hires.inference_steps} if hires.inference_steps else {}
    return found | {"Hires upscaler": UPSCALER_LABELS.get(hires.upscaler, hires.upscaler)}


def _of_sampler(request: GenerationRequest) -> dict[str, Any]:
    names = {
        "eta": "Eta",
        "s_churn": "Sigma churn",
        "s_tmin": "Sigma tmin",
        "s_tmax": "Sigma tmax",
        "s_noise": "Sigma noise",
    }
    usual = {entry.name: entry.default for entry in dataclasses.fields(request)}
    return {
        label: getattr(request, name)
        for name, label in names.items()
        if getattr(request, name) != usual[name]
    }


def described(choice: Any) -> Any:
    """A choice of a request as records say it. A picture is said by its size; of a group of choices, each."""
    if dataclasses.is_dataclass(choice):
        return {entry.name: described(getattr(choice, entry.name)) for entry in dataclasses.fields(choice)}
    if isinstance(choice, tuple):
        return [described(one) for one in choice]
    return f"{choice.width}x{choice.height}" if hasattr(choice, "getbands") else choice
