"""What a request in A1111's words may not ask for: too much, or what this server cannot do."""

from __future__ import annotations

from typing import Any

from fastsd_lib.webui.a1111_models import DrawingBody, Img2ImgBody
from fastsd_lib.webui.a1111_scripts import ALWAYS_ON
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext

GRAIN_PX = 8  # A1111 draws in multiples of this and rounds down
SAME = ("", "none", "use same sampler", "use same scheduler", "use same checkpoint")


def refuse_what_is_not_here(body: DrawingBody) -> None:
    if body.restore_faces:
        raise not_here("restore_faces", True, "there is no face restoration")
    if body.s_min_uncond:
        raise not_here("s_min_uncond", body.s_min_uncond, "every step is guided")
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
        raise not_here(
            "initial_noise_multiplier", body.initial_noise_multiplier, "noise has its full strength"
        )
    if body.latent_mask:
        raise not_here("latent_mask", "a picture", "there is one mask", "send it as mask.")
    if body.mask and not body.mask_round:
        raise not_here("mask_round", False, "a pixel is drawn anew or stays")


def not_here(name: str, value: Any, why: str, fix: str = "leave it out.") -> Refused:
    return Refused(422, f"{name} is {str(value)[:100]!r}, which this server cannot do: {why}.", fix)


def check_amounts(body: DrawingBody, context: ApiContext) -> None:
    limits = context.limits
    if body.batch_size * body.n_iter > limits.pictures:
        asked = f"batch_size {body.batch_size} x n_iter {body.n_iter}"
        raise Refused(422, f"{asked} is more than {limits.pictures} pictures.", "ask for fewer.")
    check_area(body.width, body.height, "width x height", context)
    for name in ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"):
        tags = getattr(body, name, "").count("<")
        if tags > limits.networks:
            raise Refused(422, f"{name} has {tags} tags <...>.", f"use at most {limits.networks}.")


def check_area(width: int, height: int, what: str, context: ApiContext) -> None:
    limits = context.limits
    if width * height > limits.pixels or max(width, height) > limits.side_px:
        most = f"{limits.pixels / 1e6:.1f} million pixels and {limits.side_px} on a side"
        raise Refused(422, f"{what} is {width} x {height}; the most is {most}.", "ask for a smaller picture.")
