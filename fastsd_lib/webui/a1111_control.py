"""ControlNet units as sd-webui-controlnet's clients send them -> ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.control_modules import find_module
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.webui.a1111_models import Body, Name, Share
from fastsd_lib.webui.a1111_pictures import Pictures
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext

if TYPE_CHECKING:
    from PIL.Image import Image

RESIZE_MODES = {"just resize": "stretch", "crop and resize": "crop", "resize and fill": "fill"}
RESIZE_MODES |= {  # what the extension called them until 2023
    "inner fit (scale to fit)": "crop",
    "scale to fit (inner fit)": "crop",
    "outer fit (shrink to fit)": "fill",
    "envelope (outer fit)": "fill",
    "0": "stretch",
    "1": "crop",
    "2": "fill",
}
MODES = {
    "balanced": "balanced",
    "my prompt is more important": "prompt",
    "controlnet is more important": "control",
}
MODES |= {"0": "balanced", "1": "prompt", "2": "control"}
PASSES = {"both": "both", "low res only": "first", "high res only": "hires"}
PASSES |= {"hiresfixoption.both": "both", "0": "both", "1": "first", "2": "hires"}
_OLD_NAMES = {"guidance": "guidance_end", "lowvram": "low_vram", "input_image": "image", "mask_image": "mask"}

PictureOrPair = str | dict[str, Any] | list[Any]


class UnitBody(Body):
    """One unit; keys that it does not know are ignored, as the extension does."""

    enabled: bool = True
    module: Name = "none"
    model: Name = "None"
    weight: float = Field(1.0, ge=0, le=2)
    image: PictureOrPair | None = None
    mask: str | None = None
    resize_mode: str | int = "Crop and Resize"
    processor_res: float = -1
    threshold_a: float = -1
    threshold_b: float = -1
    guidance_start: Share = 0.0
    guidance_end: Share = 1.0
    pixel_perfect: bool = False
    control_mode: str | int = "Balanced"
    hr_option: str | int = "Both"
    save_detected_map: bool = True
    advanced_weighting: list[float] | None = None
    effective_region_mask: str | None = None
    ipadapter_input: Any = None

    @model_validator(mode="before")
    @classmethod
    def _by_new_names(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        said = {name: value for name, value in given.items() if value is not None}
        renamed = {_OLD_NAMES[name]: value for name, value in said.items() if name in _OLD_NAMES}
        return renamed | {name: value for name, value in said.items() if name not in _OLD_NAMES}

    @field_validator("image", "mask", "effective_region_mask", mode="after")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None


def units_of(
    scripts: Mapping[str, Any], context: ApiContext, pictures: Pictures
) -> tuple[list[ControlUnit], list[bool]]:
    """The enabled units of `alwayson_scripts`, and for each whether its map is to be sent back."""
    units, sent_back = [], []
    for name, script in scripts.items():
        args = script.get("args") or [] if isinstance(script, Mapping) else script
        if not isinstance(args, list):
            raise Refused(422, f"alwayson_scripts.{name[:50]}.args is no list.", "send a list of units.")
        if len(args) > context.limits.control_units:
            raise Refused(
                422,
                f"There are {len(args)} ControlNet units.",
                f"send at most {context.limits.control_units}.",
            )
        for number, given in enumerate(args):
            if given is None or given is False:
                continue
            unit = _checked(given, f"{name}.args[{number}]")
            if unit.enabled:
                units.append(_unit(unit, f"ControlNet unit {number}", context, pictures))
                sent_back.append(unit.save_detected_map)
    return units, sent_back


def _checked(given: Any, where: str) -> UnitBody:
    if not isinstance(given, Mapping):
        raise Refused(422, f"{where} is {str(given)[:50]!r}, no unit.", 'send {"image": ..., "model": ...}.')
    try:
        return UnitBody.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        sent = str(first.get("input"))[:100]
        raise Refused(422, f"{where}.{field}: {first['msg']} (sent: {sent!r}).") from None


def _unit(unit: UnitBody, where: str, context: ApiContext, pictures: Pictures) -> ControlUnit:
    if unit.ipadapter_input is not None:
        raise Refused(422, f"{where}: ipadapter_input would be read as a pickle.", "leave it out.")
    if unit.advanced_weighting is not None:
        raise Refused(422, f"{where}: advanced_weighting is not known here.", "leave it out; use weight.")
    if unit.guidance_start > unit.guidance_end:
        raise Refused(
            422,
            f"{where}: guidance_start {unit.guidance_start:g} is after guidance_end {unit.guidance_end:g}.",
            "take a start before the end.",
        )
    image, mask = _image_and_mask(unit, where, pictures)
    region = unit.effective_region_mask
    if region:
        mask = pictures.read(region, f"{where} effective_region_mask")
    if mask is not None and mask.convert("L").getextrema()[1] == 0:
        mask = None  # a black mask is how programs send none
    model = unit.model.strip()
    return ControlUnit(
        image=image,
        model="" if model.lower() == "none" else _model(model, where, context),
        preprocessor=_module(unit.module, where),
        weight=unit.weight,
        start=unit.guidance_start,
        end=unit.guidance_end,
        mode=_one_of(MODES, unit.control_mode, f"{where}: control_mode"),
        resize_mode=_one_of(RESIZE_MODES, unit.resize_mode, f"{where}: resize_mode"),
        mask=mask,
        resolution_px=_own(unit.processor_res, f"{where}: processor_res", whole=True),
        pixel_perfect=unit.pixel_perfect,
        threshold_a=_own(unit.threshold_a, f"{where}: threshold_a"),
        threshold_b=_own(unit.threshold_b, f"{where}: threshold_b"),
        hires_pass=_one_of(PASSES, unit.hr_option, f"{where}: hr_option"),
    )


def _model(name: str, where: str, context: ApiContext) -> str:
    try:
        return context.service.shelf.library.controlnets.find(name).name
    except UserError as error:
        raise Refused(422, f"{where}: model: {error.message}", error.fix) from None


def _module(name: str, where: str) -> str:
    try:
        return find_module(name.strip() or "none").name
    except UserError as error:
        raise Refused(422, f"{where}: module: {error.message}", error.fix) from None


def _image_and_mask(unit: UnitBody, where: str, pictures: Pictures) -> tuple[Image | None, Image | None]:
    """From a text, a pair {image, mask}, or a list of one of these. What is sent is decoded, never opened."""
    given, mask = unit.image, unit.mask
    if isinstance(given, list):
        if len(given) != 1:
            raise Refused(422, f"{where} has {len(given)} images.", "send one; use a unit for each.")
        given = given[0]
    if isinstance(given, Mapping):
        mask = mask or given.get("mask") or None
        given = given.get("image") or None
    for name, value in (("image", given), ("mask", mask)):
        if value is not None and not isinstance(value, str):
            raise Refused(422, f"{where}: {name} is {str(value)[:50]!r}.", "send it in base64.")
    read = [
        pictures.read(value, f"{where} {name}") if value else None
        for name, value in (("image", given), ("mask", mask))
    ]
    return read[0], read[1]


def _own(value: float, where: str, whole: bool = False) -> Any:
    """None = the preprocessor's own, which the extension writes as -1."""
    if value < 0:
        return None
    if value > 8192:
        raise Refused(422, f"{where} is {value:g}.", "take -1 for the preprocessor's own, or at most 8192.")
    return int(value) if whole else value


def _one_of(names: Mapping[str, str], value: Any, where: str) -> str:
    found = names.get(str(value).strip().lower())
    if found is None:
        known = [name for name in names if " " in name or len(name) > 3]
        raise Refused(422, f"{where} is {str(value)[:100]!r}.", f"take one of: {', '.join(known)}.")
    return found
