"""Exports open by their path alone, give the model's logits, and are whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import exports, parity
from fastsd_lib.vit.classify import Classifier
from fastsd_lib.vit.config import Features
from fastsd_lib.vit.exports import Recipe, export, open_export
from fastsd_lib.vit.model import VitModel, open_model
from fastsd_lib.vit.runner import open_runner

KINDS = [
    "safetensors:bf16", "safetensors:fp16", "safetensors:int8w",
    "openvino:fp32", "openvino:bf16", "openvino:fp16", "openvino:int8", "openvino:int8w", "openvino:int4w",
    "onnx:fp32", "onnx:fp16", "onnx:int8", "onnx:int8w", "onnx:int4w",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VitModel:
    return open_model(make_vit(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def torch_logits(model: VitModel, pixels: np.ndarray) -> np.ndarray:
    """transformers itself, not our output module."""
    import torch
    from transformers import AutoModelForImageClassification

    plain = AutoModelForImageClassification.from_pretrained(model.path).eval()
    with torch.inference_mode():
        return plain(torch.from_numpy(pixels)).logits.numpy()


def pixels_of(model: VitModel, count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3, *model.image_px)).astype(np.float32)


#: kind -> how far its logits (up to about 1) may lie from transformers'; measured: a third of this or less.
ALLOWED = {"fp32": 1e-5, "fp16": 3e-3, "bf16": 3e-2, "int8w": 0.1, "int8": 0.25, "int4w": 0.6}


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_that_was_moved_gives_the_logits_of_transformers_for_any_batch(model, kind, tmp_path):
    format, precision = kind.split(":")
    made = export(model, format, precision, tmp_path / "made", recipe=Recipe(pixels_of(model, 16, seed=6)))
    assert (made.format, made.precision, made.labels) == (format, precision, model.labels)
    moved = tmp_path / "elsewhere" / "copy"
    shutil.copytree(made.path, moved)
    shutil.rmtree(made.path)
    pixels = pixels_of(model, 19)
    runner = open_runner(moved)
    try:
        found = runner.run(pixels)
        alone = np.concatenate([runner.run(pixels[at : at + 1]) for at in range(3)])
        in_order = np.concatenate(
            [one.result() for one in [runner.submit(pixels[at : at + 7]) for at in (0, 7, 14)]]
        )
    finally:
        runner.close()
    expected = torch_logits(model, pixels)
    assert np.abs(found - expected).max() <= ALLOWED[precision]
    if precision in ("bf16", "fp16"):
        assert (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected) >= 0.999
    for again in (in_order, alone):  # a swapped or lost picture would be off by as much as pictures differ
        assert np.abs(again - expected[: len(again)]).max() <= ALLOWED[precision]


def test_photographs_are_classified_by_an_export_as_by_its_model(model, tmp_path):
    made = export(model, "openvino", "fp32", tmp_path / "exports" / "ov")
    pictures = photos(tmp_path / "photos", 5)
    with Classifier(model) as by_model, Classifier(made.path) as by_export:
        for one, other in zip(by_model.classify(pictures), by_export.classify(pictures), strict=True):
            assert one.labels == other.labels
            assert one.scores == pytest.approx(other.scores, abs=5e-3)


def test_an_export_with_one_changed_byte_is_refused(model, tmp_path):
    made = export(model, "openvino", "fp32", tmp_path / "made")
    weights = made.path / "model.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.bin is not the file that was exported") as caught:
        open_runner(made.path)
    assert "export the model again" in caught.value.fix


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../secret": [1, "0"]}},
        {"opens": "/etc/passwd"},
        {"opens": "a/../../b"},
        {"files": []},
        {"labels": "cat"},
        {"schema": 99},
        {"files": {"model.xml": "short"}},
    ],
)
def test_an_export_json_that_no_export_writes_is_refused_in_one_line(model, tmp_path, change):
    made = export(model, "safetensors", "bf16", tmp_path / "made")
    manifest = made.path / exports.MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    with pytest.raises(UserError, match="is not what an export writes"):
        open_export(made.path)


def test_a_folder_with_other_files_is_never_replaced_and_an_export_is(model, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "diary.txt").write_text("dear diary")
    with pytest.raises(UserError, match="holds other files") as caught:
        export(model, "safetensors", "bf16", mine)
    assert "new folder" in caught.value.fix
    assert [path.name for path in mine.iterdir()] == ["diary.txt"]
    made = export(model, "safetensors", "bf16", tmp_path / "made")
    again = export(model, "safetensors", "fp16", tmp_path / "made")
    assert (made.precision, again.precision) == ("bf16", "fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "mine"]


def test_a_killed_export_leaves_nothing_under_its_name_and_the_next_one_clears_up(model, tmp_path):
    out = tmp_path / "made"
    code = (
        "import sys; from pathlib import Path; from fastsd_lib.vit.model import open_model;"
        "from fastsd_lib.vit.exports import export; export(open_model(sys.argv[1]), 'onnx', 'fp16', Path(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(model.path), str(out)], stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while not list(tmp_path.glob(".made.*.partial")):
            assert child.poll() is None and time.monotonic() < until, child.stderr.read().decode()[-800:]
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        child.wait()
        child.stderr.close()
    assert not out.exists()
    assert list(tmp_path.glob(".made.*.partial"))  # it was killed while it wrote
    export(model, "safetensors", "bf16", out)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("library", "format", "precision"),
    [("openvino", "openvino", "fp32"), ("onnxruntime", "onnx", "fp32"), ("nncf", "openvino", "int8w")],
)
def test_a_missing_library_is_one_line_that_names_the_install(
    model, tmp_path, monkeypatch, library, format, precision
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"{library} is not installed here") as caught:
        export(model, format, precision, tmp_path / "made")
    assert "install vit" in caught.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "precision", "said"),
    [("paper", "fp32", "No export format"), ("onnx", "bf16", "not bf16"), ("openvino", "int3", "not int3"),
     ("safetensors", "int4w", "not int4w"), ("openvino", "int8", "needs pictures to calibrate")],
)  # fmt: skip
def test_what_cannot_be_exported_is_said_and_leaves_nothing(model, tmp_path, format, precision, said):
    with pytest.raises(UserError, match=said) as caught:
        export(model, format, precision, tmp_path / "made")
    assert caught.value.fix
    assert not list(tmp_path.iterdir())


def test_an_export_of_the_classifier_gives_no_features_and_says_so(model, tmp_path):
    made = export(model, "openvino", "fp32", tmp_path / "made")
    with pytest.raises(UserError, match="gives no features"):
        open_runner(made.path, Features())


def test_an_export_whose_logits_are_wrong_is_refused(model):
    expected = pixels_of(model, 1).reshape(3, -1)[:, :10]
    parity.judge(model, "x", "fp32", expected + 1e-5, expected)
    with pytest.raises(UserError, match="does not give its logits"):
        parity.judge(model, "x", "fp32", expected + 0.1, expected)
    with pytest.raises(UserError, match="does not give its logits"):
        parity.judge(model, "x", "bf16", expected[::-1], expected)
    with pytest.raises(UserError, match="does not give its logits"):
        parity.judge(model, "x", "int8", np.full_like(expected, np.nan), expected)
