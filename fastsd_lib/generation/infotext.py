"""How a picture was made, as text in its PNG: AUTOMATIC1111's "parameters" line and our own full record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.files import atomic_path
from fastsd_lib.generation.samplers import SAMPLERS

if TYPE_CHECKING:
    from fastsd_lib.generation.engine import GeneratedImage


def infotext(record: Mapping[str, Any]) -> str:
    """The text that A1111 and its readers know: prompt, negative prompt, then "Steps: 25, Sampler: ..."."""
    settings = {
        "Steps": record["inference_steps"],
        "Sampler": SAMPLERS[record["sampler"]].label,
        "CFG scale": f"{record['guidance_scale']:g}",
        "Seed": record["seed"],
        "Size": f"{record['width_px']}x{record['height_px']}",
        "Model": record["model"],
        "Version": "fastsd",
    }
    lines = [record["prompt"]]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def save_picture(picture: GeneratedImage, path: Path) -> Path:
    """Write a PNG, whole or not at all, that carries how it was made."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("parameters", infotext(picture.record))
    text.add_text("fastsd", json.dumps(picture.record, ensure_ascii=False))
    with atomic_path(path) as scratch:
        picture.image.save(scratch, format="PNG", pnginfo=text)
    return path


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a picture that `save_picture` wrote; None for any other picture."""
    from PIL import Image

    with Image.open(path) as image:
        text = getattr(image, "text", {}).get("fastsd")
    return json.loads(text) if text else None
