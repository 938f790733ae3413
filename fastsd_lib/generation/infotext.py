"""How a picture was made, as the lines of text that AUTOMATIC1111 writes into it and reads from it. Pure text.

a cat
Negative prompt: a dog
Steps: 25, Sampler: Euler a, CFG scale: 7.0, Seed: 3, Size: 512x768, Model: sd15, Version: fastsd
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastsd_lib.generation.picture_text import read_record, save_picture, writable
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES, choose
from fastsd_lib.generation.styles import Style, find_styles

__all__ = ["infotext", "read_infotext", "read_record", "save_picture", "write_infotext"]

VERSION = "fastsd"

# A1111's keys in the order in which it writes them, and what our records call them. All other keys follow, in the
# order in which they come, and then these two.
ORDER: dict[str, str] = {
    "Steps": "inference_steps",
    "Sampler": "sampler",
    "Schedule type": "schedule",
    "CFG scale": "guidance_scale",
    "Distilled CFG Scale": "distilled_guidance_scale",
    "Image CFG scale": "image_guidance_scale",
    "Seed": "seed",
    "Face restoration": "face_restoration",
    "Size": "size",
    "Model hash": "model_hash",
    "Model": "model",
    "FP8 weight": "fp8_weight",
    "Cache FP16 weight for LoRA": "cache_fp16_weight",
    "VAE hash": "vae_hash",
    "VAE": "vae",
    "Variation seed": "variation_seed",
    "Variation seed strength": "variation_strength",
    "Seed resize from": "seed_resize_from",
    "Denoising strength": "strength",
    "Conditional mask weight": "conditional_mask_weight",
    "Clip skip": "clip_skip",
    "ENSD": "eta_noise_seed_delta",
    "Token merging ratio": "token_merging_ratio",
    "Token merging ratio hr": "token_merging_ratio_hires",
    "Init image hash": "init_image_hash",
    "RNG": "noise_source",
    "NGMS": "negative_guidance_minimum_sigma",
    "Tiling": "tiling",
}
LAST = ("Version", "User")

# What a reader may assume of a picture whose text does not say it.
ASSUMED: dict[str, Any] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
}


def infotext(record: Mapping[str, Any]) -> str:
    """The text for one of our records; `extra_parameters` of the record go in with the keys they have."""
    named = {key: record.get(ours) for key, ours in ORDER.items()}
    named["Sampler"] = SAMPLERS[record["sampler"]].label
    if named["Schedule type"] is not None:
        own = choose(record["sampler"])[1] == named["Schedule type"]
        named["Schedule type"] = SCHEDULES["automatic" if own else named["Schedule type"]].label
    named["Size"] = f"{record['width_px']}x{record['height_px']}"
    if not named["Variation seed strength"]:
        named["Variation seed"] = named["Variation seed strength"] = None
    if (named["Clip skip"] or 1) <= 1:
        named["Clip skip"] = None
    named["RNG"] = str(named["RNG"]).upper() if named["RNG"] and str(named["RNG"]).upper() != "GPU" else None
    named["Tiling"] = True if named["Tiling"] else None
    named |= record.get("extra_parameters", {})
    named["Version"] = VERSION
    return write_infotext(record["prompt"], record["negative_prompt"], named)


def write_infotext(prompt: str, negative_prompt: str, settings: Mapping[str, Any]) -> str:
    """The text for settings that have A1111's names already. None is left out, all else is written as `str`."""
    known = [key for key in ORDER if key in settings]
    more = [key for key in settings if key not in ORDER and key not in LAST]
    keys = [*known, *more, *(key for key in LAST if key in settings)]
    given = {key: settings[key] for key in keys if settings[key] is not None}
    line = ", ".join(key if key == value else f"{key}: {_quoted(value)}" for key, value in given.items())
    negative = f"\nNegative prompt: {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{line}".strip()


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",\n:") else text


