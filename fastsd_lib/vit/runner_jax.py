"""The runner "jax": a ViT or DeiT on what JAX finds, CPU, GPU or TPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit.array_weights import read_design, read_weights
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.pixels import checked

if TYPE_CHECKING:
    from fastsd_lib.vit.jax_vit import Output
    from fastsd_lib.vit.model import VitModel

_began: list[int] = []  # the threads that JAX was started with here; 0 = all
PRECISIONS = {"auto": "fp32", "fp32": "fp32", "bf16": "bf16"}


class JaxRunner:
    """Pixels (B, 3, H, W) float32 in, (B, N) float32 out; programs are compiled for 1, 2, 4 ... `batch_size`."""

    def __init__(
        self, model: VitModel, output: Output = "logits", config: RunnerConfig | None = None
    ) -> None:
        require("jax", group="dev")
        config = config or RunnerConfig()
        if config.precision not in PRECISIONS:
            raise UserError(
                f"JAX computes in fp32 or bf16 here, not in {config.precision}.",
                fix='choose "fp32" or "bf16", or backend "openvino" for int8.',
            )
        from fastsd_lib.vit import jax_vit

        self.design = read_design(model.path)
        self.batch_size = max(1, config.batch_size)
        precision = PRECISIONS[config.precision]
        with _threads(config.threads):
            device = _device(config.device)
        self.name = f"jax {precision}"
        self._weights = jax_vit.on_device(
            read_weights(model.path, self.design, head=output == "logits"), precision, device
        )
        self._program = jax_vit.compiled(self.design, output, precision)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="jax")

    def run(self, pixels: np.ndarray) -> np.ndarray:
        pixels = checked(pixels, self.design.image_px)
        parts = [self._run_part(part) for part in self._parts(pixels)]
        return np.concatenate(parts)

    def _parts(self, pixels: np.ndarray) -> list[np.ndarray]:
        return [pixels[start : start + self.batch_size] for start in range(0, len(pixels), self.batch_size)]

    def _run_part(self, pixels: np.ndarray) -> np.ndarray:
        """Filled up to the next power of two, so that a last batch of 13 needs no program of its own."""
        count = len(pixels)
        size = min(1 << (count - 1).bit_length(), self.batch_size)
        filled = np.concatenate([pixels, np.zeros((size - count, *pixels.shape[1:]), np.float32)])
        return np.asarray(self._program(self._weights, filled))[:count]

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]:
        return self._pool.submit(self.run, pixels)

    def close(self) -> None:
        self._pool.shutdown()


def open_jax(model: VitModel, output: Output = "logits", config: RunnerConfig | None = None) -> JaxRunner:
    """For `runner.RUNNERS`. UserError for other architectures, precisions or devices than there are."""
    return JaxRunner(model, output, config)


def _device(name: str) -> Any:
    import jax

    if name == "auto":
        return jax.devices()[0]
    kind, _, number = name.partition(":")
    try:
        return jax.devices({"cuda": "gpu"}.get(kind, kind))[int(number or 0)]
    except (RuntimeError, ValueError, IndexError):
        there = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise UserError(f"JAX finds no device {name!r} here.", fix=f"choose one of: auto, {there}.") from None


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """XLA sizes its pool once, when it starts, from NPROC or the processors that it may use.

    UserError when it has begun in this program with another number: it cannot be changed any more.
    """
    if _began and count not in (0, _began[0]):
        raise UserError(
            f"JAX keeps the threads that it began with ({_began[0] or 'all'}) until the program ends.",
            fix=f"leave threads at {_began[0]}, or start anew with --threads {count}.",
        )
    before = os.environ.get("NPROC")
    if count and not _began:
        os.environ["NPROC"] = str(count)
    try:
        yield
        _began.append(count)
    finally:
        if count:
            os.environ.pop("NPROC", None)
            if before is not None:
                os.environ["NPROC"] = before
