"""The fast way on a CPU: OpenVINO, in bfloat16 where the processor multiplies it, with two batches in flight."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import exports, intel
from fastsd_lib.vit.config import Output, RunnerConfig
from fastsd_lib.vit.graph_cache import cached_graph
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.pixels import INPUT, OUTPUT, checked

GRAPH = "model.xml"
STREAMS = 2  # batches in flight when many wait; more cost memory and, beside decoding threads, gain nothing
_COMPUTE = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # our name -> OpenVINO's


def open_openvino(
    model: VitModel, output: Output = "logits", config: RunnerConfig | None = None
) -> OpenVinoRunner:
    """A runner of `model`, or of the export that model.path is.

    The traced graph of a model is kept in the user's cache by the SHA-256 of the weights.

    UserError for a device that is not here, a precision that the processor does not compute with, or one that needs
    a compressed copy of the model (int8, int8w, int4w).
    """
    config = config or RunnerConfig()
    if export := exports.of_model(model, output, "openvino"):
        return OpenVinoRunner(export.opens, export.precision, config)
    if config.precision.startswith("int"):
        raise UserError(
            f"{config.precision} needs a compressed copy of {model.name}.",
            fix=f"make one: fastsd vit quantize PHOTOS --model {model.path} --kinds openvino:{config.precision}",
        )
    return OpenVinoRunner(graph_of(model, output) / GRAPH, config.precision, config)


def graph_of(model: VitModel, output: Output = "logits") -> Path:
    """The folder in the user's cache that holds GRAPH: the float32 graph of this output, any batch."""
    version = intel.openvino().__version__
    return cached_graph(model, output, "openvino", version, lambda to: _trace(model, output, to))


def trace(module: Any, image_px: tuple[int, int]) -> Any:
    """The openvino.Model of a torch module: INPUT (any batch, 3, H, W) -> OUTPUT; nodes are named by modules."""
    import torch

    from fastsd_lib.vit.weights import in_silence

    openvino = intel.openvino()
    with torch.inference_mode(), warnings.catch_warnings(), in_silence():
        warnings.simplefilter("ignore")  # sizes are constants here: the tracer says so of each
        example = torch.zeros(2, 3, *image_px)
        graph = openvino.convert_model(module, example_input=example, input=[-1, 3, *image_px])
    graph.inputs[0].get_tensor().set_names({INPUT})
    graph.outputs[0].get_tensor().set_names({OUTPUT})
    return graph


class OpenVinoRunner:
    """See runner.Runner. `run` puts all cores on one batch, `submit` one batch on each of two streams.

    Each way has a compiled graph of its own, made when it is first needed: half a second for ViT-B. Thread-safe.
    """

    def __init__(self, graph: Path, precision: str, config: RunnerConfig) -> None:
        """`precision`: of the weights in the file, and of the arithmetic unless they are integers."""
        self._core, self._graph = intel.openvino().Core(), graph
        with intel.own_signal_stack():  # asking loads the plugin
            self._device = _device(self._core, config.device)
            compute = _arithmetic(self._core, self._device, precision)
        self.name = f"openvino {compute if precision == 'auto' else precision}"
        self.batch_size = config.batch_size
        self._settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": _COMPUTE[compute]}
        if self._device == "CPU" and config.threads:
            self._settings["INFERENCE_NUM_THREADS"] = config.threads
        self._lanes: dict[int, _Lane] = {}  # by their number of streams
        self._opening = threading.Lock()
        self._image_px = self._lane(1).image_px

    def run(self, pixels: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) float32 -> (B, N) float32; any B from 1 up."""
        return self._start(1, pixels).result()

    def submit(self, pixels: np.ndarray) -> Future[np.ndarray]:
        """As `run`, later; waits here while as many batches wait as are in work."""
        return self._start(STREAMS, pixels)

    def close(self) -> None:
        with self._opening:
            for lane in self._lanes.values():
                lane.close()
            self._lanes.clear()

    def _start(self, streams: int, pixels: np.ndarray) -> Future[np.ndarray]:
        return self._lane(streams).start(checked(pixels, self._image_px), self.batch_size)

    def _lane(self, streams: int) -> _Lane:
        with self._opening:
            if streams not in self._lanes:
                settings = self._settings | {"NUM_STREAMS": streams}
                with intel.own_signal_stack():
                    compiled = self._core.compile_model(self._graph, self._device, settings)
                self._lanes[streams] = _Lane(compiled, streams)
            return self._lanes[streams]


class _Lane:
    """One compiled graph and as many threads as it has streams; each thread has a request of its own."""

    def __init__(self, compiled: Any, streams: int) -> None:
        self.image_px = tuple(compiled.input(0).partial_shape[at].get_length() for at in (2, 3))
        self._compiled, self._own = compiled, threading.local()
        self._places = threading.BoundedSemaphore(2 * streams)  # none idles while the next batch is brought
        self._workers = ThreadPoolExecutor(streams, thread_name_prefix="vit-openvino")

    def start(self, pixels: np.ndarray, batch_size: int) -> Future[np.ndarray]:
        self._places.acquire()
        try:
            answer = self._workers.submit(self._run, pixels, batch_size)
        except RuntimeError:
            self._places.release()
            raise
        answer.add_done_callback(lambda _: self._places.release())
        return answer

    def close(self) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)

    def _run(self, pixels: np.ndarray, batch_size: int) -> np.ndarray:
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        request, answers = self._own.request, []
        for start in range(0, len(pixels), batch_size):
            request.infer([pixels[start : start + batch_size]], share_inputs=True)
            answers.append(
                np.array(request.get_output_tensor(0).data, np.float32)
            )  # its memory is used again
        return np.concatenate(answers)


def _trace(model: VitModel, output: Output, folder: Path) -> None:
    """torch loads here only: a graph that is kept runs without it, and a program starts two seconds earlier."""
    from fastsd_lib.vit.outputs import output_module

    graph = trace(output_module(load_torch(model), output), model.image_px)
    intel.openvino().save_model(
        graph, folder / GRAPH, compress_to_fp16=False
    )  # the default loses bits unasked


def _arithmetic(core: Any, device: str, precision: str) -> str:
    """What is computed in: halves only where the processor multiplies them, for fp16 weights and integer graphs' rest."""
    native = core.get_property(device, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in native:
        raise UserError(
            "This processor has no bfloat16 arithmetic.", fix="choose precision fp32, or an int8 export."
        )
    if precision == "fp16":
        return "fp16" if "FP16" in native else "fp32"
    return precision if precision in _COMPUTE else ("bf16" if "BF16" in native else "fp32")


def _device(core: Any, wish: str) -> str:
    """OpenVINO's name of a device: "CPU", "GPU", "GPU.1"."""
    if wish in ("auto", "cpu"):
        return "CPU"
    if wish.upper() in core.available_devices:
        return wish.upper()
    there = ", ".join(name.lower() for name in core.available_devices)
    raise UserError(f"OpenVINO finds no device {wish!r} here.", fix=f"choose one of: auto, {there}.")
