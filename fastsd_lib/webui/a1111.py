"""A request in A1111's words -> orders in ours. The only place that says cfg_scale, denoising_strength, n_iter."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.jobs import Order
from fastsd_lib.generation.request import (
    MASK_FILLS,
    MAX_SEED,
    RESIZE_MODES,
    UPSCALER_LABELS,
    GenerationRequest,
    Hires,
    Inpaint,
)
from fastsd_lib.generation.samplers import SAMPLERS, find_sampler, find_schedule
from fastsd_lib.generation.styles import Style, apply_styles, read_styles
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.a1111_control import units_of
from fastsd_lib.webui.a1111_infotext import filled
from fastsd_lib.webui.a1111_models import DrawingBody, Img2ImgBody, Txt2ImgBody
from fastsd_lib.webui.a1111_pictures import read_picture
from fastsd_lib.webui.a1111_scripts import ALWAYS_ON, spread
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext

if TYPE_CHECKING:
    from PIL.Image import Image

GRAIN_PX = 8  # A1111 draws in multiples of this and rounds down
_SAME = ("", "none", "use same sampler", "use same scheduler", "use same checkpoint")


@dataclass(frozen=True)
class Ordered:
    """What was asked for, ready to be drawn; the pictures of all orders, in order, are the answer."""

    body: DrawingBody
    orders: list[Order]
    settings: Mapping[str, Any]  # the options as they are for this request
    warnings: list[str] = field(default_factory=list)
    grid_rows: int | None = None  # a script's grid; None = no script
    maps_sent_back: list[bool] = field(default_factory=list)  # for each ControlNet unit

    @property
    def first(self) -> GenerationRequest:
        return self.orders[0].request


def translate(body: DrawingBody, context: ApiContext, owner: str = "") -> Ordered:
    """Decide everything that A1111's words leave open. Refused or UserError name the field and the value.

    Decodes pictures: not for the thread that answers everybody.
    """
    styles = known_styles(context)
    body, from_infotext = filled(body, styles)
    settings, warnings = _settings(body, from_infotext, context)
    _refuse_what_is_not_here(body)
    _check_amounts(body, context)
    model, vae = _model(body, settings, from_infotext, context, warnings)
    body = body.model_copy(update={"seed": _seed(body.seed, body), "subseed": _seed(body.subseed, body)})
    units, sent_back = _control(body, context)
    orders: list[Order] = []
    spreading = spread(body)
    for one in spreading.bodies:
        _check_amounts(one, context)
        for request in _requests(one, settings, styles, units, context, warnings):
            request.check()
            orders.append(
                Order(
                    request,
                    model=model,
                    vae=vae,
                    owner=owner,
                    at_once=one.batch_size,
                    task_id=(body.force_task_id or "") if not orders else "",
                    kind="img2img" if isinstance(one, Img2ImgBody) else "txt2img",
                )
            )
    most = context.limits.pictures
    if sum(order.request.count for order in orders) > most:
        raise Refused(
            422, f"The script {body.script_name!r} asks for more than {most} pictures.", "ask for fewer."
        )
    return Ordered(body, orders, settings, list(dict.fromkeys(warnings)), spreading.grid_rows, sent_back)


def known_styles(context: ApiContext) -> dict[str, Style]:
    found: dict[str, Style] = {}
    for path in context.service.shelf.folders.styles:
        found = read_styles(path) | found
    return found


# ------------------------------------------------------------------ what holds for the whole request


def _settings(
    body: DrawingBody, from_infotext: Mapping[str, Any], context: ApiContext
) -> tuple[dict[str, Any], list[str]]:
    settings, unknown = context.options.with_overrides({**from_infotext, **body.override_settings})
    warnings = [f"override_settings: there is no option {name[:100]!r}; it was ignored" for name in unknown]
    if not body.override_settings_restore_afterwards:
        known = {name: value for name, value in body.override_settings.items() if name not in unknown}
        a1111_settings.change(context, known)
    return settings, warnings


def _model(
    body: DrawingBody,
    settings: Mapping[str, Any],
    from_infotext: Mapping[str, Any],
    context: ApiContext,
    warnings: list[str],
) -> tuple[str, str]:
    """The names of the model and the VAE; "" = the current model, the model's own VAE."""
    model = ""
    asked = body.override_settings.get("sd_model_checkpoint")
    if asked:
        model = a1111_settings.find_model(context, asked, "override_settings.sd_model_checkpoint").name
    elif from_infotext.get("sd_model_checkpoint"):
        try:
            model = context.service.shelf.find(from_infotext["sd_model_checkpoint"]).name
        except UserError as error:
            warnings.append(f"infotext: {error.message} The current model drew instead.")
    for name in ("hr_checkpoint_name", "refiner_checkpoint"):
        other = getattr(body, name, None)
        used = name == "refiner_checkpoint" or getattr(body, "enable_hr", False)
        if other and used and other.lower() not in _SAME:
            found = a1111_settings.find_model(context, other, name)
            if found.name != context.service.shelf.find(model).name:
                raise _not_here(name, other, "one model draws a picture to its end")
    try:
        return model, a1111_settings.find_vae(context, settings["sd_vae"])
    except Refused:
        if "sd_vae" in body.override_settings or "sd_vae" not in from_infotext:
            raise
        warnings.append(f"infotext: no VAE {from_infotext['sd_vae']!r} here; the model's own was used")
        return model, ""


