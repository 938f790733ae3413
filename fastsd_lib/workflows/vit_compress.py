"""A model for other programs, and the same model smaller and faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.workflows.vit_model import EMBEDDED, open_model

if TYPE_CHECKING:
    from fastsd_lib.vit.exports import Export
    from fastsd_lib.vit.model import VitModel


def export(
    model: str | Path | VitModel = EMBEDDED,
    format: str = "onnx",
    precision: str = "fp32",
    out: str | Path | None = None,
) -> Export:
    """Write a model for other programs into the folder `out` (default: exports/FORMAT-PRECISION, here), and check it.

    `format`: onnx, openvino, safetensors, tensorflow, tflite, coreml, tensorrt. What cannot run here is checked in
    its structure, and `.checked` says so. UserError for what cannot be made here.
    """
    from fastsd_lib.vit import exports

    opened = open_model(model)
    return exports.export(
        opened, format, precision, Path(out or Path("exports") / f"{format}-{precision}").expanduser()
    )