def read_infotext(text: str, styles: Mapping[str, Style] | None = None) -> dict[str, Any]:
    """Prompt, negative prompt and settings of a text, with A1111's keys, and what may be assumed filled in.

    Values are strings, "512x768" becomes "Size-1" and "Size-2". `styles`: those found in the prompts are taken
    out and named in "Styles array". Any text is read: one without settings is a prompt.
    """
    *lines, last = text.strip().split("\n")
    pairs = list(_pairs(last))
    if len(pairs) < 3:
        lines.append(last)
        pairs = []
    found: dict[str, Any] = {}
    prompt, negative = _prompts(lines)
    if styles is not None:
        names, prompt, negative = find_styles(prompt, negative, styles)
        if names:
            found["Styles array"] = names
    found |= {"Prompt": prompt, "Negative prompt": negative}
    for key, value in _mended(pairs):
        size = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", value)
        if size:
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
        elif value:
            found[key] = value
    if "Hypernet" in found:
        found["Prompt"] += f"<hypernet:{found['Hypernet']}:{found.get('Hypernet strength', '1.0')}>"
    for key, value in ASSUMED.items():
        found.setdefault(key, value)
    if found["FP8 weight"] != "Disable":
        found.setdefault("Cache FP16 weight for LoRA", False)
    _mend_first_pass(found)
    return found


def _prompts(lines: list[str]) -> tuple[str, str]:
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in lines:
        line = line.strip()
        if line.startswith("Negative prompt:"):
            part = negative
            line = line.removeprefix("Negative prompt:").strip()
        if part or line:  # empty lines before the first word are no part of a prompt
            part.append(line)
    return "\n".join(prompt), "\n".join(negative)


_QUOTED = re.compile(r'"((?:\\.|[^\\"])+)"(?:,|$)')
_FIRST_LETTER = re.compile(r"\w")


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """ "Key: value" after "Key: value"; a quoted value may hold commas. What is no pair is passed over."""
    at = 0
    while (colon := line.find(":", at)) >= 0:
        start = colon
        while start > at and _is_of_key(line[start - 1]):
            start -= 1
        first = _FIRST_LETTER.search(line, start, colon)
        if first is None or colon - first.start() < 2:
            at = colon + 1
            continue
        value_at = colon + 1
        while value_at < len(line) and line[value_at].isspace():
            value_at += 1
        quoted = _QUOTED.match(line, value_at)
        end = quoted.end() if quoted else line.find(",", value_at) + 1 or len(line)
        value = line[value_at:end].removesuffix(",")
        yield line[first.start() : colon], _unquoted(value)
        at = end


def _is_of_key(sign: str) -> bool:
    return sign.isalnum() or sign in "_ -/"


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return writable(str(json.loads(value)))
    except (ValueError, RecursionError):
        return value


def _mended(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Civitai's lines for Flux: no sampler, a clip skip that Flux has not, and the distilled scale under CFG."""
    settings = dict(pairs)
    civitai_flux = settings.get("Sampler") == "Undefined" or (
        any("Civitai" in key or "Civitai" in value for key, value in pairs)
        and any("FLUX" in value for _, value in pairs)
    )
    if not civitai_flux:
        return pairs
    settings.pop("Clip skip", None)
    if settings.get("Sampler") == "Undefined":
        settings |= {"Sampler": "Euler", "Schedule type": "Simple"}
    if "CFG scale" in settings and "Distilled CFG Scale" not in settings:
        settings |= {"Distilled CFG Scale": settings["CFG scale"], "CFG scale": "1"}
    return list(settings.items())


def _mend_first_pass(found: dict[str, Any]) -> None:
    """Pictures of 2022 say the size of the first pass; since then it is "Size", and the second one is "Hires"."""
    try:
        first = int(found["First pass size-1"]), int(found["First pass size-2"])
        size = int(found.get("Size-1", 512)), int(found.get("Size-2", 512))
    except (KeyError, ValueError):
        return
    if 0 in first and 0 not in size:  # "as large as the model's own pictures, in multiples of 64"
        scale = math.sqrt(512 * 512 / (size[0] * size[1]))
        first = math.ceil(scale * size[0] / 64) * 64, math.ceil(scale * size[1] / 64) * 64
    found["Size-1"], found["Size-2"] = first
    found["Hires resize-1"], found["Hires resize-2"] = size
