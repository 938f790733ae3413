"""PyTorch as runner: float32 or bfloat16 on a processor, half precision on a GPU."""

from __future__ import annotations

import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import exports
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.model import VitModel, load_torch, torch_dtype
from fastsd_lib.vit.outputs import Output, output_module


class TorchRunner:
    """See runner.Runner. A batch that does not fit into memory is halved, for this and all later calls."""

    def __init__(self, module: nn.Module, precision: str, device: torch.device, batch_size: int) -> None:
        self.name = f"torch {precision}" + (f" {device}" if device.type != "cpu" else "")
        self.batch_size = batch_size
        self._module, self._device = module, device
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vit-torch")

    def run(self, pixels: np.ndarray) -> np.ndarray:
        return self.submit(pixels).result()

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]:
        return self._worker.submit(self._run, pixels)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        done: list[np.ndarray] = []
        at = 0
        while at < len(pixels):
            piece = pixels[at : at + self.batch_size]
            try:
                done.append(self._compute(piece))
            except torch.OutOfMemoryError:
                if len(piece) == 1:
                    raise UserError(
                        "Not even one picture fits into the memory.",
                        fix="take a smaller model, or precision bf16.",
                    ) from None
                self.batch_size = max(1, len(piece) // 2)
                warnings.warn(
                    f"out of memory: batches of {self.batch_size} from now on", RuntimeWarning, stacklevel=2
                )
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                continue
            at += len(piece)
        return np.concatenate(done)

    def _compute(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            given = torch.from_numpy(np.ascontiguousarray(pixels)).to(self._device, non_blocking=True)
            return self._module(given).float().cpu().numpy()


def open_torch(model: VitModel, output: Output = "logits", config: RunnerConfig | None = None) -> TorchRunner:
    """UserError for a device that is not here, or a precision it does not compute with."""
    config = config or RunnerConfig()
    device = _device(config.device)
    export = exports.of_model(model, output, "safetensors")
    if export and export.precision == "int8w":
        from fastsd_lib.vit.export_safetensors import load_int8

        module = output_module(load_int8(model.path), output)
        return TorchRunner(module, "int8w", torch.device("cpu"), config.batch_size)
    precision = export.precision if export else config.precision
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" or _cpu_multiplies_bf16() else "fp32"
    if precision not in ("fp32", "bf16", "fp16"):
        raise UserError(
            f"PyTorch runs a ViT in fp32, bf16 or fp16, not in {precision}.",
            fix=f"take one of these, or make an export: fastsd vit quantize --precision {precision}",
        )
    if device.type == "cpu" and config.threads:
        torch.set_num_threads(config.threads)
    loaded = load_torch(model, dtype=torch_dtype(precision), device=str(device))
    return TorchRunner(output_module(loaded, output), precision, device, config.batch_size)


def _device(wish: str) -> torch.device:
    if wish == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wish)
    except RuntimeError:
        raise UserError(f"There is no device {wish!r}.", fix="take auto, cpu, cuda or cuda:1.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count() or "none"
        raise UserError(
            f"There is no GPU {wish} here (GPUs that PyTorch sees: {there}).", fix="take auto or cpu."
        )
    return device


def _cpu_multiplies_bf16() -> bool:
    """Elsewhere bfloat16 is emulated, and slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("flags", 2)[1].split("\n", 1)[0]
    except (OSError, IndexError):  # another system
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
