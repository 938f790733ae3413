"""What computes a model's answers: PyTorch, OpenVINO, ONNX Runtime or JAX behind one face."""

from __future__ import annotations

import importlib
import importlib.util
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json
from fastsd_lib.vit.config import Backend, Features, RunnerConfig
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.model_files import EXPORT


class Runner(Protocol):
    """Pixels (B, 3, H, W) float32, any B >= 1 -> (B, N) float32: logits, or features."""

    name: str  # "openvino bf16": what computes, and how exactly
    batch_size: int  # how many pictures at once suit it

    def run(self, pixels: np.ndarray) -> np.ndarray: ...

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]: ...

    def close(self) -> None: ...


#: Backend -> "module:function"; function(model, output, config) -> Runner.
RUNNERS: dict[str, str] = {
    "torch": "fastsd_lib.vit.runner_torch:open_torch",
    "openvino": "fastsd_lib.vit.runner_openvino:open_openvino",
    "onnxruntime": "fastsd_lib.vit.runner_onnx:open_onnx",
    "jax": "fastsd_lib.vit.runner_jax:open_jax",
}
#: Format in an export.json -> "module:function"; function(folder, config) -> Runner.
EXPORT_RUNNERS: dict[str, str] = {
    "openvino": "fastsd_lib.vit.runner_openvino:open_export",
    "onnx": "fastsd_lib.vit.runner_onnx:open_export",
}


def open_runner(
    model: VitModel | Path | str, output: str | Features = "logits", config: RunnerConfig | None = None
) -> Runner:
    """The runner for a model, or for an export of one (the folder that holds export.json).

    "auto" takes PyTorch on a GPU, else OpenVINO where it is installed, else PyTorch.
    """
    config = config or RunnerConfig()
    if not isinstance(model, VitModel):
        return _open_export(Path(model), config)
    backend = config.backend if config.backend != "auto" else choose_backend(config.device)
    if backend not in RUNNERS:
        raise UserError(f"There is no backend {backend!r}.", fix=f"take one of: auto, {', '.join(RUNNERS)}.")
    return _function(RUNNERS[backend])(model, output, config)


def choose_backend(device: str = "auto") -> Backend:
    if device.startswith("cuda") or (device == "auto" and _has_gpu()):
        return "torch"
    if importlib.util.find_spec("openvino") and importlib.util.find_spec("fastsd_lib.vit.runner_openvino"):
        return "openvino"
    return "torch"


def _has_gpu() -> bool:
    # A driver is looked for first: asking torch costs seconds, and processors have none.
    if not any(Path(sign).exists() for sign in ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia")):
        return False
    import torch

    return torch.cuda.is_available()


def _open_export(folder: Path, config: RunnerConfig) -> Runner:
    path = folder / EXPORT
    if not path.is_file():
        raise UserError(
            f"{folder} is no export: it has no {EXPORT}.", fix="name a folder below exports/ of a model."
        )
    told = read_json(path)
    made = told.get("format") if isinstance(told, dict) else None
    if made not in EXPORT_RUNNERS:
        raise UserError(
            f"{folder} is an export to {made}, which cannot be run here.",
            fix=f"take one of: {', '.join(EXPORT_RUNNERS)}.",
        )
    return _function(EXPORT_RUNNERS[made])(folder, config)


def _function(where: str):
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)