def _refuse_what_is_not_here(body: DrawingBody) -> None:
    if body.restore_faces:
        raise _not_here("restore_faces", True, "there is no face restoration")
    if body.s_min_uncond:
        raise _not_here("s_min_uncond", body.s_min_uncond, "every step is guided")
    for name in body.alwayson_scripts:
        if name.strip().lower() not in ALWAYS_ON:
            raise Refused(
                422, f"always on script {name[:100]} not found.", f"there is: {', '.join(sorted(ALWAYS_ON))}."
            )
    if not isinstance(body, Img2ImgBody):
        return
    if not body.init_images:
        raise Refused(404, "Init image not found: init_images is empty.", "send one in base64.")
    if body.initial_noise_multiplier not in (None, 1.0):
        raise _not_here(
            "initial_noise_multiplier", body.initial_noise_multiplier, "noise has its full strength"
        )
    if body.latent_mask:
        raise _not_here("latent_mask", "a picture", "there is one mask", "send it as mask.")
    if body.mask and not body.mask_round:
        raise _not_here("mask_round", False, "a pixel is drawn anew or stays")


def _not_here(name: str, value: Any, why: str, fix: str = "leave it out.") -> Refused:
    return Refused(422, f"{name} is {str(value)[:100]!r}, which this server cannot do: {why}.", fix)


def _check_amounts(body: DrawingBody, context: ApiContext) -> None:
    limits = context.limits
    if body.batch_size * body.n_iter > limits.pictures:
        asked = f"batch_size {body.batch_size} x n_iter {body.n_iter}"
        raise Refused(422, f"{asked} is more than {limits.pictures} pictures.", "ask for fewer.")
    _check_area(body.width, body.height, "width x height", context)
    for name in ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"):
        tags = getattr(body, name, "").count("<")
        if tags > limits.networks:
            raise Refused(422, f"{name} has {tags} tags <...>.", f"use at most {limits.networks}.")


def _check_area(width: int, height: int, what: str, context: ApiContext) -> None:
    limits = context.limits
    if width * height > limits.pixels or max(width, height) > limits.side_px:
        most = f"{limits.pixels / 1e6:.1f} million pixels and {limits.side_px} on a side"
        raise Refused(422, f"{what} is {width} x {height}; the most is {most}.", "ask for a smaller picture.")


def _control(body: DrawingBody, context: ApiContext) -> tuple[list[ControlUnit], list[bool]]:
    scripts = {name: given for name, given in body.alwayson_scripts.items() if given is not None}
    return units_of(scripts, context)


def _seed(seed: int, body: DrawingBody) -> int:
    """-1 is any, such that the last picture's seed is still one."""
    most = body.batch_size * body.n_iter
    return random.randint(0, MAX_SEED - most) if seed == -1 else seed


# ------------------------------------------------------------------ one body's requests


