"""metrics.jsonl: a line of figures for every few steps and every judgement, each step told once."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsd_lib.core.files import write_text

METRICS = "metrics.jsonl"


def trim_metrics(out: Path, step: int) -> None:
    """Drop the lines of steps that a resumed run is about to repeat."""
    path = out / METRICS
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    write_text(path, "".join(line for line in lines if step and _step_of(line) <= step))


def append_metrics(path: Path, line: Mapping[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:  # a full disk must not end the training: the figures are a comfort
        print(f"{path.name}: {reason(error)}", file=sys.stderr)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line that a crash cut short
        return math.inf


def reason(error: OSError) -> str:
    """ "No space left on device", with what is known besides."""
    if not error.errno:
        return str(error)
    plain = os.strerror(error.errno)
    return plain if error.strerror in (None, plain) else f"{plain} ({error.strerror})"
