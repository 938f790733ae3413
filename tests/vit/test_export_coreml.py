"""Core ML packages: what a Mac would be asked to run, read back and computed here by numpy."""

from __future__ import annotations

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from mil_in_numpy import probabilities
from PIL import Image
from tiny_vit import make_vit

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import export_coreml, exports
from fastsd_lib.vit.calibration_file import write_facts
from fastsd_lib.vit.export_coreml import PACKAGE, inspect_package, quiet_coremltools, unique_labels
from fastsd_lib.vit.exports import Recipe
from fastsd_lib.vit.model import load_torch, open_model
from fastsd_lib.vit.transform import Transform

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None, reason="coremltools is not installed"
)
IMAGE = np.random.default_rng(5).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module", params=[("vit", "fp32"), ("vit", "int8w"), ("deit", "fp16")], ids="-".join)
def exported(request, tmp_path_factory):
    kind, precision = request.param
    folder = tmp_path_factory.mktemp("coreml")
    write_facts(make_vit(folder / kind, kind=kind), temperature=1.5)
    model = open_model(folder / kind)
    export = exports.export(model, "coreml", precision, folder / "export")
    with quiet_coremltools():
        return model, export, inspect_package(export.path / PACKAGE)


def expected_probabilities(model):
    pixels = torch.from_numpy(Transform.of(model).scaled(Image.fromarray(IMAGE))[None])
    with torch.no_grad():
        return torch.softmax(load_torch(model)(pixel_values=pixels).logits / 1.5, -1).numpy()


def test_a_picture_in_bytes_gives_pytorchs_calibrated_probabilities(exported):
    """numpy computes the package's own program on its own weights: scaling, names, norms and head included."""
    model, export, package = exported
    found = probabilities(package.program, IMAGE.transpose(2, 0, 1)[None])
    allowed = {"fp32": 1e-5, "fp16": 2e-3, "int8w": 1e-2}[export.precision]
    assert np.abs(found - expected_probabilities(model)).max() <= allowed


def test_its_face_is_one_rgb_image_and_named_classes(exported):
    _, _, package = exported
    (image,) = package.spec.description.input
    assert (image.name, image.type.imageType.width, image.type.imageType.height) == ("image", 32, 32)
    assert image.type.imageType.colorSpace == 20  # RGB
    assert [one.name for one in package.spec.description.output] == ["classLabel", "classLabel_probs"]
    assert package.operations["layer_norm"] == 5 and package.operations["softmax"] == 3
    assert package.operations["gelu"] == 2


def test_it_says_how_pictures_are_resized_before(exported):
    model, _, package = exported
    told = package.spec.description.metadata.userDefined["fastsd.resize"]
    assert (
        told
        == {"vit": "to 32x32 (bilinear)", "deit": "to 37x37 (bicubic), then the middle 32x32"}[
            model.path.name
        ]
    )


def test_what_was_not_run_is_not_called_run(exported):
    _, export, _ = exported
    assert not export.runs_here and export.checked.startswith("structure only, a Mac must run it")
    assert export.max_abs_logit_error is None


def test_eight_bit_weights_are_stored_in_eight_bits(tmp_path):
    model = open_model(make_vit(tmp_path / "vit", hidden=64))
    sizes = {
        precision: exports.export(model, "coreml", precision, tmp_path / precision).size_mib
        for precision in ("fp32", "fp16", "int8w")
    }
    assert sizes["int8w"] < 0.75 * sizes["fp16"] < 0.6 * sizes["fp32"]


def test_a_package_with_another_models_weights_is_refused(exported, tmp_path):
    model, export, package = exported
    other = open_model(make_vit(tmp_path / "other", kind=model.path.name, seed=9))
    with pytest.raises(UserError, match="no copy of") as refused:
        export_coreml._check_weights(package, load_torch(other), export.precision)
    assert "onnx" in refused.value.fix


def test_several_labels_at_once_answer_with_a_row_of_probabilities(tmp_path):
    folder = make_vit(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    model = open_model(folder)
    assert model.multi_label
    export = exports.export(model, "coreml", "fp32", tmp_path / "export")
    with quiet_coremltools():
        package = inspect_package(export.path / PACKAGE)
    found = probabilities(package.program, IMAGE.transpose(2, 0, 1)[None])
    pixels = torch.from_numpy(Transform.of(model)(Image.fromarray(IMAGE))[None])
    with torch.no_grad():
        expected = torch.sigmoid(load_torch(model)(pixel_values=pixels).logits)
    assert np.abs(found - expected.numpy()).max() <= 1e-5
    assert package.spec.description.metadata.userDefined["fastsd.labels"].split() == ["cat", "dog", "fish"]


def test_two_classes_of_one_name_are_told_apart():
    assert unique_labels(["crane", "dog", "crane"]) == ["crane", "dog", "crane (2)"]


def test_a_precision_that_core_ml_does_not_take_is_named(tmp_path):
    model = open_model(make_vit(tmp_path / "vit"))
    with pytest.raises(UserError, match="bf16") as refused:
        export_coreml.write(model, "bf16", tmp_path, Recipe())
    assert "int8w" in refused.value.fix


def test_tensorflow_is_not_loaded_along():
    assert "tensorflow" not in sys.modules
