"""What pictures of other programs say about themselves, told as A1111 would: ComfyUI, InvokeAI, NovelAI."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.comfy_graph import settings_of_prompt, settings_of_workflow
from fastsd_lib.generation.infotext import write_infotext
from fastsd_lib.generation.picture_text import read_texts, writable
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES, find_sampler, find_schedule

MOST_CHARACTERS = 4 << 20  # of one program's text


@dataclass(frozen=True)
class PictureHistory:
    """How a picture was made, as far as it says so."""

    program: str  # "fastsd", "a1111", "comfyui", "invokeai", "novelai", or "" when it says nothing known
    parameters: str  # A1111's text; "" when there is none
    texts: Mapping[str, str]  # every text in the file, as it stands there


def read_history(source: Path | bytes) -> PictureHistory:
    """Ask a picture file how it was made. UserError for what is no picture; any text in one is taken."""
    texts = read_texts(source)
    if texts.get("parameters"):
        comfy = _json(texts["parameters"])  # some programs put their own JSON in this place
        if not isinstance(comfy, dict):
            return PictureHistory("fastsd" if "fastsd" in texts else "a1111", texts["parameters"], texts)
        texts = {**{str(key): _as_text(value) for key, value in comfy.items()}, **texts}
    for program, read in _PROGRAMS.items():
        settings = read({key.lower(): text for key, text in texts.items()})
        if settings:
            return PictureHistory(program, _told(settings), texts)
    return PictureHistory("", "", texts)


def _novelai(texts: Mapping[str, str]) -> dict[str, Any]:
    comment = _json(texts.get("comment", ""))
    if texts.get("software") != "NovelAI" or not isinstance(comment, dict):
        return {}
    width, height = _number(comment.get("width")), _number(comment.get("height"))
    return {
        "Prompt": texts.get("description") or _text(comment.get("prompt")),
        "Negative prompt": _text(comment.get("uc")),
        "Steps": _number(comment.get("steps")),
        "Sampler": _text(comment.get("sampler")),
        "Schedule type": _text(comment.get("noise_schedule")) or None,
        "CFG scale": _number(comment.get("scale")),
        "Seed": _number(comment.get("seed")),
        "Size": f"{width}x{height}" if width and height else None,
        "Denoising strength": _number(comment.get("strength")),
        "Clip skip": 2,  # all of its models are drawn with these two
        "ENSD": 31337,
    }


def _invokeai(texts: Mapping[str, str]) -> dict[str, Any]:
    found = _json(texts.get("invokeai_metadata", ""))
    if isinstance(found, dict):
        return _invokeai_now(found)
    found = _json(texts.get("sd-metadata", ""))
    if isinstance(found, dict) and isinstance(found.get("image"), dict):
        return _invokeai_before(found)
    return _dream(texts.get("dream", ""))


def _invokeai_now(found: Mapping[str, Any]) -> dict[str, Any]:
    model = found.get("model") if isinstance(found.get("model"), dict) else {}
    vae = found.get("vae") if isinstance(found.get("vae"), dict) else {}
    width, height = _number(found.get("width")), _number(found.get("height"))
    skip = _number(found.get("clip_skip")) or 0
    digest = _text(model.get("hash")).rpartition(":")[2][:10]
    tags = []
    for lora in found.get("loras") if isinstance(found.get("loras"), list) else []:
        if isinstance(lora, dict):
            named = next((lora[key] for key in ("model", "lora") if isinstance(lora.get(key), dict)), {})
            name, weight = _text(named.get("name") or named.get("model_name")), _number(lora.get("weight"))
            tags += [f"<lora:{name}:{1.0 if weight is None else weight}>"] if name else []
    return {
        "Prompt": " ".join([_text(found.get("positive_prompt")), *tags]).strip(),
        "Negative prompt": _text(found.get("negative_prompt")),
        "Steps": _number(found.get("steps")),
        "Sampler": _text(found.get("scheduler")),
        "CFG scale": _number(found.get("cfg_scale")),
        "Seed": _number(found.get("seed")),
        "Size": f"{width}x{height}" if width and height else None,
        "Model hash": digest or None,
        "Model": _text(model.get("name") or model.get("model_name")) or None,
        "VAE": _text(vae.get("name") or vae.get("model_name")) or None,
        "Denoising strength": _number(found.get("strength")),
        "Clip skip": skip + 1 if skip else None,  # it counts the layers left out
    }


def _invokeai_before(found: Mapping[str, Any]) -> dict[str, Any]:
    image = found["image"]
    prompt = image.get("prompt")
    if isinstance(prompt, list):  # [{"prompt": ..., "weight": ...}]
        parts = [part for part in prompt if isinstance(part, dict)]
        words = [(_text(part.get("prompt")), _number(part.get("weight"))) for part in parts]
        joined = [text if weight in (None, 1) else f"{text} :{weight}" for text, weight in words]
        prompt = " AND ".join(joined)
    positive, negative = _bracketed(_text(prompt))
    width, height = _number(image.get("width")), _number(image.get("height"))
    return {
        "Prompt": positive,
        "Negative prompt": negative,
        "Steps": _number(image.get("steps")),
        "Sampler": _text(image.get("sampler")),
        "CFG scale": _number(image.get("cfg_scale")),
        "Seed": _number(image.get("seed")),
        "Size": f"{width}x{height}" if width and height else None,
        "Model hash": _text(found.get("model_hash"))[:10] or None,
        "Model": _text(found.get("model_weights")) or None,
        "Denoising strength": _number(image.get("strength")),
    }


_FLAGS = {
    "-s": "Steps", "--steps": "Steps", "-S": "Seed", "--seed": "Seed", "-W": "width", "--width": "width",
    "-H": "height", "--height": "height", "-C": "CFG scale", "--cfg_scale": "CFG scale", "-A": "Sampler",
    "--sampler": "Sampler", "-f": "Denoising strength", "--strength": "Denoising strength",
}  # fmt: skip
_JOINED = re.compile(r"(-[sSWHCAf])(?=[\w.+-])(.+)")


def _dream(command: str) -> dict[str, Any]:
    """ "a prompt [what not]" -s 50 -S 42 -W 512 -H 512 -C 7.5 -A k_lms."""
    try:
        words = shlex.split(command[:100_000])
    except ValueError:  # a quote that is never closed
        words = command[:100_000].split()
    found: dict[str, Any] = {}
    prompt: list[str] = []
    rest = iter(words)
    for word in rest:
        joined = _JOINED.fullmatch(word)
        flag, value = (joined[1], joined[2]) if joined else (word, None)
        if flag in _FLAGS:
            key = _FLAGS[flag]
            value = next(rest, "") if value is None else value
            found[key] = value if key == "Sampler" else _number(value)
        elif not found:
            prompt.append(word)
    if len(found) < 2:
        return {}
    width, height = found.pop("width", None), found.pop("height", None)
    positive, negative = _bracketed(" ".join(prompt))
    size = f"{width}x{height}" if width and height else None
    return {"Prompt": positive, "Negative prompt": negative, "Size": size, **found}


def _bracketed(prompt: str) -> tuple[str, str]:
    """Old InvokeAI: what stands in square brackets should not be in the picture."""
    negative = re.findall(r"\[([^\[\]]*)\]", prompt)
    positive = re.sub(r"\[[^\[\]]*\]", "", prompt) if negative else prompt
    return " ".join(positive.split()), ", ".join(part.strip() for part in negative)


def _comfyui(texts: Mapping[str, str]) -> dict[str, Any]:
    return settings_of_prompt(_json(texts.get("prompt", ""))) or settings_of_workflow(
        _json(texts.get("workflow", ""))
    )


_PROGRAMS: dict[str, Callable[[Mapping[str, str]], dict[str, Any]]] = {
    "novelai": _novelai,
    "invokeai": _invokeai,
    "comfyui": _comfyui,
}


def _told(settings: dict[str, Any]) -> str:
    """A1111's text. Names of samplers and schedules that are known here are A1111's, others stay as they are."""
    prompt, negative = settings.get("Prompt", ""), settings.get("Negative prompt", "")
    settings = {key: value for key, value in settings.items() if key not in ("Prompt", "Negative prompt")}
    sampler, schedule = _known_sampler(settings.get("Sampler") or "")
    named = settings.get("Schedule type")
    if named:
        try:
            schedule = SCHEDULES[find_schedule(named)].label
        except UserError:
            schedule = named[:100]
    settings |= {"Sampler": sampler or None, "Schedule type": schedule or None}
    return writable(write_infotext(prompt, negative, settings))


def _known_sampler(name: str) -> tuple[str, str]:
    """A1111's names of the sampler and of the schedule in its name; InvokeAI's "_k" is Karras."""
    for one, spacing in ((name, ""), (name.removeprefix("k_"), ""), (name.removesuffix("_k"), "karras")):
        try:
            sampler, implied = find_sampler(one)
        except UserError:
            continue
        schedule = implied or spacing
        return SAMPLERS[sampler].label, SCHEDULES[schedule].label if schedule else ""
    return name[:100], ""


def _json(text: str) -> Any:
    """None for what is no JSON, or more of it than a program writes."""
    if not text or text.lstrip()[:1] not in ("{", "[") or len(text) > MOST_CHARACTERS:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> int | float | None:
    """A finite number, also one written as text; None for all else."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,20}(\.[0-9]{1,20})?", value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e20:
        return None
    return value
