"""`fastsd vit export|quantize|curate`: a model for other programs, smaller ones, and one as a judge of photos."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from fastsd_lib.cli_fields import add_fields
from fastsd_lib.cli_vit_look import add_model
from fastsd_lib.cli_vit_train import SPLIT_FIELDS, split_of
from fastsd_lib.cli_words import add_root, command, console_progress, opened, show
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.workflows.vit_compress import KINDS

ENDPOINT = "endpoint"  # a folder for Hugging Face's Inference Endpoints
FORMATS = ("onnx", "openvino", "safetensors", "tensorflow", "tflite", "coreml", "tensorrt", ENDPOINT)
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8w", "int4w")


def add_verbs(verbs: Any) -> None:
    parser = command(verbs, "export", _export, "a model for other programs: ONNX, OpenVINO, Core ML ...")
    add_model(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default="onnx", metavar="|".join(FORMATS), help="default: onnx"
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", metavar="|".join(PRECISIONS), help="default: fp32"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: exports/FORMAT-PRECISION, here")

    parser = command(verbs, "quantize", _quantize, "smaller, faster models, measured on your own pictures")
    parser.add_argument(
        "data", metavar="FOLDER", help="one folder for each class, or pictures without classes"
    )
    add_model(parser)
    parser.add_argument(
        "--kinds", default=",".join(KINDS), metavar="LIST",
        help=f"FORMAT:PRECISION, several by commas (default: {', '.join(KINDS)})",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path("compressed"), metavar="DIR", help="default: compressed"
    )
    parser.add_argument(
        "--limit", type=int, default=1000, metavar="N", help="pictures at most; default: 1000"
    )
    parser.add_argument(
        "--seconds", type=float, default=1.0, metavar="X", help="of each measurement; default: 1"
    )
    add_fields(parser, VitTrainConfig, only=SPLIT_FIELDS)

    parser = command(verbs, "curate", _curate, "which photos of a DreamBooth session teach the subject")
    parser.add_argument("name", metavar="SESSION")
    parser.add_argument(
        "--class-images",
        type=Path,
        metavar="DIR",
        help="others of the class (default: the session's class_images)",
    )
    add_model(parser, usual="the embedded one, or colours and edges where these tell more")
    add_root(parser)


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import vit

    if options.format == ENDPOINT:
        folder = vit.endpoint(options.model, options.out or Path("exports") / ENDPOINT)
        how = "push this folder to the Hub as a model, and create an endpoint of it: its README.md says how"
        show(options, {"path": str(folder), "format": ENDPOINT}, [f"{folder} ({ENDPOINT})", f"Next: {how}"])
        return 0
    made = vit.export(options.model, options.format, options.precision, options.out)
    value = {
        "path": str(made.path), "opens": str(made.opens), "format": made.format, "precision": made.precision,
        "size_mib": made.size_mib, "checked": made.checked, "runs_here": made.runs_here, "note": made.note,
        "max_abs_logit_error": made.max_abs_logit_error,
    }  # fmt: skip
    lines = [
        f"{made.opens} ({made.format} {made.precision}, {made.size_mib:.2f} MiB)",
        f"Checked: {made.checked}",
    ]
    show(options, value, [*lines, *filter(None, [made.note])])
    return 0


def _quantize(options: argparse.Namespace, rest: list[str]) -> int:
    split = split_of(options)
    from fastsd_lib.workflows import vit

    kinds = [kind.strip() for kind in options.kinds.split(",") if kind.strip()]
    table = vit.quantize(
        options.data, options.model, kinds, options.out, console_progress(options), limit=options.limit,
        seconds=options.seconds, **split,
    )  # fmt: skip
    lines = [table.markdown().rstrip(), "", f"The models: {options.out / 'exports'}"]
    show(options, table.as_json(), lines)
    return 0


def _curate(options: argparse.Namespace, rest: list[str]) -> int:
    from fastsd_lib.workflows import curation

    found = curation.curate(opened(options), options.class_images, options.model, console_progress(options))
    sheet, table = curation.save(found)
    value = {
        "photos": [dataclasses.asdict(row) for row in found.rows], "advised_to_drop": list(found.advised),
        "separation": found.separation, "way": found.way, "sheet": str(sheet), "table": str(table),
        "notes": list(found.notes),
    }  # fmt: skip
    show(options, value, [*found.lines(), f"Sheet: {sheet}", "Nothing was moved or deleted."])
    return 0
