"""`convert`: any model file or folder in another layout, number format or naming."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.progress import Report, silent

if TYPE_CHECKING:
    from fastsd_lib.formats.conversion import ConversionChoices


@dataclass(frozen=True)
class Converted:
    """What was written. `notes`: what is to be known of it, a line each."""

    path: Path
    kind: str  # "checkpoint", "lora", "controlnet", "vae"
    family: str
    layout: str  # "single_file" or "diffusers"
    notes: tuple[str, ...] = ()


def convert(
    source: Path, target: Path, choices: ConversionChoices | None = None, report: Report = silent
) -> Converted:
    """Write `source` as `target`, by what `source` is and how `target` is named.

    A name with .safetensors or .ckpt is a single file, any other a folder. UserError for what does not fit, saying
    what to type instead; nothing is left under the name of `target` then.
    """
    from fastsd_lib.formats.conversion import ConversionChoices, convert_model
    from fastsd_lib.models.identify import describe

    described = describe(source)
    made = convert_model(source, target, choices or ConversionChoices(), report)
    return Converted(made.path, described.kind.kind, made.family, made.layout, made.notes)
