"""The field `infotext`: what a picture says of itself fills what a request leaves open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from fastsd_lib.generation.infotext import ASSUMED, read_infotext
from fastsd_lib.generation.styles import Style
from fastsd_lib.webui.a1111_models import DrawingBody
from fastsd_lib.webui.api_errors import Refused

FIELDS: dict[str, str] = {
    "Prompt": "prompt",
    "Negative prompt": "negative_prompt",
    "Steps": "steps",
    "Sampler": "sampler_name",
    "Schedule type": "scheduler",
    "CFG scale": "cfg_scale",
    "Seed": "seed",
    "Size-1": "width",
    "Size-2": "height",
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Seed resize from-1": "seed_resize_from_w",
    "Seed resize from-2": "seed_resize_from_h",
    "Denoising strength": "denoising_strength",
    "Tiling": "tiling",
    "Styles array": "styles",
    "Eta": "eta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    "Hires upscale": "hr_scale",
    "Hires upscaler": "hr_upscaler",
    "Hires steps": "hr_second_pass_steps",
    "Hires resize-1": "hr_resize_x",
    "Hires resize-2": "hr_resize_y",
    "Hires sampler": "hr_sampler_name",
    "Hires schedule type": "hr_scheduler",
    "Hires checkpoint": "hr_checkpoint_name",
    "Hires prompt": "hr_prompt",
    "Hires negative prompt": "hr_negative_prompt",
    "Hires CFG Scale": "hr_cfg",
    "Mask blur": "mask_blur",
    "Masked area padding": "inpaint_full_res_padding",
    "Masked content": "inpainting_fill",
    "Inpaint area": "inpaint_full_res",
    "Mask mode": "inpainting_mask_invert",
}
READ: dict[str, Callable[[str], Any]] = {
    "inpainting_fill": lambda text: ("fill", "original", "latent noise", "latent nothing").index(text),
    "inpaint_full_res": lambda text: text == "Only masked",
    "inpainting_mask_invert": lambda text: int(text == "Inpaint not masked"),
}
SETTINGS = {
    "Clip skip": "CLIP_stop_at_last_layers",
    "Model hash": "sd_model_checkpoint",
    "VAE": "sd_vae",
    "ENSD": "eta_noise_seed_delta",
}


def filled(body: DrawingBody, styles: dict[str, Style]) -> tuple[DrawingBody, dict[str, Any]]:
    """The body with its open fields filled, and the settings that the text asks for.

    A text says only what differs from the usual; what it does not say stays as the request has it.
    """
    if not body.infotext:
        return body, {}
    found = read_infotext(body.infotext, styles)
    said = {key: value for key, value in found.items() if ASSUMED.get(key) != value}
    given = {name: getattr(body, name) for name in body.model_fields_set}
    texts: dict[str, Any] = {}
    for key, name in FIELDS.items():
        if key in said and name not in given and name in type(body).model_fields:
            try:
                texts[name] = READ[name](said[key]) if name in READ else said[key]
            except ValueError:
                raise Refused(422, f"infotext: {key} is {str(said[key])[:50]!r}.", "leave it out.") from None
    if {"Hires upscale", "Hires upscaler", "Hires resize-1"} & set(said) and "enable_hr" not in given:
        texts["enable_hr"] = True
    settings = {name: said[key] for key, name in SETTINGS.items() if key in said}
    try:
        return type(body).model_validate(texts | given), settings
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        sent = str(first.get("input"))[:50]
        raise Refused(422, f"infotext: {where}: {first['msg']} (there: {sent!r}).", "leave it out.") from None
