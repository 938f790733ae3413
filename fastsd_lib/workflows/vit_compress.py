"""A model for other programs, and the same model smaller and faster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.text import escaped
from fastsd_lib.workflows.vit_model import EMBEDDED, open_model

#: What is compared where nothing else is asked for: "format:precision"; the first is the measure of the others.
KINDS = ("safetensors:fp32", "openvino:bf16", "openvino:int8w", "openvino:int8", "onnx:int8w", "onnx:int8")

if TYPE_CHECKING:
    from fastsd_lib.vit.compress_table import Table
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
        opened, format, precision, expanded(out or Path("exports") / f"{format}-{precision}")
    )


def endpoint(model: str | Path | VitModel = EMBEDDED, out: str | Path = "endpoint") -> Path:
    """Write a model as a folder that Hugging Face's Inference Endpoints run as it is: weights, handler.py, README.md.

    UserError for a model without classes, and a folder that holds anything but an endpoint.
    """
    opened = open_model(model)
    from fastsd_lib.vit.endpoint.write import write_endpoint

    return write_endpoint(opened, out)


def quantize(
    data: str | Path,
    model: str | Path | VitModel = EMBEDDED,
    kinds: Sequence[str] = KINDS,
    out: str | Path = "compressed",
    report: Report = silent,
    *,
    limit: int = 1000,
    rounds: int = 3,
    seconds: float = 1.0,
    **how: Any,
) -> Table:
    """Write a model as every kind into `out`/exports, and measure size, speed and changed answers on one's own pictures.

    `data`: a folder with one folder for each class (judged on what training holds back, calibrated on the rest; `how` is
    the split of VitTrainConfig), or one with pictures alone: then only changed answers are counted. What costs too much
    falls back to more bits, and the table says so. UserError for unknown kinds and classes.
    """
    opened = open_model(model)
    from fastsd_lib.vit.compress import compress

    flat = list_photos(expanded(data))
    samples, calibration = (flat, None) if flat else _labelled(opened, data, how)
    return compress(
        opened, samples, tuple(kinds), expanded(out), calibration=calibration, limit=limit, rounds=rounds,
        seconds=seconds, report=report,
    )  # fmt: skip


def _labelled(
    model: VitModel, data: str | Path, how: dict[str, Any]
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]] | None]:
    """(pictures to judge on, pictures to calibrate on) with the class numbers of the model."""
    from fastsd_lib.vit.folder_data import open_image_folder

    folder = open_image_folder(data, **how)
    place = {name.casefold(): number for number, name in enumerate(model.labels)}
    unknown = [name for name in folder.classes if name.casefold() not in place]
    if unknown:
        raise UserError(
            f"{model.name} does not know the class {escaped(unknown[0])!r}.",
            fix="name the folders as the model names its classes, or give a folder of pictures without classes.",
        )
    numbers = [place[name.casefold()] for name in folder.classes]
    judged, known = folder.test or folder.validation, folder.train
    return [(path, numbers[label]) for path, label in judged or known], (
        [(path, numbers[label]) for path, label in known] if judged else None
    )
