"""ONNX files: float32, float16, and ONNX Runtime's integers."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit import onnx_graph, sensitivity
from fastsd_lib.vit.exports import Recipe, Written
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.onnx_graph import GRAPH
from fastsd_lib.vit.pixels import INPUT

PRECISIONS = ("fp32", "fp16", "int8", "int8w", "int4w")
_MULTIPLIED = ["MatMul", "Gemm"]  # quantising the rest makes ONNX Runtime three times slower on a processor
INT4_BLOCK = 128


def write(model: VitModel, precision: str, folder: Path, recipe: Recipe) -> Written:
    """int8: static, unsigned activations and signed weights of the linear layers only, calibrated.

    int8w: the same layers, activations rounded at run time (no calibration). int4w: weights only, in blocks
    (MatMulNBits, which ONNX Runtime alone reads). fp16 stores halves; its inputs and outputs stay float32.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"ONNX is written as {', '.join(PRECISIONS)}, not {precision}.",
            fix="choose one of these; for bf16 take the format openvino or safetensors.",
        )
    require("onnxruntime", group="vit")
    if precision == "fp16":
        onnx_graph.trace(model, "logits", folder / GRAPH, torch.float16)
    elif precision == "fp32":
        shutil.copyfile(onnx_graph.graph_of(model), folder / GRAPH)
    else:
        _write_integers(model, precision, folder / GRAPH, recipe)
    if precision != "int4w":  # onnx does not know ONNX Runtime's own operators
        onnx_graph.check(folder / GRAPH)
    return Written(opens=GRAPH)


def _write_integers(model: VitModel, precision: str, path: Path, recipe: Recipe) -> None:
    import onnx

    graph = onnx.load(onnx_graph.graph_of(model))
    del graph.graph.value_info[
        :
    ]  # the quantisers transpose weights and leave the shapes that are written there
    node_of = sensitivity.nodes_by_module(model, onnx_weights(graph)) if recipe.kept else {}
    kept = [node_of[name] for name in recipe.kept if name in node_of]
    with _quiet():
        onnx.save(_MAKERS[precision](graph, recipe, kept), path)


def onnx_weights(graph: Any) -> list[tuple[str, np.ndarray]]:
    """(name of the node, its constant weight) of every multiplication and convolution that has one."""
    from onnx import numpy_helper

    constants = {one.name: one for one in graph.graph.initializer}
    return [
        (node.name, numpy_helper.to_array(constants[node.input[1]]))
        for node in graph.graph.node
        if node.op_type in (*_MULTIPLIED, "Conv") and node.input[1] in constants
    ]


def _dynamic(graph: Any, recipe: Recipe, kept: list[str]) -> Any:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    return _through_file(
        lambda to: quantize_dynamic(
            graph, to, op_types_to_quantize=_MULTIPLIED, per_channel=True, weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
        )
    )  # fmt: skip


def _static(graph: Any, recipe: Recipe, kept: list[str]) -> Any:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    if recipe.calibration is None:
        raise UserError(
            "int8 needs pictures to calibrate on.", fix="give some, or choose int8w, which needs none."
        )
    return _through_file(
        lambda to: quantize_static(
            graph, to, _reader(recipe.calibration), quant_format=QuantFormat.QDQ, op_types_to_quantize=_MULTIPLIED,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, nodes_to_exclude=kept,
            extra_options={"MatMulConstBOnly": True},
        )
    )  # fmt: skip


def _int4(graph: Any, recipe: Recipe, kept: list[str]) -> Any:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        graph,
        block_size=INT4_BLOCK,
        is_symmetric=False,
        accuracy_level=4,  # the kernels multiply 8-bit integers; the default multiplies float32
        nodes_to_exclude=kept,
    )
    quantizer.process()
    return quantizer.model.model


_MAKERS = {"int8w": _dynamic, "int8": _static, "int4w": _int4}


def _through_file(make: Any) -> Any:
    """ONNX Runtime's quantizers write files."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="fastsd-onnx-") as folder:
        make(Path(folder) / GRAPH)
        return onnx.load(Path(folder) / GRAPH)


def _reader(pictures: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._each = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(self._each, None)
            return None if one is None else {INPUT: np.array(one[None])}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's quantizers advise on the root logger, and print."""

    def is_ours(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    logging.root.addFilter(is_ours)
    try:
        yield
    finally:
        logging.root.removeFilter(is_ours)
