"""ONNX files of a model: traced once by torch's exporter, any batch, checked by onnx's own checker."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit.graph_cache import cached_graph
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.outputs import Output, output_module
from fastsd_lib.vit.pixels import INPUT, OUTPUT

OPSET = 20  # the first with Gelu; TensorRT 10 and ONNX Runtime 1.17 read it
GRAPH = "model.onnx"
MAX_BYTES = 1_900_000_000  # protobuf ends at 2 GiB, and the graph needs some


def graph_of(model: VitModel, output: Output = "logits") -> Path:
    """The float32 .onnx file in the user's cache, any batch. UserError where onnx or onnxscript is missing."""
    require("onnx", group="vit")
    require("onnxscript", group="vit")
    import onnx

    made = cached_graph(model, output, "onnx", onnx.__version__, lambda to: trace(model, output, to / GRAPH))
    return made / GRAPH


def trace(model: VitModel, output: Output, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the ONNX graph of a model's output to `path`; the weights stay inside the file, as `dtype`."""
    if model.parameters * dtype.itemsize > MAX_BYTES:
        raise UserError(
            f"{model.name} is too large for an ONNX file ({model.parameters / 1e9:.1f} billion weights; a file holds 2 GB).",
            fix='export it as "openvino", or as "safetensors" with precision bf16.',
        )
    # The plain attention: fused attention is written with guards for masked rows, which a ViT has not.
    module = output_module(load_torch(model, attention="eager", dtype=dtype), output)
    example = torch.zeros(2, 3, *model.image_px)
    with _quiet(), torch.inference_mode():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes={"pixels": {0: torch.export.Dim.DYNAMIC}},
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(
                f"{model.name} ({model.architecture}) cannot be traced for ONNX: {lines[-1][:200]}",
                fix='export it as "openvino" or "safetensors" instead.',
            ) from None
        program.save(path, external_data=False)
    check(path)


def check(path: Path) -> None:
    """onnx's own checker with shape inference; UserError where it objects."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UserError(
            f"{path.name} is not a valid ONNX file: {str(error).splitlines()[0][:200]}",
            fix="export it again.",
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns developers of PyTorch of what it lacks."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
