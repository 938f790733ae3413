"""The layouts of published models (models/layouts/*.json) as files: true headers, weights that are a hole on the disk."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path

LAYOUTS = Path(__file__).parent / "models" / "layouts"
NAMES = sorted(path.stem for path in LAYOUTS.glob("*.json"))
Shapes = dict[str, tuple[int, ...]]


def read_layout(name: str) -> Shapes:
    """Every tensor's name and shape."""
    text = json.loads((LAYOUTS / f"{name}.json").read_text())
    layout: Shapes = {}
    for pattern, by_shape in text["names"].items():
        for shape, rows in by_shape.items():
            for row in rows.split(" "):
                numbers = iter(row.split("."))
                filled = re.sub("#", lambda _, numbers=numbers: next(numbers), pattern)
                layout[filled] = tuple(int(length) for length in shape.split())
    assert len(layout) == text["tensors"]
    return layout


def sparse_file(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None
) -> Path:
    """A safetensors file of fp16 weights with these shapes: gigabytes that take no room."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    return path
