"""A1111's hires fix -> our second pass, and the two older ways to ask for one."""

from __future__ import annotations

from dataclasses import replace

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import UPSCALER_LABELS, GenerationRequest, Hires
from fastsd_lib.generation.samplers import find_sampler, find_schedule
from fastsd_lib.webui.a1111_checks import GRAIN_PX, SAME, check_area
from fastsd_lib.webui.a1111_models import Txt2ImgBody
from fastsd_lib.webui.a1111_pictures import Pictures
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext


def with_second_pass(
    base: GenerationRequest, body: Txt2ImgBody, context: ApiContext, pictures: Pictures
) -> GenerationRequest:
    if not body.enable_hr:
        return base
    width_px, height_px = body.hr_resize_x, body.hr_resize_y
    if body.firstphase_width or body.firstphase_height:
        width_px, height_px = base.width_px, base.height_px
        firsts = body.firstphase_width or width_px, body.firstphase_height or height_px
        for name, side in zip(("firstphase_width", "firstphase_height"), firsts, strict=True):
            if side < GRAIN_PX:
                raise Refused(422, f"{name} is {side}.", f"take 0, or at least {GRAIN_PX}.")
        check_area(*firsts, "the first pass's size (firstphase_width x firstphase_height)", context)
        base = replace(
            base, **dict(zip(("width_px", "height_px"), (_first(one) for one in firsts), strict=True))
        )
    for name, side in (("hr_resize_x", width_px), ("hr_resize_y", height_px)):
        if side < 0 or 0 < side < GRAIN_PX:
            raise Refused(422, f"{name} is {side}.", f"take 0, or at least {GRAIN_PX}.")
    _check_hires_size(base, width_px, height_px, body.hr_scale, context)
    hires = Hires(
        scale=1.0 if width_px or height_px else body.hr_scale,
        width_px=_first(width_px) if width_px else None,
        height_px=_first(height_px) if height_px else None,
        upscaler=_upscaler(body.hr_upscaler, context),
        strength=body.denoising_strength,
        inference_steps=_hires_steps(body.hr_second_pass_steps),
        prompt=body.hr_prompt,
        negative_prompt=body.hr_negative_prompt,
        guidance_scale=body.hr_cfg if "hr_cfg" in body.model_fields_set else None,
        **_hires_sampler(body),
    )
    if body.firstpass_image:
        return _second_pass_alone(base, hires, body, pictures)
    return replace(base, hires=hires)


def _first(side: int) -> int:
    return max(side // GRAIN_PX, 1) * GRAIN_PX


def _hires_steps(steps: int) -> int:
    if not 0 <= steps <= 1000:
        raise Refused(422, f"hr_second_pass_steps is {steps}.", "take 0 (as many as the first pass) to 1000.")
    return steps


def _hires_sampler(body: Txt2ImgBody) -> dict[str, str]:
    sampler, scheduler = body.hr_sampler_name or "", body.hr_scheduler or ""
    sampler = "" if sampler.lower() in SAME else sampler
    scheduler = "" if scheduler.lower() in SAME else scheduler
    try:
        if sampler:
            find_sampler(sampler)
        return {"sampler": sampler, "schedule": find_schedule(scheduler) if scheduler else ""}
    except UserError as error:
        raise Refused(404, f"Of the second pass: {error.message}", error.fix) from None


def _check_hires_size(
    base: GenerationRequest, width: int, height: int, scale: float, context: ApiContext
) -> None:
    if not (width or height) and not 1 <= scale <= 8:
        raise Refused(422, f"hr_scale is {scale:g}.", "take 1 to 8; 2 is usual.")
    scale = width / base.width_px if width else height / base.height_px if height else scale
    size = [
        wanted or round(side * scale) for wanted, side in ((width, base.width_px), (height, base.height_px))
    ]
    check_area(*size, "the second pass's size", context)


def _upscaler(label: str | None, context: ApiContext) -> str:
    """Our name of it. Programs write "None" for plain resampling."""
    wanted = (label or "Latent").strip().lower()
    ours = {named.lower(): name for name, named in UPSCALER_LABELS.items()} | {"none": "lanczos"}
    if wanted in ours:
        return ours[wanted]
    from fastsd_lib.generation.upscale import hires_network, upscalers  # torch and numpy

    folders = context.service.shelf.folders.upscalers
    try:
        return hires_network(label, folders).name
    except UserError:
        networks = [one.name for one in upscalers(folders).values() if one.path]
        known = ", ".join([*UPSCALER_LABELS.values(), *networks])
        raise Refused(422, f"hr_upscaler is {label!r}.", f"take one of: {known}.") from None


def _second_pass_alone(
    base: GenerationRequest, hires: Hires, body: Txt2ImgBody, pictures: Pictures
) -> GenerationRequest:
    """What `firstpass_image` asks for: the given picture takes the place of the first pass."""
    picture = pictures.read(body.firstpass_image, "firstpass_image")
    width_px = hires.width_px or _first(round(base.width_px * hires.scale))
    height_px = hires.height_px or _first(round(base.height_px * hires.scale))
    return replace(
        base,
        init=picture,
        width_px=width_px,
        height_px=height_px,
        resize_mode="latent" if hires.upscaler.startswith("latent") else "stretch",
        strength=hires.strength,
        inference_steps=hires.inference_steps or base.inference_steps,
        sampler=hires.sampler or base.sampler,
        schedule=hires.schedule or base.schedule,
        prompt=hires.prompt or base.prompt,
        negative_prompt=hires.negative_prompt or base.negative_prompt,
        guidance_scale=base.guidance_scale if hires.guidance_scale is None else hires.guidance_scale,
    )
