"""Requests as JSON and back; light. Pictures in them are kept apart, under the hash of what they show."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable
from typing import Any

from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.request import GenerationRequest, Hires, Inpaint

PICTURE = "picture"  # {"picture": hash} stands for one
WITHIN: dict[str, type] = {"inpaint": Inpaint, "hires": Hires, "control": ControlUnit}


def to_json(request: GenerationRequest, keep: Callable[[Any], str]) -> dict[str, Any]:
    """What JSON can say; `keep` is given each picture and returns what it is found by."""
    return _said(request, keep)


def from_json(said: dict[str, Any], picture: Callable[[str], Any]) -> GenerationRequest:
    """The request again; choices that are not known any more are passed over. What `picture` raises is raised."""
    return _made(GenerationRequest, said, picture)


def png_of(picture: Any) -> tuple[str, bytes]:
    """(32 hex digits, the PNG of these pixels alone)."""
    if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        picture = picture.convert("RGB")
    coded = io.BytesIO()
    picture.save(coded, "PNG", compress_level=1)
    return hashlib.sha256(coded.getvalue()).hexdigest()[:32], coded.getvalue()


def _said(value: Any, keep: Callable[[Any], str]) -> Any:
    if dataclasses.is_dataclass(value):
        return {entry.name: _said(getattr(value, entry.name), keep) for entry in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_said(one, keep) for one in value]
    return {PICTURE: keep(value)} if hasattr(value, "getbands") else value


def _made(kind: type, said: dict[str, Any], picture: Callable[[str], Any]) -> Any:
    known = {entry.name for entry in dataclasses.fields(kind)}
    found = {name: _value(name, value, picture) for name, value in said.items() if name in known}
    return kind(**found)


def _value(name: str, value: Any, picture: Callable[[str], Any]) -> Any:
    if isinstance(value, dict):
        return picture(value[PICTURE]) if set(value) == {PICTURE} else _made(WITHIN[name], value, picture)
    if isinstance(value, list):
        return tuple(_value(name, one, picture) for one in value)
    return value
