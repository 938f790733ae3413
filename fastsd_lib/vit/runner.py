"""What computes a model's answers: PyTorch, OpenVINO, ONNX Runtime or JAX behind one face."""

from __future__ import annotations

import importlib
import importlib.util
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import Backend, Features, RunnerConfig
from fastsd_lib.vit.model import VitModel, open_model, refuse_without_memory
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


def open_runner(
    model: VitModel | Path | str, output: str | Features = "logits", config: RunnerConfig | None = None
) -> Runner:
    """The runner for a model, or for an export of one (a folder with export.json, by itself or as the model's path).

    "auto" takes PyTorch on a GPU, else OpenVINO where it is installed, else PyTorch; an export is run by what it was
    exported for, in its own precision.
    """
    config = config or RunnerConfig()
    if not isinstance(model, VitModel):
        model = open_model(model)
    backend = _backend_of_export(model.path, config) if (model.path / EXPORT).is_file() else config.backend
    if backend == "auto":
        backend = choose_backend(config.device)
    if backend not in RUNNERS:
        raise UserError(f"There is no backend {backend!r}.", fix=f"take one of: auto, {', '.join(RUNNERS)}.")
    if config.batch_size < 1:
        raise UserError(f"The batch size is {config.batch_size}.", fix="take 1 or more.")
    # A GPU's batches lie in its own memory, and running out of that halves them.
    on_gpu = backend == "torch" and (
        config.device.startswith("cuda") or (config.device == "auto" and _has_gpu())
    )
    refuse_without_memory(model, config.precision, 1 if on_gpu else config.batch_size)
    module, _, function = RUNNERS[backend].partition(":")
    return getattr(importlib.import_module(module), function)(model, output, config)


def _backend_of_export(folder: Path, config: RunnerConfig) -> str:
    from fastsd_lib.vit.exports import BACKEND_OF, open_export

    made = open_export(folder, check_files=False).format
    if made not in BACKEND_OF:
        raise UserError(
            f"{folder} is an export to {made}, which fastsd does not run.",
            fix=f"take one of: {', '.join(sorted(BACKEND_OF))}.",
        )
    if config.backend not in ("auto", BACKEND_OF[made]):
        raise UserError(
            f"{folder} is an export to {made}: the backend {config.backend} does not run it.",
            fix=f"take backend auto or {BACKEND_OF[made]}, or name the model itself.",
        )
    return BACKEND_OF[made]


def choose_backend(device: str = "auto") -> Backend:
    if device.startswith("cuda") or (device == "auto" and _has_gpu()):
        return "torch"
    return "openvino" if importlib.util.find_spec("openvino") else "torch"


def _has_gpu() -> bool:
    # A driver is looked for first: asking torch costs seconds, and processors have none.
    if not any(Path(sign).exists() for sign in ("/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia")):
        return False
    import torch

    return torch.cuda.is_available()
