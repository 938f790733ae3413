"""A request in A1111's words -> orders in ours. The only place that says cfg_scale, denoising_strength, n_iter."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation import prompts
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.jobs import Order
from fastsd_lib.generation.prompt_tags import LORA_KINDS, split_tags, without_comments
from fastsd_lib.generation.request import (
    MASK_FILLS,
    MAX_SEED,
    RESIZE_MODES,
    GenerationRequest,
    Inpaint,
)
from fastsd_lib.generation.samplers import SAMPLERS, find_sampler, find_schedule
from fastsd_lib.webui import a1111_settings, a1111_xyz
from fastsd_lib.webui.a1111_checks import GRAIN_PX, SAME, check_amounts, not_here, refuse_what_is_not_here
from fastsd_lib.webui.a1111_control import units_of
from fastsd_lib.webui.a1111_hires import with_second_pass
from fastsd_lib.webui.a1111_infotext import filled
from fastsd_lib.webui.a1111_models import DrawingBody, Img2ImgBody, Txt2ImgBody
from fastsd_lib.webui.a1111_pictures import Pictures
from fastsd_lib.webui.a1111_scripts import spread
from fastsd_lib.webui.a1111_spread import Plot, SomeBody, Spread
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import checked

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.styles import Style


@dataclass(frozen=True)
class Ordered:
    """What was asked for, ready to be drawn; the pictures of all orders, in order, are the answer."""

    body: DrawingBody
    orders: list[Order]
    settings: Mapping[str, Any]  # the options as they are for this request
    warnings: list[str] = field(default_factory=list)
    grid_rows: int | None = None  # a script's grid; None = no script
    maps_sent_back: list[bool] = field(default_factory=list)  # for each ControlNet unit
    kept: Mapping[str, Any] = field(default_factory=dict)  # options that are to stay when all is drawn
    plot: Plot | None = None
    cells: tuple[int, ...] = ()  # of a plot: the cell that each order is drawn for

    @property
    def first(self) -> GenerationRequest:
        return self.orders[0].request


def translate(body: DrawingBody, context: ApiContext, owner: str = "") -> Ordered:
    """Decide everything that A1111's words leave open. Refused or UserError name the field and the value.

    Decodes pictures: not for the thread that answers everybody.
    """
    body, from_infotext = filled(body, known_styles(context))
    settings, warnings, kept = _settings(body, from_infotext, context)
    refuse_what_is_not_here(body)
    check_amounts(body, context)
    named = _model(body, settings, from_infotext, context, warnings)
    any_seed = body.seed == -1
    body = _with_seeds(body)
    pictures = Pictures(context.limits, context.flags)
    controlled = _control(body, context, pictures)
    orders: list[Order] = []
    cells: list[int] = []
    spreading = spread(body, context, any_seed)
    for number, one in enumerate(spreading.bodies):
        with _said_of(spreading, number):
            check_amounts(one, context)
            one, its_settings, its_model, units = _with_seeds(one), settings, named, controlled[0]
            if one.override_settings != body.override_settings:
                its_settings, _, _ = _settings(one, from_infotext, context)
                its_model = _model(one, its_settings, from_infotext, context, warnings)
            if one.alwayson_scripts != body.alwayson_scripts:
                units, _ = _control(one, context, pictures)
            for request in _prepared(one, its_settings, units, context, pictures, warnings):
                request.check()
                check_networks(request, context)
                task_id = (body.force_task_id or "") if not orders else ""
                orders.append(_order(one, request, its_model, owner, task_id))
                cells += [spreading.cells[number]] if spreading.plot else []
    most = context.limits.pictures
    if sum(order.request.count for order in orders) > most:
        raise Refused(
            422, f"The script {body.script_name!r} asks for more than {most} pictures.", "ask for fewer."
        )
    if spreading.plot:
        formats = (settings["samples_format"], settings["grid_format"])
        a1111_xyz.check_size(spreading.plot, [order.request for order in orders], cells, formats)
    return Ordered(
        body,
        orders,
        settings,
        list(dict.fromkeys(warnings)),
        spreading.grid_rows,
        controlled[1],
        kept,
        spreading.plot,
        tuple(cells),
    )


@contextmanager
def _said_of(spreading: Spread, number: int) -> Iterator[None]:
    """What is wrong with one of a plot's cells is said with its values."""
    try:
        yield
    except UserError as error:
        if not spreading.names:
            raise
        status = getattr(error, "status", 422)
        raise Refused(status, f"{spreading.names[number]}: {error.message}", error.fix) from None


