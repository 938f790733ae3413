"""What a picture was made with and this server has not: models, networks, learned words, said in sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import escaped
from fastsd_lib.generation.prompt_tags import LORA_KINDS, split_tags, without_comments
from fastsd_lib.generation.request import UPSCALER_LABELS
from fastsd_lib.generation.samplers import find_sampler, find_schedule
from fastsd_lib.webui.context import ApiContext

_LONGEST_NAME = 120
_CONTROL_MODEL = re.compile(r"Model: ([^,]+)")
_PROMPTS = ("Prompt", "Negative prompt", "Hires prompt", "Hires negative prompt")


def missing_from(parameters: Mapping[str, Any], context: ApiContext) -> list[str]:
    """One sentence for each thing; nothing for a picture that can be drawn again here.

    `parameters`: as `read_infotext` returns them, of any origin.
    """
    checks = (_model, _vae, _sampler, _networks, _words, _control, _upscaler, _other)
    return [sentence for check in checks for sentence in check(parameters, context)]


def _model(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    shelf = context.service.shelf
    for label in ("", "Refiner", "Hires checkpoint"):
        name = _text(parameters, label or "Model")
        digits = "" if label else _text(parameters, "Model hash").lower()
        if (not name and not digits) or name.lower() in ("use same checkpoint", "none"):
            continue
        by_hash, by_name = _found(shelf.find, digits), _found(shelf.find, name)
        if by_hash is not None and by_hash.name != name and by_name is None:
            yield f"The model {_shown(name)} is called {by_hash.name!r} here; it has the same hash {digits}."
        elif by_hash is None and by_name is None:
            what = f"{label or 'The model'} {_shown(name)}" if name else "The model"
            hashed = f" (hash {escaped(digits)[:64]})" if digits else ""
            yield f"{what}{hashed} is not here: {shelf.current!r} would draw instead."
        elif by_hash is None and digits and not (own := by_name.known_sha256 or digits).startswith(digits):
            shown = escaped(digits)[:64]
            yield f"The model {by_name.name!r} is another one here: its hash is {own[:10]}, not {shown}."


def _vae(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    name = _text(parameters, "VAE")
    if name and _found(context.service.shelf.find_vae, name) is None:
        digits = _text(parameters, "VAE hash")
        hashed = f" (hash {escaped(digits)[:64]})" if digits else ""
        yield f"The VAE {_shown(name)}{hashed} is not here: the model's own would be used."


def _sampler(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    for key, find in (("Sampler", find_sampler), ("Schedule type", find_schedule)):
        name = _text(parameters, key)
        if name and _found(find, name) is None:
            yield f"{key} {_shown(name)} is not known here."


def _networks(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    library = getattr(context.service.shelf.library, "networks", None)
    if library is None:
        return
    hashes = _pairs(_text(parameters, "Lora hashes")) | _civitai(parameters, "lora:")
    text = "\n".join(without_comments(_text(parameters, key)) for key in _PROMPTS)
    for name, kind in dict.fromkeys((tag.name, tag.kind) for tag in split_tags(text)[1]):
        if kind == "hypernet":
            yield f"The hypernetwork {_shown(name)} cannot be used: hypernetworks are not read here."
        elif kind in LORA_KINDS and _found(library.find_lora, name) is None:
            digits = hashes.get(name, "")
            same = digits and next((one for one in library.loras() if _kohya_hash(one) == digits[:12]), None)
            hashed = f" (hash {escaped(digits)[:64]})" if digits else ""
            yield (
                f"The LoRA {_shown(name)} is called {same.name!r} here; it has the same hash."
                if same
                else f"The LoRA {_shown(name)}{hashed} is not here: put its file into models/Lora, or take the"
                " tag out of the prompt."
            )


def _words(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    library = getattr(context.service.shelf.library, "networks", None)
    wanted = _pairs(_text(parameters, "TI hashes")) | _civitai(parameters, "embed:")
    if library is None or not wanted:
        return
    known = {one.name.lower() for one in library.embeddings()}
    for name, digits in wanted.items():
        if name.lower() not in known:
            yield f"The embedding {_shown(name)} (hash {escaped(digits)[:64]}) is not here: it is read as a plain word."


def _control(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    library = getattr(context.service.shelf.library, "controlnets", None)
    for key in (key for key in parameters if re.fullmatch(r"ControlNet \d{1,2}", key)):
        found = _CONTROL_MODEL.search(_text(parameters, key))
        name = found[1].strip() if found else ""
        if library and name and name.lower() != "none" and _found(library.find, name) is None:
            yield f"{key}: the model {_shown(name)} is not here."


def _upscaler(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    from fastsd_lib.generation.upscale import find_upscaler  # torch

    folders = context.service.shelf.folders.upscalers
    for key in ("Hires upscaler", "Postprocess upscaler", "Postprocess upscaler 2"):
        name = _text(parameters, key)
        known = name in (*UPSCALER_LABELS, *UPSCALER_LABELS.values())
        if name and not known and _found(lambda text: find_upscaler(text, folders), name) is None:
            yield f"{key} {_shown(name)} is not here."


def _other(parameters: Mapping[str, Any], context: ApiContext) -> Iterator[str]:
    faces = _text(parameters, "Face restoration")
    if faces:
        yield f"Faces were restored by {_shown(faces)}, which is not here."


def _found(find: Any, text: str) -> Any:
    """What `find` finds; None for an empty text and for what is not there."""
    try:
        return find(text) if text else None
    except UserError:
        return None


def _text(parameters: Mapping[str, Any], key: str) -> str:
    value = parameters.get(key)
    return "" if value is None else str(value).strip()


def _shown(name: str) -> str:
    return repr(escaped(name)[:_LONGEST_NAME])


def _pairs(text: str) -> dict[str, str]:
    """ "name: hash, other: hash"; a name may hold a colon."""
    pairs = (part.rpartition(":") for part in text.split(",") if ":" in part)
    return {name.strip(): digits.strip() for name, _, digits in pairs}


def _civitai(parameters: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Civitai writes all of them into one field, {"model": ..., "lora:name": ...}."""
    try:
        found = json.loads(_text(parameters, "Hashes") or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key.removeprefix(kind): str(value) for key, value in found.items() if key.startswith(kind)}


def _kohya_hash(lora: Any) -> str:
    """As its file says it; to compute it would read every file."""
    return str(lora.metadata.get("sshs_model_hash", ""))[:12] or "-"