def _requests(
    body: DrawingBody,
    settings: Mapping[str, Any],
    styles: Mapping[str, Style],
    units: list[ControlUnit],
    context: ApiContext,
    warnings: list[str],
) -> list[GenerationRequest]:
    """One, unless several pictures are to be drawn over: then one for each picture and round."""
    base = _base(body, settings, styles, units, warnings)
    if isinstance(body, Txt2ImgBody):
        return [_with_second_pass(base, body, styles, context)]
    pictures = [
        read_picture(text, f"init_images[{number}]", context.limits, context.flags)
        for number, text in enumerate(body.init_images)
    ]
    inpaint = _inpaint(body, context)
    over = [_drawn_over(base, body, picture, inpaint) for picture in pictures]
    if len(over) == 1:
        return over
    if body.n_iter * len(over) > context.limits.pictures:
        raise Refused(
            422, f"{len(over)} init_images x n_iter {body.n_iter} is too many pictures.", "ask for fewer."
        )
    varied = base.variation_strength > 0
    return [
        replace(
            one,
            count=1,
            seed=base.seed + (0 if varied else number),
            variation_seed=base.variation_seed + (number if varied else 0),
        )
        for number, one in enumerate(over * body.n_iter)
    ]


def _base(
    body: DrawingBody,
    settings: Mapping[str, Any],
    styles: Mapping[str, Style],
    units: list[ControlUnit],
    warnings: list[str],
) -> GenerationRequest:
    prompt, negative, unknown = apply_styles(body.prompt, body.negative_prompt, body.styles, styles)
    warnings += [f"styles: there is no style {name[:100]!r}; it was ignored" for name in unknown]
    sampler, schedule = _sampler(body.sampler_name or body.sampler_index, body.scheduler)
    return GenerationRequest(
        prompt=prompt,
        negative_prompt=negative,
        inference_steps=body.steps,
        guidance_scale=body.cfg_scale,
        seed=body.seed,
        count=body.batch_size * body.n_iter,
        width_px=_whole(body.width, "width", warnings),
        height_px=_whole(body.height, "height", warnings),
        sampler=sampler,
        schedule=schedule,
        eta=_eta(find_sampler(sampler)[0], body, settings),
        s_churn=_or_setting(body.s_churn, settings["s_churn"]),
        s_tmin=_or_setting(body.s_tmin, settings["s_tmin"]),
        s_tmax=_or_setting(body.s_tmax, settings["s_tmax"]) or None,
        s_noise=_or_setting(body.s_noise, settings["s_noise"]),
        clip_skip=settings["CLIP_stop_at_last_layers"],
        tiling=bool(_or_setting(body.tiling, settings["tiling"])),
        variation_seed=body.subseed if body.subseed_strength else 0,
        variation_strength=body.subseed_strength,
        seed_from_width_px=body.seed_resize_from_w if body.seed_resize_from_w > 0 else None,
        seed_from_height_px=body.seed_resize_from_h if body.seed_resize_from_h > 0 else None,
        control=tuple(units),
        networks_off=body.disable_extra_networks,
    )


def _sampler(name: str, scheduler: str | None) -> tuple[str, str]:
    """As asked for, known to exist; 404 for unknown names, as A1111 had it until it replaced them silently."""
    try:
        find_sampler(name)
        return name, find_schedule(scheduler or "automatic")
    except UserError as error:
        raise Refused(404, error.message, error.fix) from None


def _whole(side: int, name: str, warnings: list[str]) -> int:
    whole = side // GRAIN_PX * GRAIN_PX
    if whole != side:
        warnings.append(f"{name} is {side}, drawn at {whole}: a multiple of {GRAIN_PX}")
    return whole


def _eta(sampler: str, body: DrawingBody, settings: Mapping[str, Any]) -> float | None:
    """For the samplers that have one; programs send it with every sampler."""
    own = SAMPLERS[sampler].eta
    if sampler != "ddim" and not own:
        return None
    asked = _or_setting(body.eta, settings["eta_ddim" if sampler == "ddim" else "eta_ancestral"])
    return None if asked == own else asked


def _or_setting(asked: Any, setting: Any) -> Any:
    return setting if asked is None else asked


