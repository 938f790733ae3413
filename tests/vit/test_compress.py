"""What compressing costs is measured on the user's pictures, and what costs too much is taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vit import make_vit

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import sensitivity
from fastsd_lib.vit.compress import compress
from fastsd_lib.vit.export_onnx import onnx_weights
from fastsd_lib.vit.export_openvino import openvino_weights
from fastsd_lib.vit.exports import open_export
from fastsd_lib.vit.gate import Gate, cost_of
from fastsd_lib.vit.model import VitModel, load_torch, open_model
from fastsd_lib.vit.quantize import quantize
from fastsd_lib.vit.sample_data import write_digits
from fastsd_lib.vit.user_set import open_user_set

LAYERS = 26  # linear layers and convolutions of the embedded model


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> list[tuple[Path, int]]:
    """240 scans, 24 of each class."""
    folder = write_digits(tmp_path_factory.mktemp("digits") / "all")
    return [(path, digit) for digit in range(10) for path in sorted((folder / str(digit)).glob("*.png"))[:24]]


def with_outliers(to: Path, blocks: list[int], ways: tuple[str, ...], times: float = 4000) -> VitModel:
    """The embedded model with one channel of huge activations in these places: the same function in float32.

    What writes the channel is multiplied, what reads it divided: rounding with one scale for all channels leaves the
    others no bits.
    """
    source = open_model("embedded").path
    shutil.copytree(source, to)
    weights = load_file(source / "model.safetensors")
    for block in blocks:
        for way in ways:
            writers, readers = _WAYS[way]
            for name, weight in weights.items():
                if f"layer.{block}." not in name and f"layers.{block}." not in name:
                    continue
                if any(writer in name for writer in writers):
                    weight[3] *= times
                if weight.dim() == 2 and any(reader in name for reader in readers):
                    weight[:, 3] /= times
    save_file(weights, to / "model.safetensors", {"format": "pt"})
    return open_model(to)


#: way -> (what multiplies a channel, what reads it), as parts of the names in the file, old and new.
_WAYS = {
    "before attention": (("layernorm_before",), ("query", "key", "value", "q_proj", "k_proj", "v_proj")),
    "in attention": (("value", "v_proj"), ("attention.output.dense", "o_proj")),
    "before the MLP": (("layernorm_after",), ("intermediate.dense", "fc1")),
}


def logits(model: VitModel, pixels: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return load_torch(model)(torch.from_numpy(pixels)).logits.numpy()


def test_a_trained_model_passes_the_gate_as_it_is(digits, tmp_path):
    found = quantize(open_model("embedded"), "int8", tmp_path / "int8", digits)
    assert (found.export.precision, found.export.kept, found.export.note) == ("int8", (), "")
    assert found.reference_accuracy - found.cost.accuracy <= 0.006
    assert found.cost.flips <= 0.02
    assert found.cost.pictures == 180  # a quarter was calibrated on and is not judged on


def test_where_one_layer_suffers_that_layer_stays_in_high_precision(digits, tmp_path):
    model = with_outliers(tmp_path / "model", [1], ("before the MLP",))
    pixels = np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)
    np.testing.assert_allclose(logits(model, pixels), logits(open_model("embedded"), pixels), atol=1e-3)
    found = quantize(model, "int8", tmp_path / "int8", digits, format="onnx")
    assert found.export.precision == "int8"
    assert any("fc1" in name or "intermediate" in name for name in found.export.kept)
    assert len(found.export.kept) <= 3  # a tenth of 26
    assert "stay in high precision" in found.export.note and "points" in found.export.note
    assert found.cost.flips <= 0.02


def test_where_most_layers_suffer_it_falls_back_and_says_so(digits, tmp_path):
    model = with_outliers(tmp_path / "model", [0, 1, 2, 3], tuple(_WAYS))
    found = quantize(model, "int8", tmp_path / "int8", digits, format="onnx")
    assert found.export.precision == "fp32"
    assert found.export.asked == "int8"
    assert "int8 was asked; fp32 was written" in found.export.note
    assert "also with half of the layers kept" in found.export.note
    assert found.cost.flips == 0
    assert open_export(tmp_path / "int8").precision == "fp32"


def test_the_layer_with_the_outlier_is_found_by_its_error(tmp_path):
    model = with_outliers(tmp_path / "model", [2], ("before the MLP",))
    pixels = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    assert sensitivity.worst_first(model, pixels)[0].endswith(
        ("layers.2.mlp.fc1", "layer.2.intermediate.dense")
    )


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_every_layer_is_found_in_both_graphs_by_its_weight(tmp_path, kind):
    import onnx

    from fastsd_lib.vit import intel, onnx_graph, runner_openvino

    model = open_model(make_vit(tmp_path / "model", kind=kind))
    layers = {
        name for name, one in load_torch(model).named_modules()
        if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d))
    }  # fmt: skip
    graph = intel.openvino().Core().read_model(runner_openvino.graph_of(model) / runner_openvino.GRAPH)
    in_openvino = sensitivity.nodes_by_module(model, openvino_weights(graph))
    in_onnx = sensitivity.nodes_by_module(model, onnx_weights(onnx.load(onnx_graph.graph_of(model))))
    assert set(in_openvino) == set(in_onnx) == layers
    assert len(set(in_openvino.values())) == len(set(in_onnx.values())) == len(layers)
    # OpenVINO's converter names most nodes by module: a second witness
    by_name = [name for name, node in in_openvino.items() if name in node]
    assert len(by_name) >= len(layers) / 2
    assert not [name for name, node in in_openvino.items() if "__module.model." in node and name not in node]


def test_cost_and_gate_by_hand():
    reference = np.eye(4, dtype=np.float32)[[0, 1, 2, 3] * 100]  # 400 answers
    truth = np.array([0, 1, 2, 3] * 100)
    found = reference.copy()
    found[:4] = np.eye(4)[[1, 2, 3, 0]]  # 4 of 400 change, all for the worse
    cost = cost_of(found, reference, truth)
    assert (cost.accuracy, cost.flips, cost.max_abs_logit_error) == (0.99, 0.01, 1)
    assert cost.change_points == pytest.approx(-1.0)
    assert Gate().objection(cost) == "accuracy falls by 1.0 points (allowed 0.5)"
    assert Gate(points=1).objection(cost) == ""
    found[:12] = np.eye(4)[[1, 2, 3, 0] * 3]
    assert "3.0 % of the answers change (allowed 2)" in Gate().objection(cost_of(found, reference, None))
    assert cost_of(found, reference, None).accuracy is None
    found[:] = np.nan
    assert Gate().objection(cost_of(found, reference, truth))
    few = reference[:20].copy()
    few[0] = [0, 1, 0, 0]  # one of 20 is five points, and says nothing
    assert Gate().objection(cost_of(few, reference[:20], truth[:20])) == ""


def test_the_pictures_are_split_once_and_bad_ones_are_counted(digits, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    model = open_model("embedded")
    with open_user_set(model, [*digits[:60], (tmp_path / "bad.png", 3)], limit=30) as one:
        assert len(one.pixels) + len(one.calibration) + one.unreadable == 30 + 15
        assert one.words.startswith(f"{one.count} of 61 labelled pictures, calibrated on")
        first = np.array(one.pixels)
        for calibrated in one.calibration:  # no picture is both
            assert np.abs(first - calibrated).max(axis=(1, 2, 3)).min() > 0
    with open_user_set(model, [*digits[:60], (tmp_path / "bad.png", 3)], limit=30) as again:
        np.testing.assert_array_equal(first, again.pixels)
    with open_user_set(model, digits[:30], calibration=digits) as other:
        assert (
            len({tuple(one.ravel()[:200]) for one in other.calibration}) > 30
        )  # of all classes, not the first
    with pytest.raises(UserError, match="None of the 1 pictures"):
        with open_user_set(model, [tmp_path / "bad.png"]):
            pass
    with pytest.raises(UserError, match="class number 11"):
        with open_user_set(model, [(digits[0][0], 11)]):
            pass


def test_compress_writes_one_table_with_what_was_measured_and_what_could_not_be(digits, tmp_path):
    kinds = ("safetensors:fp32", "openvino:int8", "onnx:bf16", "tensorrt:fp16")
    model = open_model("embedded")
    table = compress(model, digits[::2], kinds, tmp_path / "out", rounds=1, seconds=0.01)
    plain, int8, refused, structure = table.rows
    assert plain.accuracy == table.reference_accuracy
    assert (plain.change_points, plain.flips) == (0, 0) and plain.max_abs_logit_error < 1e-4
    assert int8.size_mib < plain.size_mib and int8.flips <= 0.02
    for row in (plain, int8):
        assert row.images_per_s_b1 > 0 and row.images_per_s_b16 > 0 and row.checked == "run on 90 pictures"
    assert refused.size_mib is None and "not written" in refused.note and "bf16" in refused.note
    assert structure.images_per_s_b1 is None and structure.accuracy is None
    assert "structure only" in structure.checked
    text = (tmp_path / "out" / "table.md").read_text()
    assert text == table.markdown()
    assert all(kind in text for kind in kinds) and "structure only" in text
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == list(kinds)
    assert open_export(tmp_path / "out" / "exports" / "openvino-int8").measured["kind"] == "openvino:int8"
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_pictures_without_labels_count_changed_answers_only(tmp_path):
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    table = compress(
        open_model("embedded"), paths, ("openvino:fp32",), tmp_path / "out", rounds=1, seconds=0.01
    )
    (row,) = table.rows
    assert (row.accuracy, row.change_points, row.flips) == (None, None, 0)
    assert "without labels" in table.pictures


def test_an_unknown_kind_is_said_before_anything_is_written(digits, tmp_path):
    with pytest.raises(UserError, match="no kind 'int8'") as caught:
        compress(open_model("embedded"), digits, ("openvino:int8", "int8"), tmp_path / "out")
    assert "openvino:int8" in caught.value.fix
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no quantizing to coreml int8"):
        quantize(open_model("embedded"), "int8", tmp_path / "out", digits, format="coreml")
