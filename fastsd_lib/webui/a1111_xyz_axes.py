"""The axes of A1111's X/Y/Z plot: which field of a request each of them varies."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastsd_lib.generation import prompts
from fastsd_lib.generation.control_modules import MODULES
from fastsd_lib.generation.request import UPSCALER_LABELS
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES
from fastsd_lib.webui.a1111_models import DrawingBody
from fastsd_lib.webui.a1111_xyz_values import BadValue, Kind, Value
from fastsd_lib.webui.context import ApiContext

Fields = dict[str, Any]
#: (body, value, all values of the axis) -> the fields that change; BadValue for what this body cannot have
Apply = Callable[[DrawingBody, Any, Sequence[Value]], Fields]
Choices = Callable[[ApiContext], list[str]]


@dataclass(frozen=True)
class Axis:
    """One entry of the menu of axes."""

    label: str
    kind: Kind = "text"
    apply: Apply = lambda body, value, values: {}
    only: Literal["", "txt2img", "img2img"] = ""
    choices: Choices | None = None
    bare: bool = False  # the value alone is the label
    second_pass: bool = False  # of hires fix
    missing: str = ""  # why it cannot be varied here
    strict: bool = False  # only the choices are values; other names are checked where they are used

    def named(self, value: Value) -> str:
        """The label of a row or a column."""
        shown = ", ".join(value) if isinstance(value, tuple) else str(value)
        return shown if self.bare else f"{self.label}: {shown}"


def _field(name: str) -> Apply:
    return lambda body, value, values: {name: value}


def _setting(name: str) -> Apply:
    return lambda body, value, values: {"override_settings": body.override_settings | {name: value}}


def _replaced(body: DrawingBody, value: str, values: Sequence[Value]) -> Fields:
    """The first value is looked for in the prompts, and each one takes its place."""
    texts = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")
    first = str(values[0])
    found = {name: getattr(body, name) for name in texts if first in getattr(body, name, "")}
    if not first or not found:
        raise BadValue(first, "begin the list with words that stand in the prompt or the negative prompt")
    return {name: text.replace(first, value) for name, text in found.items()}


def _ordered(body: DrawingBody, value: tuple[str, ...], values: Sequence[Value]) -> Fields:
    """The words of the prompt change places among themselves."""
    for word in value:
        if word not in body.prompt:
            raise BadValue(word, "list words that stand in the prompt")
    words = sorted(value, key=len, reverse=True)  # "red star" before "red"
    places = iter(value)
    seen: set[str] = set()

    def next_word(found: re.Match[str]) -> str:
        if found[0] in seen:  # only the first of each
            return found[0]
        seen.add(found[0])
        return next(places)

    return {"prompt": re.sub("|".join(map(re.escape, words)), next_word, body.prompt)}


def _sized(body: DrawingBody, value: str, values: Sequence[Value]) -> Fields:
    found = re.fullmatch(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})", value)
    if found is None:
        raise BadValue(value, "write sizes as 512x768")
    return {"width": int(found[1]), "height": int(found[2])}


def _styled(body: DrawingBody, value: str, values: Sequence[Value]) -> Fields:
    return {"styles": [*body.styles, *(name.strip() for name in value.split(",") if name.strip())]}


def _with_vae(body: DrawingBody, value: str, values: Sequence[Value]) -> Fields:
    name = "Automatic" if value.lower() in ("", "auto", "automatic", "none") else value
    return {"override_settings": body.override_settings | {"sd_vae": name}}


def _unit(name: str) -> Apply:
    """A field of the first ControlNet unit that is on."""

    def apply(body: DrawingBody, value: Any, values: Sequence[Value]) -> Fields:
        for script, given in body.alwayson_scripts.items():
            args = given.get("args") if isinstance(given, Mapping) else given
            if script.strip().lower() != "controlnet" or not isinstance(args, list):
                continue
            for place, unit in enumerate(args):
                if isinstance(unit, Mapping) and unit.get("enabled", True):
                    units = [*args[:place], {**unit, name: value}, *args[place + 1 :]]
                    return {"alwayson_scripts": body.alwayson_scripts | {script: {"args": units}}}
        raise BadValue(str(value), "switch a ControlNet unit on")

    return apply


def _samplers(context: ApiContext) -> list[str]:
    return [one.label for one in SAMPLERS.values()]


def _models(context: ApiContext) -> list[str]:
    return sorted((one.name for one in context.service.shelf.models()), key=str.casefold)


def _vaes(context: ApiContext) -> list[str]:
    return ["Automatic", *(one.name for one in context.service.shelf.vaes())]


def _styles(context: ApiContext) -> list[str]:
    return list(prompts.known_styles(context.service.shelf.folders))


def _second_upscalers(context: ApiContext) -> list[str]:
    from fastsd_lib.generation.upscale import upscalers  # torch

    networks = upscalers(context.service.shelf.folders.upscalers).values()
    return [*UPSCALER_LABELS.values(), *(one.name for one in networks if one.path)]


def _controlnets(context: ApiContext) -> list[str]:
    return [one.name for one in context.service.shelf.library.controlnets.models()]


def _missing(label: str, why: str, only: Literal["", "txt2img", "img2img"] = "") -> Axis:
    return Axis(label, only=only, missing=why)


CONTROL_MODES = ("Balanced", "My prompt is more important", "ControlNet is more important")
RESIZE_MODES = ("Just Resize", "Crop and Resize", "Resize and Fill")

#: In A1111's order: programs name an axis by its number among those of their tab.
AXES: tuple[Axis, ...] = (
    Axis("Nothing", bare=True),
    Axis("Seed", "whole", _field("seed")),
    Axis("Var. seed", "whole", _field("subseed")),
    Axis("Var. strength", "number", _field("subseed_strength")),
    Axis("Steps", "whole", _field("steps")),
    Axis("Hires steps", "whole", _field("hr_second_pass_steps"), "txt2img", second_pass=True),
    Axis("CFG Scale", "number", _field("cfg_scale")),
    _missing("Image CFG Scale", "there are no instruct-pix2pix models", "img2img"),
    Axis("Prompt S/R", "text", _replaced, bare=True),
    Axis("Prompt order", "order", _ordered, bare=True),
    Axis("Sampler", "text", _field("sampler_name"), "txt2img", _samplers, bare=True),
    Axis("Hires sampler", "text", _field("hr_sampler_name"), "txt2img", _samplers, second_pass=True),
    Axis("Sampler", "text", _field("sampler_name"), "img2img", _samplers, bare=True),
    Axis("Checkpoint name", "text", _setting("sd_model_checkpoint"), "", _models, bare=True),
    _missing("Negative Guidance minimum sigma", "every step is guided"),
    Axis("Sigma Churn", "number", _field("s_churn")),
    Axis("Sigma min", "number", _field("s_tmin")),
    Axis("Sigma max", "number", _field("s_tmax")),
    Axis("Sigma noise", "number", _field("s_noise")),
    Axis(
        "Schedule type", "text", _field("scheduler"), "", lambda _: [one.label for one in SCHEDULES.values()]
    ),
    _missing("Schedule min sigma", "schedules have the model's own ends"),
    _missing("Schedule max sigma", "schedules have the model's own ends"),
    _missing("Schedule rho", "schedules have their usual bend"),
    _missing("Beta schedule alpha", "schedules have their usual bend"),
    _missing("Beta schedule beta", "schedules have their usual bend"),
    Axis("Eta", "number", _field("eta")),
    Axis("Clip skip", "whole", _setting("CLIP_stop_at_last_layers")),
    Axis("Denoising", "number", _field("denoising_strength"), second_pass=True),
    _missing("Initial noise multiplier", "noise has its full strength"),
    _missing("Extra noise", "noise has its full strength"),
    Axis("Hires upscaler", "text", _field("hr_upscaler"), "txt2img", _second_upscalers, second_pass=True),
    _missing("Cond. Image Mask Weight", "inpainting models see the whole mask", "img2img"),
    Axis("VAE", "text", _with_vae, "", _vaes),
    Axis("Styles", "text", _styled, "", _styles, strict=True),
    _missing("UniPC Order", "the sampler has its usual order"),
    _missing("Face restore", "there is no face restoration"),
    _missing("Token merging ratio", "tokens are not merged"),
    _missing("Token merging ratio high-res", "tokens are not merged"),
    _missing("Always discard next-to-last sigma", "each sampler has its usual noise levels"),
    _missing("SGM noise multiplier", "noise has its full strength"),
    _missing("Refiner checkpoint", "one model draws a picture to its end"),
    _missing("Refiner switch at", "one model draws a picture to its end"),
    _missing("RNG source", "noise is drawn on the CPU, for every device"),
    _missing("FP8 mode", "weights are not stored in 8 bits"),
    Axis("Size", "text", _sized),
    # as the ControlNet extension adds them
    Axis("[ControlNet] Model", "text", _unit("model"), "", _controlnets),
    Axis("[ControlNet] Weight", "number", _unit("weight")),
    Axis("[ControlNet] Guidance Start", "number", _unit("guidance_start")),
    Axis("[ControlNet] Guidance End", "number", _unit("guidance_end")),
    Axis("[ControlNet] Preprocessor", "text", _unit("module"), "", lambda _: list(MODULES)),
    Axis("[ControlNet] Control Mode", "text", _unit("control_mode"), "", lambda _: list(CONTROL_MODES)),
    Axis("[ControlNet] Resize Mode", "text", _unit("resize_mode"), "", lambda _: list(RESIZE_MODES)),
    Axis("[ControlNet] Pre Resolution", "whole", _unit("processor_res")),
    Axis("[ControlNet] Pre Threshold A", "number", _unit("threshold_a")),
    Axis("[ControlNet] Pre Threshold B", "number", _unit("threshold_b")),
)


def axes_of(kind: str) -> list[Axis]:
    """Those that txt2img or img2img has, in the order of its menu, also what cannot be varied here."""
    return [axis for axis in AXES if axis.only in ("", kind)]
