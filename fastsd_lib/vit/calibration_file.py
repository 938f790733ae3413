"""fastsd_vit.json, what fastsd knows of a model beyond transformers' own files: its calibration, figures and recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json, write_json

NAME = "fastsd_vit.json"
SCHEMA = 1
MAX_BYTES = 4 << 20


def read_facts(model: Path) -> dict[str, Any]:
    """What the file says; {} where there is none. UserError for one that is damaged or of a newer fastsd."""
    path = model / NAME
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise _not_ours(path, "is far too large")
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise _not_ours(path, "holds no facts by name")
    if type(facts.get("schema")) is not int or facts["schema"] > SCHEMA:
        raise _not_ours(path, f"has the schema {facts.get('schema')!r}, this fastsd knows {SCHEMA}")
    return facts


def temperature_of(model: Path) -> float | None:
    """What logits are divided by before the softmax, so that probabilities mean what they say; None = never measured."""
    value = read_facts(model).get("temperature")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.01 <= value <= 100:
        raise _not_ours(model / NAME, f"has the temperature {value!r}")
    return float(value)


def write_facts(model: Path, **facts: Any) -> Path:
    """Add these facts (`temperature`, `figures`, `recipe` ...) to those in the file, which stays whole throughout."""
    path = model / NAME
    write_json(path, {**read_facts(model), "schema": SCHEMA, **facts})
    return path


def _not_ours(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}.", fix="delete the file: the model works without it.")
