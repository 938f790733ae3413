"""TensorRT: what builds an engine on the machine whose GPU will run it, and builds it where that is this one.

An engine belongs to one kind of GPU and one TensorRT, so the folder holds model.onnx in the precision asked for
(TensorRT 11 takes precision from the graph alone), build_engine.py with the optimization profile, the same as a line
of trtexec, and pictures with their logits by which the engine is tried. Here: the graph's structure is checked, and
its logits in ONNX Runtime.
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import read_json, write_text
from fastsd_lib.vit import onnx_graph, parity
from fastsd_lib.vit.exports import Recipe, Written
from fastsd_lib.vit.model import VitModel, load_torch
from fastsd_lib.vit.onnx_graph import GRAPH
from fastsd_lib.vit.outputs import output_module
from fastsd_lib.vit.pixels import INPUT, OUTPUT

PRECISIONS = ("fp32", "fp16")
SCRIPT, COMMAND, CHECK, ENGINE, ANSWER = (
    "build_engine.py",
    "build_engine.sh",
    "check.npz",
    "model.engine",
    "engine.json",
)
BATCHES = (1, 8, 32)  # of the profile: least, tuned for, most
MOST_OPSET = 20  # TensorRT 10 reads it
#: In half precision these would overflow (a sum of squares) or lose their small values; they stay in float32.
IN_FLOAT32 = ("LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "Pow", "Sqrt")
_OPERATORS = """
Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv Cos Div Einsum Equal Erf
Exp Expand Flatten Floor Gather GatherElements Gelu Gemm GlobalAveragePool Greater GreaterOrEqual HardSigmoid HardSwish
Identity LayerNormalization Less LessOrEqual Log MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow Range ReduceL2
ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Resize Round ScatterND Shape Sigmoid Sign Sin Size Slice Softmax
Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
"""
#: Of what image models are traced to, the operators that TensorRT's parser reads (onnx-tensorrt, docs/operators.md).
READ_BY_TENSORRT = frozenset(_OPERATORS.split())
TIME_LIMIT_S = 3600


def write(model: VitModel, precision: str, folder: Path, recipe: Recipe) -> Written:
    """model.onnx, build_engine.py, build_engine.sh, check.npz; and model.engine where TensorRT and a GPU are here.

    UserError for other precisions, operators that TensorRT does not read, or a graph that does not give the logits.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"TensorRT is prepared here as {', '.join(PRECISIONS)}, not {precision}.",
            fix="choose fp16; for int8 and bf16 quantise model.onnx with NVIDIA's ModelOpt on the GPU machine.",
        )
    require("onnxruntime", group="vit")
    _write_graph(model, precision, folder / GRAPH)
    counted = check_structure(folder / GRAPH, model)
    found = _check_logits(model, precision, folder)
    shutil.copyfile(Path(__file__).with_name("tensorrt_folder") / SCRIPT, folder / SCRIPT)
    write_text(folder / COMMAND, trtexec_command(model))
    (folder / COMMAND).chmod(0o755)
    about = f"{sum(counted.values())} operators, all read by TensorRT; batch {BATCHES[0]} to {BATCHES[2]}; {found.text}"
    if can_build():
        built = _build(folder)
        return Written(
            opens=ENGINE,
            checked=f"engine built with TensorRT {built['tensorrt']} for {built['gpu']} and run: logits within "
            f"{built['max_abs_error']:.2g}; {about}",
            max_abs_logit_error=built["max_abs_error"],
        )
    return Written(
        opens=GRAPH,
        checked=f"structure only, no TensorRT with a GPU here: {about} (ONNX Runtime)",
        runs_here=False,
        note=f"On the machine with the GPU: python {SCRIPT}.",
        max_abs_logit_error=found.max_abs_error,
    )


def trtexec_command(model: VitModel) -> str:
    """The same as build_engine.py, for NVIDIA's own tool."""
    height, width = model.image_px
    shapes = [
        f"--{word}Shapes={INPUT}:{batch}x3x{height}x{width}"
        for word, batch in zip(("min", "opt", "max"), BATCHES, strict=True)
    ]
    words = ["trtexec", f"--onnx={GRAPH}", *shapes, "--stronglyTyped", f"--saveEngine={ENGINE}"]
    return '#!/bin/sh\nset -e\ncd "$(dirname "$0")"\n' + " \\\n  ".join(map(shlex.quote, words)) + "\n"


def check_structure(path: Path, model: VitModel) -> Counter[str]:
    """How often each operator stands in the graph; UserError for what an engine cannot be built from.

    One input whose batch alone may vary, one output, an operator set and operators that TensorRT reads, and weights
    inside the file.
    """
    import onnx

    graph = onnx.load(path)
    opset = max(one.version for one in graph.opset_import if one.domain in ("", "ai.onnx"))
    counted = Counter(
        f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in graph.graph.node
    )
    shapes = {one.name: _dims(one) for one in (*graph.graph.input, *graph.graph.output)}
    strange = sorted(set(counted) - READ_BY_TENSORRT)
    height, width = model.image_px
    expected = {INPUT: [None, 3, height, width], OUTPUT: [None, len(model.labels)]}
    problem = (
        f"uses {', '.join(strange)}" if strange
        else f"is of operator set {opset}" if opset > MOST_OPSET
        else f"has the shapes {shapes}" if shapes != expected
        else "keeps weights in other files" if any(one.external_data for one in graph.graph.initializer)
        else ""
    )  # fmt: skip
    if problem:
        raise UserError(
            f"TensorRT cannot build {model.name}: its graph {problem}.", fix='export it as "onnx" instead.'
        )
    return counted


def can_build() -> bool:
    if importlib.util.find_spec("tensorrt") is None:
        return False
    import torch

    return torch.cuda.is_available()


def _write_graph(model: VitModel, precision: str, path: Path) -> None:
    source = onnx_graph.graph_of(model)
    if precision == "fp32":
        shutil.copyfile(source, path)
        return
    import onnx
    from onnxruntime.transformers import float16, onnx_model

    halved = float16.convert_float_to_float16(
        onnx.load(source),
        keep_io_types=True,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *IN_FLOAT32],
    )
    del halved.graph.value_info[:]  # the types that they had in float32
    onnx_model.OnnxModel(halved).topological_sort()  # the converter puts its first Cast last
    onnx.save(halved, path)
    onnx_graph.check(path)


def _check_logits(model: VitModel, precision: str, folder: Path) -> parity.Parity:
    """model.onnx beside PyTorch, and the pictures with their logits into check.npz for the engine."""
    import onnxruntime
    import torch

    pixels = parity.made_pictures(model)
    with torch.inference_mode():
        expected = output_module(load_torch(model))(torch.from_numpy(pixels)).numpy()
    session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: pixels})[0]
    judged = parity.judge(model, "tensorrt", precision, found, expected)
    np.savez(folder / CHECK, pixels=pixels, logits=expected)
    return judged


def _build(folder: Path) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, SCRIPT],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIME_LIMIT_S,
        check=False,
    )
    if ran.returncode or not (folder / ANSWER).is_file():
        said = (ran.stderr or ran.stdout).strip().splitlines() or [f"it ended with code {ran.returncode}"]
        raise UserError(
            f"TensorRT built no engine: {said[-1][:300]}", fix='export the model as "onnx" instead.'
        )
    return read_json(folder / ANSWER)


def _dims(value: Any) -> list[int | None]:
    return [one.dim_value or None for one in value.type.tensor_type.shape.dim]
