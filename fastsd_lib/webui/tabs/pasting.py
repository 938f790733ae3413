"""The text of a picture -> values for the page's fields. Foreign names and their habits end here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import read_infotext
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES, find_sampler, find_schedule
from fastsd_lib.generation.styles import Style, find_styles
from fastsd_lib.webui.a1111_checks import SAME
from fastsd_lib.webui.a1111_infotext import FIELDS, READ


@dataclass
class Pasted:
    """What a text says: under its own keys, and as values of fields."""

    found: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def pasted_values(
    infotext: str, fields: Mapping[str, gr.components.Component], styles: Mapping[str, Style]
) -> Pasted:
    """The values that the text has for these fields. Values that cannot be are left out, with a warning."""
    found = read_infotext(infotext, styles)
    found.setdefault("Styles array", [])
    pasted = Pasted(found)
    for key, name in FIELDS.items():
        if name in fields and key in found:
            try:
                pasted.values[name] = _value(name, found[key], fields[name])
            except (ValueError, UserError):
                pasted.warnings.append(f"{key} is {str(found[key])[:80]!r} in this text; it was left out.")
    _take_styles_out_of_second_pass(pasted, styles)
    if "Sampler" in found and "scheduler" in fields:
        _take_fused_schedule(pasted)
    if "enable_hr" in fields:
        pasted.values["enable_hr"] = bool(found.get("Hires upscale") or found.get("Hires upscaler") or
                                          int(found.get("Hires resize-1") or 0))  # fmt: skip
    return pasted


def _value(name: str, said: Any, component: gr.components.Component) -> Any:
    if name in READ:
        return READ[name](said)
    if name in ("sampler_name", "hr_sampler_name"):
        same = name.startswith("hr_") and str(said).strip().lower() in SAME
        return "Use same sampler" if same else SAMPLERS[find_sampler(said)[0]].label
    if name in ("scheduler", "hr_scheduler"):
        same = name.startswith("hr_") and str(said).strip().lower() in SAME
        return "Use same scheduler" if same else SCHEDULES[find_schedule(said)].label
    if isinstance(component, gr.Checkbox):
        return str(said).strip().lower() in ("true", "1")
    if isinstance(component, gr.Slider | gr.Number):
        number = float(said)
        return int(number) if number.is_integer() else number
    return said


def _take_styles_out_of_second_pass(pasted: Pasted, styles: Mapping[str, Style]) -> None:
    """Prompts of its own had the styles put in, too, and get them again."""
    for name, half in (("hr_prompt", "prompt"), ("hr_negative_prompt", "negative_prompt")):
        if pasted.values.get(name):
            halves = {
                style: Style(style, getattr(styles[style], half)) for style in pasted.found["Styles array"]
            }
            pasted.values[name] = find_styles(pasted.values[name], "", halves)[1]


def _take_fused_schedule(pasted: Pasted) -> None:
    """Up to 1.8 A1111 wrote "DPM++ 2M Karras" as the sampler, and no schedule beside it."""
    try:
        implied = find_sampler(pasted.found["Sampler"])[1]
    except UserError:
        return
    if implied and pasted.found.get("Schedule type") in (None, "Automatic"):
        pasted.values["scheduler"] = SCHEDULES[implied].label
