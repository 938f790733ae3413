"""What a GPU machine is given for TensorRT: a graph that it reads, the program that builds, pictures to try it with."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import helper
from tiny_vit import make_vit

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import export_tensorrt, exports, parity
from fastsd_lib.vit.export_tensorrt import check_structure
from fastsd_lib.vit.exports import Recipe
from fastsd_lib.vit.model import open_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(make_vit(tmp_path_factory.mktemp("models") / "vit"))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def exported(request, model, tmp_path_factory):
    return exports.export(
        model, "tensorrt", request.param, tmp_path_factory.mktemp("tensorrt") / request.param
    )


def test_the_folder_says_that_it_was_checked_by_structure_only(exported):
    if export_tensorrt.can_build():
        pytest.skip("an engine was built here")
    assert not exported.runs_here
    assert exported.checked.startswith("structure only")
    assert "build_engine.py" in exported.note
    assert {"model.onnx", "build_engine.py", "build_engine.sh", "check.npz"} <= set(exported.files)


def test_only_the_batch_may_vary_and_weights_are_inside(exported, model):
    assert check_structure(exported.path / "model.onnx", model)["MatMul"] > 0
    graph = onnx.load(exported.path / "model.onnx", load_external_data=False)
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param and [one.dim_value for one in dims[1:]] == [3, 32, 32]


def test_half_precision_stands_in_the_graph_but_norms_stay_in_float32(model, exported):
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported.path / "model.onnx"))
    types = {one.name: one.type.tensor_type.elem_type for one in graph.graph.value_info}
    stored = {one.data_type for one in graph.graph.initializer if len(one.dims) == 2}
    norms = {types[node.output[0]] for node in graph.graph.node if node.op_type == "LayerNormalization"}
    softmax = {types[node.output[0]] for node in graph.graph.node if node.op_type == "Softmax"}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert stored == {half if exported.precision == "fp16" else single}
    assert norms == softmax == {single}


def test_the_pictures_beside_it_carry_pytorchs_logits(exported, model):
    given = np.load(exported.path / "check.npz")
    assert np.array_equal(given["pixels"], parity.made_pictures(model))
    assert given["logits"].shape == (len(given["pixels"]), 3)


def test_the_command_names_the_same_shapes_as_the_program(exported):
    text = (exported.path / "build_engine.sh").read_text()
    for words in ("min", "1x3x32x32"), ("opt", "8x3x32x32"), ("max", "32x3x32x32"):
        assert f"--{words[0]}Shapes=pixel_values:{words[1]}" in text
    assert "--stronglyTyped" in text and os.access(exported.path / "build_engine.sh", os.X_OK)
    assert subprocess.run(["sh", "-n", str(exported.path / "build_engine.sh")], check=False).returncode == 0


def test_the_program_stands_alone_and_says_what_it_lacks(exported):
    source = (exported.path / "build_engine.py").read_text()
    ast.parse(source)
    assert "fastsd" not in source
    if export_tensorrt.can_build():
        return
    ran = subprocess.run(
        [sys.executable, str(exported.path / "build_engine.py")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1 and "tensorrt is not installed" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("spoil", ["operator", "fixed batch", "size"])
def test_a_graph_that_no_engine_can_be_built_from_is_refused(model, tmp_path, spoil):
    graph = onnx.load(export_tensorrt.onnx_graph.graph_of(model))
    if spoil == "operator":
        graph.graph.node.append(helper.make_node("NonZero", [graph.graph.output[0].name], ["places"]))
    else:
        dim = graph.graph.input[0].type.tensor_type.shape.dim[0 if spoil == "fixed batch" else 2]
        dim.Clear()
        dim.dim_value = 2
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"NonZero|shapes") as refused:
        check_structure(tmp_path / "model.onnx", model)
    assert "onnx" in refused.value.fix


def test_a_precision_that_the_graph_cannot_carry_is_named(model, tmp_path):
    with pytest.raises(UserError, match="int8") as refused:
        export_tensorrt.write(model, "int8", tmp_path, Recipe())
    assert "ModelOpt" in refused.value.fix


@pytest.mark.gpu
def test_the_engine_gives_pytorchs_logits(model, tmp_path):
    pytest.importorskip("tensorrt")
    built = exports.export(model, "tensorrt", "fp16", tmp_path / "engine")
    assert built.runs_here and built.max_abs_logit_error <= 0.05
