"""ONNX Runtime on a CPU, for machines that OpenVINO has no wheel for."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit import exports, onnx_graph
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.outputs import Output
from fastsd_lib.vit.pixels import INPUT, checked


def open_onnx(model: VitModel, output: Output = "logits", config: RunnerConfig | None = None) -> OnnxRunner:
    """A runner of `model` in float32, or of the export that model.path is.

    The graph of a model is kept in the user's cache by the SHA-256 of the weights.

    UserError for another precision: bfloat16 has no CPU kernels there, integers need a compressed copy.
    """
    require("onnxruntime", group="vit")
    config = config or RunnerConfig()
    if config.device not in ("auto", "cpu"):
        raise UserError(
            f"ONNX Runtime runs on the processor here, not on {config.device!r}.",
            fix='leave the device at "auto", or choose the backend "torch".',
        )
    if export := exports.of_model(model, output, "onnx"):
        return OnnxRunner(export.opens, export.precision, config)
    if config.precision.startswith("int"):
        raise UserError(
            f"{config.precision} needs a compressed copy of {model.name}.",
            fix=f"make one: fastsd vit quantize PHOTOS --model {model.path} --kinds onnx:{config.precision}",
        )
    if config.precision not in ("auto", "fp32"):
        raise UserError(
            f"ONNX Runtime computes in fp32 on a processor, not in {config.precision}.",
            fix='choose fp32, or the backend "openvino".',
        )
    return OnnxRunner(onnx_graph.graph_of(model, output), "fp32", config)


class OnnxRunner:
    """See runner.Runner. One batch at a time on all cores; `submit` queues the next behind it."""

    def __init__(self, graph: Path, precision: str, config: RunnerConfig) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: the rest is advice to exporters
        options.intra_op_num_threads = config.threads
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        given = self._session.get_inputs()[0]
        self.name, self.batch_size = f"onnxruntime {precision}", config.batch_size
        self._image_px = tuple(given.shape[2:])
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="vit-onnx")

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) float32 -> (B, N) float32; any B from 1 up."""
        return self.submit(pixels).result()

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]:
        return self._worker.submit(self._run, checked(pixels, self._image_px))

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        parts = range(0, len(pixels), self.batch_size)
        return np.concatenate(
            [self._session.run(None, {INPUT: pixels[at : at + self.batch_size]})[0] for at in parts]
        )