def _with_second_pass(
    base: GenerationRequest, body: Txt2ImgBody, styles: Mapping[str, Style], context: ApiContext
) -> GenerationRequest:
    if not body.enable_hr:
        return base
    width_px, height_px = body.hr_resize_x, body.hr_resize_y
    if body.firstphase_width > 0 or body.firstphase_height > 0:
        width_px, height_px = base.width_px, base.height_px
        firsts = body.firstphase_width or width_px, body.firstphase_height or height_px
        base = replace(
            base, **dict(zip(("width_px", "height_px"), (_first(one) for one in firsts), strict=True))
        )
    for name, side in (("hr_resize_x", width_px), ("hr_resize_y", height_px)):
        if side < 0 or 0 < side < GRAIN_PX:
            raise Refused(422, f"{name} is {side}.", f"take 0, or at least {GRAIN_PX}.")
    _check_hires_size(base, width_px, height_px, body.hr_scale, context)
    prompt, negative, _ = apply_styles(body.hr_prompt, body.hr_negative_prompt, body.styles, styles)
    hires = Hires(
        scale=1.0 if width_px or height_px else body.hr_scale,
        width_px=_first(width_px) if width_px else None,
        height_px=_first(height_px) if height_px else None,
        upscaler=_upscaler(body.hr_upscaler, context),
        strength=body.denoising_strength,
        inference_steps=_hires_steps(body.hr_second_pass_steps),
        prompt=prompt if body.hr_prompt else "",
        negative_prompt=negative if body.hr_negative_prompt else "",
        guidance_scale=body.hr_cfg if "hr_cfg" in body.model_fields_set else None,
        **_hires_sampler(body),
    )
    if body.firstpass_image:
        return _second_pass_alone(base, hires, body, context)
    return replace(base, hires=hires)


def _first(side: int) -> int:
    return max(side // GRAIN_PX, 1) * GRAIN_PX


def _hires_steps(steps: int) -> int:
    if not 0 <= steps <= 1000:
        raise Refused(422, f"hr_second_pass_steps is {steps}.", "take 0 (as many as the first pass) to 1000.")
    return steps


def _hires_sampler(body: Txt2ImgBody) -> dict[str, str]:
    sampler, scheduler = body.hr_sampler_name or "", body.hr_scheduler or ""
    sampler = "" if sampler.lower() in _SAME else sampler
    scheduler = "" if scheduler.lower() in _SAME else scheduler
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
    _check_area(*size, "the second pass's size", context)


def _upscaler(label: str | None, context: ApiContext) -> str:
    """Our name of it. Programs write "None" for plain resampling."""
    wanted = (label or "Latent").strip().lower()
    ours = {named.lower(): name for name, named in UPSCALER_LABELS.items()} | {"none": "lanczos"}
    if wanted in ours:
        return ours[wanted]
    if wanted in UPSCALER_LABELS:
        return wanted
    raise Refused(
        422,
        f"hr_upscaler: could not find upscaler named {label!r}.",
        f"take one of: {', '.join(UPSCALER_LABELS.values())}.",
    )


def _second_pass_alone(
    base: GenerationRequest, hires: Hires, body: Txt2ImgBody, context: ApiContext
) -> GenerationRequest:
    """What `firstpass_image` asks for: the given picture takes the place of the first pass."""
    picture = read_picture(body.firstpass_image, "firstpass_image", context.limits, context.flags)
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


def _drawn_over(
    base: GenerationRequest, body: Img2ImgBody, picture: Image, inpaint: Inpaint | None
) -> GenerationRequest:
    return replace(
        base,
        init=picture,
        strength=body.denoising_strength,
        resize_mode=RESIZE_MODES[body.resize_mode],
        inpaint=inpaint,
    )


def _inpaint(body: Img2ImgBody, context: ApiContext) -> Inpaint | None:
    if not body.mask:
        return None
    blur_x, blur_y = (
        (body.mask_blur,) * 2 if body.mask_blur is not None else (body.mask_blur_x, body.mask_blur_y)
    )
    if blur_x != blur_y:
        raise Refused(
            422,
            f"mask_blur_x is {blur_x} and mask_blur_y {blur_y}: the mask fades alike in both.",
            "send one mask_blur.",
        )
    return Inpaint(
        read_picture(body.mask, "mask", context.limits, context.flags),
        invert=bool(body.inpainting_mask_invert),
        blur_px=blur_x,
        fill=MASK_FILLS[body.inpainting_fill],
        only_masked=body.inpaint_full_res,
        padding_px=body.inpaint_full_res_padding,
    )