def _order(
    body: DrawingBody, request: GenerationRequest, model: tuple[str, str], owner: str, task_id: str
) -> Order:
    return Order(
        request,
        model=model[0],
        vae=model[1],
        owner=owner,
        at_once=body.batch_size,
        task_id=task_id,
        kind="img2img" if isinstance(body, Img2ImgBody) else "txt2img",
    )


def known_styles(context: ApiContext) -> dict[str, Style]:
    return prompts.known_styles(context.service.shelf.folders)


# ------------------------------------------------------------------ what holds for the whole request


def _settings(
    body: DrawingBody, from_infotext: Mapping[str, Any], context: ApiContext
) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """The options as they are for this request, warnings, and what of them is to stay."""
    warnings, told, kept = [], {}, {}
    for name, value in from_infotext.items():  # a picture from elsewhere may ask for what is not here
        try:
            told |= checked({name: value})
        except Refused as error:
            warnings.append(f"infotext: {error.message} It was ignored.")
    settings, unknown = context.options.with_overrides({**told, **body.override_settings})
    warnings += [f"override_settings: there is no option {name[:100]!r}; it was ignored" for name in unknown]
    if not body.override_settings_restore_afterwards:
        known = {name: value for name, value in body.override_settings.items() if name not in unknown}
        kept = a1111_settings.checked_change(context, known)
    return settings, warnings, kept


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
        if other and used and other.lower() not in SAME:
            found = a1111_settings.find_model(context, other, name)
            if found.name != context.service.shelf.find(model).name:
                raise not_here(name, other, "one model draws a picture to its end")
    try:
        return model, a1111_settings.find_vae(context, settings["sd_vae"])
    except Refused:
        if "sd_vae" in body.override_settings or "sd_vae" not in from_infotext:
            raise
        warnings.append(f"infotext: no VAE {from_infotext['sd_vae']!r} here; the model's own was used")
        return model, ""


def _control(
    body: DrawingBody, context: ApiContext, pictures: Pictures
) -> tuple[list[ControlUnit], list[bool]]:
    scripts = {name: given for name, given in body.alwayson_scripts.items() if given is not None}
    return units_of(scripts, context, pictures)


def _with_seeds(body: SomeBody) -> SomeBody:
    """-1 is any, such that the last picture's seed is still one."""
    most = body.batch_size * body.n_iter
    seeds = {name: getattr(body, name) for name in ("seed", "subseed")}
    found = {name: random.randint(0, MAX_SEED - most) for name, seed in seeds.items() if seed == -1}
    return body.model_copy(update=found) if found else body


def check_networks(request: GenerationRequest, context: ApiContext) -> None:
    """Names that the library does not know are said now, not when the request has waited for its turn."""
    if request.networks_off:
        return
    for tag in split_tags(without_comments(request.prompt))[1]:
        if tag.kind in LORA_KINDS:
            context.service.shelf.library.networks.find_lora(tag.name, tag.text)


# ------------------------------------------------------------------ one body's requests


def _prepared(
    body: DrawingBody,
    settings: Mapping[str, Any],
    units: list[ControlUnit],
    context: ApiContext,
    pictures: Pictures,
    warnings: list[str],
) -> Iterator[GenerationRequest]:
    """With its styles and wildcards put in; several where those make different prompts for its pictures."""
    for request in _requests(body, settings, units, context, pictures, warnings):
        prepared = prompts.prepare_prompts(request, context.service.shelf.folders, body.styles)
        warnings += prepared.warnings
        yield from prepared.requests


def _requests(
    body: DrawingBody,
    settings: Mapping[str, Any],
    units: list[ControlUnit],
    context: ApiContext,
    pictures: Pictures,
    warnings: list[str],
) -> list[GenerationRequest]:
    """One, unless several pictures are to be drawn over: then one for each picture and round."""
    base = _base(body, settings, units, warnings)
    if isinstance(body, Txt2ImgBody):
        return [with_second_pass(base, body, context, pictures)]
    firsts = [pictures.read(text, f"init_images[{number}]") for number, text in enumerate(body.init_images)]
    inpaint = _inpaint(body, pictures)
    over = [_drawn_over(base, body, picture, inpaint) for picture in firsts]
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
    units: list[ControlUnit],
    warnings: list[str],
) -> GenerationRequest:
    sampler, schedule = _sampler(body.sampler_name or body.sampler_index, body.scheduler)
    return GenerationRequest(
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
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


def _inpaint(body: Img2ImgBody, pictures: Pictures) -> Inpaint | None:
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
        pictures.read(body.mask, "mask"),
        invert=bool(body.inpainting_mask_invert),
        blur_px=blur_x,
        fill=MASK_FILLS[body.inpainting_fill],
        only_masked=body.inpaint_full_res,
        padding_px=body.inpaint_full_res_padding,
    )
