"""Writes and tries a TensorFlow export in a process of its own: `python -m fastsd_lib.vit.tensorflow_child JOB.json`.

TensorFlow takes ten seconds to start, holds its memory and brings its own copies of libraries that torch has too;
so it never shares a process with it. The job names folders and choices; the answer goes to the file `answer`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json, write_json
from fastsd_lib.vit.array_weights import read_design, read_weights
from fastsd_lib.vit.pixels import INPUT
from fastsd_lib.vit.tensorflow_vit import Serving, serving_module

LABELS = "labels.txt"
SAVED_MODEL = "saved_model"
TFLITE = "model.tflite"
HALF_EPSILON = 1e-6


def main(job_file: Path) -> None:
    job = read_json(job_file)
    try:
        answer = _do(job)
    except UserError as error:
        answer = {"error": error.message, "fix": error.fix}
    write_json(Path(job["answer"]), answer)


def _do(job: dict[str, Any]) -> dict[str, Any]:
    design = read_design(Path(job["model"]))
    weights = read_weights(Path(job["model"]), design)
    serving = Serving(**job["serving"])
    if (
        job["precision"] == "fp16"
    ):  # transformers' 1e-12 is 0 in half precision: a token of zeros would become NaN
        design = replace(design, epsilon=max(design.epsilon, HALF_EPSILON))
    out = Path(job["out"])
    labels = out / LABELS
    labels.write_text("\n".join(serving.labels) + "\n", encoding="utf-8")
    module = serving_module(weights, design, serving, labels)
    pixels = np.load(job["pixels"])
    if job["format"] == "tflite":
        _write_tflite(module, out / TFLITE, job["precision"])
        return _ran_tflite(out / TFLITE, pixels)
    _write_saved_model(module, out / SAVED_MODEL)
    labels.unlink()  # it is an asset of the SavedModel now
    return _ran_saved_model(out / SAVED_MODEL, pixels)


def _write_saved_model(module: Any, folder: Path) -> None:
    import tensorflow as tf

    signatures = {"serving_default": module.from_pixels, "images": module.from_images}
    tf.saved_model.save(module, str(folder), signatures=signatures)


def _ran_saved_model(folder: Path, pixels: np.ndarray) -> dict[str, Any]:
    """Loaded back from the disk, as a server would."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    found = loaded.signatures["serving_default"](**{INPUT: tf.constant(pixels)})
    shown = {
        name: {"inputs": sorted(one.structured_input_signature[1]), "outputs": sorted(one.structured_outputs)}
        for name, one in loaded.signatures.items()
    }
    assets = sorted(path.name for path in (folder / "assets").iterdir())
    return {
        "logits": found["logits"].numpy().tolist(),
        "signatures": shown,
        "assets": assets,
        "tensorflow": tf.__version__,
    }


def _write_tflite(module: Any, path: Path, precision: str) -> None:
    """Batch 1, built-in operations only. fp16: weights stored in half; int8w: weights in int8, computed mixed."""
    import tensorflow as tf

    shape = module.from_pixels.input_signature[0].shape.as_list()
    one = module.from_pixels.get_concrete_function(tf.TensorSpec((1, *shape[1:]), tf.float32, INPUT))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([one], module)
    if precision != "fp32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if precision == "fp16":
        converter.target_spec.supported_types = [tf.float16]
    path.write_bytes(converter.convert())


def _ran_tflite(path: Path, pixels: np.ndarray) -> dict[str, Any]:
    import tensorflow as tf

    run = tf.lite.Interpreter(str(path)).get_signature_runner()
    found = [run(**{INPUT: picture[None]}) for picture in pixels]
    logits = np.concatenate([one["logits"] for one in found])
    return {"logits": logits.tolist(), "outputs": sorted(found[0]), "tensorflow": tf.__version__}


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault(
        "CUDA_VISIBLE_DEVICES", "-1"
    )  # an export needs no GPU, and must not take its memory
    main(Path(sys.argv[1]))
