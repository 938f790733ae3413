"""TensorFlow by export: a SavedModel for servers, a TFLite file for phones, both tried after they are written.

transformers has no TensorFlow models any more; these are built from the same safetensors file (`tensorflow_vit.py`)
in a process of their own (`tensorflow_child.py`) and must give PyTorch's logits.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import read_json, write_json
from fastsd_lib.vit.array_weights import read_design
from fastsd_lib.vit.exports import Recipe, Written
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.parity import made_pictures
from fastsd_lib.vit.tensorflow_child import SAVED_MODEL, TFLITE
from fastsd_lib.vit.tensorflow_vit import Serving
from fastsd_lib.vit.transform import Transform

PRECISIONS = {"tensorflow": ("fp32",), "tflite": ("fp32", "fp16", "int8w")}
#: Largest difference from PyTorch's logits, as a share of the largest logit. The int8 weights' is a coarse net only:
#: what they cost is measured on pictures (`compress`).
LIMITS = {"fp32": 1e-4, "fp16": 1e-2, "int8w": 0.15}
TIME_LIMIT_S = 3600


def write(model: VitModel, precision: str, folder: Path, recipe: Recipe) -> Written:
    """saved_model/ with the signatures `serving_default` (pixels) and `images` (uint8), labels as an asset."""
    answer = _made("tensorflow", model, precision, folder)
    signatures = ", ".join(sorted(answer["signatures"]))
    return _written(model, precision, answer, SAVED_MODEL, f"signatures {signatures}")


def write_tflite(model: VitModel, precision: str, folder: Path, recipe: Recipe) -> Written:
    """model.tflite (one picture at a time, pixels -> logits, probabilities) and labels.txt."""
    answer = _made("tflite", model, precision, folder)
    return _written(model, precision, answer, TFLITE, "batch 1")


def torch_logits(model: VitModel, pixels: np.ndarray) -> np.ndarray:
    """(B, classes) from transformers itself in float32: what an export is held against."""
    import torch

    with torch.inference_mode():
        return load_torch(model)(pixel_values=torch.from_numpy(pixels)).logits.numpy()


def _made(format: str, model: VitModel, precision: str, folder: Path) -> dict[str, Any]:
    require("tensorflow", group="dev")
    if precision not in PRECISIONS[format]:
        raise UserError(
            f"{format} is written here as {', '.join(PRECISIONS[format])}, not {precision}.",
            fix="choose one of these." if format == "tflite" else 'choose fp32, or the format "tflite".',
        )
    read_design(model.path)  # ViT and DeiT only: said before TensorFlow starts
    transform = Transform.of(model)
    serving = Serving(
        model.labels,
        transform.mean,
        transform.std,
        transform.geometry.rescale,
        model.temperature or 1.0,
        model.multi_label,
    )
    pixels = made_pictures(model)
    with tempfile.TemporaryDirectory(prefix="fastsd-tf-") as scratch:
        here = Path(scratch)
        np.save(here / "pixels.npy", pixels)
        job = {
            "model": str(model.path.resolve()),
            "out": str(folder.resolve()),
            "format": format,
            "precision": precision,
            "serving": asdict(serving),
            "pixels": str(here / "pixels.npy"),
            "answer": str(here / "answer.json"),
        }
        write_json(here / "job.json", job)
        answer = _run_child(here)
    return answer | {"difference": _difference(np.array(answer["logits"]), torch_logits(model, pixels))}


def _run_child(here: Path) -> dict[str, Any]:
    package = Path(__file__).resolve().parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    ran = subprocess.run(
        [sys.executable, "-m", "fastsd_lib.vit.tensorflow_child", str(here / "job.json")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIME_LIMIT_S,
        check=False,
    )
    if ran.returncode or not (here / "answer.json").is_file():
        lines = [line for line in ran.stderr.strip().splitlines() if line.strip()]
        last = lines[-1][:300] if lines else f"it ended with code {ran.returncode}"
        raise UserError(
            f"TensorFlow could not write the model: {last}", fix='export it as "onnx" or "openvino" instead.'
        )
    answer = read_json(here / "answer.json")
    if "error" in answer:
        raise UserError(answer["error"], answer["fix"])
    return answer


def _difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    absolute = float(np.abs(found - expected).max())
    return {"absolute": absolute, "relative": absolute / float(np.abs(expected).max())}


def _written(model: VitModel, precision: str, answer: dict[str, Any], opens: str, about: str) -> Written:
    found = answer["difference"]
    if not found["relative"] <= LIMITS[precision]:
        raise UserError(
            f"The TensorFlow export of {model.name} is off by {found['relative']:.2g} of its largest logit "
            f"(allowed: {LIMITS[precision]:g}).",
            fix='choose precision fp32, or export it as "onnx" or "openvino".',
        )
    return Written(
        opens=opens,
        checked=f"loaded and run with TensorFlow {answer['tensorflow']}, logits within "
        f"{found['relative']:.1e} of PyTorch's; {about}",
        max_abs_logit_error=found["absolute"],
    )
