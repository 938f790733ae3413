"""The ways of `fastsd benchmark vit`, each in a process of its own that is asked line by line.

Run as `python3 -m benchmarks._vit_ways WAY FOLDER`.
It answers every line {"do": ...} of its input with a line of JSON: "classify" (paths -> seconds, labels), "alone"
(the model without pictures -> pictures per second), "peak" (MiB that this process ever held).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PIPELINE, PIPELINE_16 = "pipeline, one by one", "pipeline, batch_size=16"
OURS = {"fastsd bf16": "bf16", "fastsd fp32": "fp32", "fastsd int8": "int8"}
GEMM = "gemm"
MODEL, INT8 = "vit_b16", "int8"  # folders below the work folder


def random_vit_b(folder: Path) -> Path:
    """ViT-B/16-224 with random weights, as transformers saves it: speed does not depend on what they are."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
    from transformers.utils import logging

    if not (folder / "preprocessor_config.json").is_file():
        torch.manual_seed(0)
        names = {number: f"class {number}" for number in range(1000)}
        config = ViTConfig(id2label=names, label2id={name: number for number, name in names.items()})
        logging.disable_progress_bar()
        ViTForImageClassification(config).save_pretrained(folder)
        ViTImageProcessorPil().save_pretrained(folder)
    return folder


def int8_of(folder: Path, out: Path, paths: list[Path]) -> Path:
    """Our own full int8 export, calibrated on these photos."""
    from fastsd_lib.vit.exports import Recipe, export, is_export
    from fastsd_lib.vit.model import open_model
    from fastsd_lib.vit.transform import Transform

    if not is_export(out):
        model = open_model(folder)
        transform = Transform.of(model)
        seen = np.stack([transform.open_and_apply(path) for path in paths])
        export(model, "openvino", "int8", out, recipe=Recipe(calibration=seen))
    return out


def trace_once(folder: Path) -> None:
    """Leave the model's graph in the cache, as its first use does."""
    from fastsd_lib.vit.runner import open_runner

    open_runner(folder).close()


def flops_per_picture(folder: Path) -> float:
    """Of the matrix products of a ViT: patches, projections, attention (quadratic in the tokens), MLP, head."""
    config = json.loads((folder / "config.json").read_text())
    hidden, mlp, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    patches = (config["image_size"] // config["patch_size"]) ** 2
    tokens = patches + 1
    per_layer = 2 * tokens * (4 * hidden**2 + 2 * hidden * mlp) + 4 * tokens**2 * hidden
    return 2 * patches * 3 * config["patch_size"] ** 2 * hidden + layers * per_layer + 2 * hidden * 1000


def gemm_peak(precision: str, side: int = 2048, seconds: float = 1.0) -> float:
    """GFLOP/s of the best library product of two square matrices in this precision, all processors."""
    import torch

    if precision == "int8":
        a, b = (torch.randint(-127, 127, (side, side), dtype=torch.int8) for _ in range(2))
        multiply: Callable[[], Any] = lambda: torch._int_mm(a, b)  # noqa: E731
    else:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        multiply = lambda: torch.nn.functional.linear(a, b)  # noqa: E731
    best = 0.0
    with torch.inference_mode():
        multiply()
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            multiply()
            best = max(best, 2 * side**3 / (time.perf_counter() - began) / 1e9)
    return best


class _Pipeline:
    """transformers.pipeline as its users call it."""

    def __init__(self, folder: Path, batch_size: int | None) -> None:
        from transformers import pipeline
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        self._pipeline = pipeline("image-classification", model=str(folder / MODEL))
        self._batch_size = batch_size

    def classify(self, paths: list[str]) -> list[str]:
        if self._batch_size is None:
            return [self._pipeline(path)[0]["label"] for path in paths]
        return [told[0]["label"] for told in self._pipeline(paths, batch_size=self._batch_size)]


class _Ours:
    """Our classifier with its defaults, but for the precision."""

    def __init__(self, folder: Path, precision: str) -> None:
        from fastsd_lib.vit.classify import Classifier
        from fastsd_lib.vit.config import RunnerConfig

        if precision == "int8":
            self._classifier = Classifier(folder / INT8)
        else:
            self._classifier = Classifier(folder / MODEL, RunnerConfig(precision=precision))
        self.name = self._classifier.runner.name

    def classify(self, paths: list[str]) -> list[str]:
        return [told.label for told in self._classifier.classify([Path(path) for path in paths])]

    def alone(self, seconds: float) -> float:
        """Pictures per second of the model by itself, batches of 16 in flight as the classifier has them."""
        runner = self._classifier.runner
        pixels = (
            np.random.default_rng(0).normal(size=(16, 3, *self._classifier.model.image_px)).astype(np.float32)
        )
        for _ in range(2):
            runner.submit(pixels).result()
        began, done, flying = time.perf_counter(), 0, []
        while time.perf_counter() - began < seconds or flying:
            if time.perf_counter() - began < seconds:
                flying.append(runner.submit(pixels))
            if len(flying) > 2 or time.perf_counter() - began >= seconds:
                done += len(flying.pop(0).result())
        return done / (time.perf_counter() - began)


def peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def main(way: str, folder: Path) -> None:
    began = time.perf_counter()
    worker: Any = None
    if way != GEMM:
        worker = (
            _Ours(folder, OURS[way]) if way in OURS else _Pipeline(folder, None if way == PIPELINE else 16)
        )
    opened = time.perf_counter() - began
    _tell({"opened_s": opened, "name": getattr(worker, "name", way)})
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "classify":
            began = time.perf_counter()
            labels = worker.classify(order["paths"])
            _tell({"seconds": time.perf_counter() - began, "labels": labels})
        elif order["do"] == "alone":
            _tell({"per_s": worker.alone(order["seconds"])})
        elif order["do"] == "gemm":
            _tell({"gflops": gemm_peak(order["precision"])})
        else:
            _tell({"peak_mib": peak_mib()})


def _tell(answer: dict[str, Any]) -> None:
    _OUT.write(json.dumps(answer) + "\n")
    _OUT.flush()


if __name__ == "__main__":
    _OUT, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    main(sys.argv[1], Path(sys.argv[2]))
