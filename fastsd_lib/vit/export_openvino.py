"""OpenVINO IR: model.xml and model.bin, with weights of 32, 16, 8 or 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import intel, sensitivity
from fastsd_lib.vit.exports import Recipe, Written
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.runner_openvino import GRAPH, graph_of

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8w", "int4w")
INT4_GROUP = 128  # weights that share a scale; fewer where a layer's width does not divide


def write(model: VitModel, precision: str, folder: Path, recipe: Recipe) -> Written:
    """int8: weights and activations, by NNCF with SmoothQuant (Xiao et al. 2022), calibrated on recipe.calibration.

    int8w, int4w: weights only, no calibration needed (int4w is better with it). bf16 and fp16 both store 16-bit
    weights; the precision says in what is computed.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"OpenVINO is written as {', '.join(PRECISIONS)}, not {precision}.", fix="choose one of these."
        )
    openvino = intel.openvino()
    graph = openvino.Core().read_model(graph_of(model) / GRAPH)
    if precision.startswith("int"):
        graph = _quantized(
            graph, precision, recipe, sensitivity.nodes_by_module(model, openvino_weights(graph))
        )
    openvino.save_model(graph, folder / GRAPH, compress_to_fp16=precision != "fp32")
    return Written(opens=GRAPH)


def openvino_weights(graph: Any) -> list[tuple[str, np.ndarray]]:
    """(name of the node, its constant weight) of every multiplication and convolution that has one."""
    found = []
    for node in graph.get_ops():
        if node.get_type_name() in ("MatMul", "Convolution", "GroupConvolution"):
            weight = node.input_value(1).get_node()
            if weight.get_type_name() == "Constant":
                found.append((node.get_friendly_name(), weight.get_data()))
    return found


def _quantized(graph: Any, precision: str, recipe: Recipe, node_of: dict[str, str]) -> Any:
    nncf = intel.nncf()
    kept = [node_of[name] for name in recipe.kept if name in node_of]
    ignored = nncf.IgnoredScope(names=kept) if kept else None
    pictures = None if recipe.calibration is None else [one[None] for one in recipe.calibration]
    with intel.no_progress_bars(), intel.own_signal_stack():
        if precision == "int8w":
            return nncf.compress_weights(
                graph, mode=nncf.CompressWeightsMode.INT8_ASYM, ignored_scope=ignored
            )
        if precision == "int4w":
            return nncf.compress_weights(
                graph,
                mode=nncf.CompressWeightsMode.INT4_ASYM,
                group_size=_group(openvino_weights(graph)),
                all_layers=True,
                ignored_scope=ignored,
                dataset=nncf.Dataset(pictures) if pictures else None,
                scale_estimation=True if pictures else None,
                subset_size=len(pictures or "1"),
            )
        if pictures is None:
            raise UserError(
                "int8 needs pictures to calibrate on.", fix="give some, or choose int8w, which needs none."
            )
        return nncf.quantize(
            graph,
            nncf.Dataset(pictures),
            model_type=nncf.ModelType.TRANSFORMER,  # SmoothQuant on; the attention scores stay as they are
            preset=nncf.QuantizationPreset.MIXED,  # activations are not symmetric
            subset_size=len(pictures),
            ignored_scope=ignored,
        )


def _group(weights: list[tuple[str, np.ndarray]]) -> int:
    """The largest power of two up to INT4_GROUP that divides the inputs of every matrix."""
    group = INT4_GROUP
    for _, weight in weights:
        while weight.ndim == 2 and weight.shape[1] % group:
            group //= 2
    return group
