"""What TensorFlow loads from an export gives PyTorch's logits; TensorFlow itself stays in processes of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vit import make_vit

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import export_tensorflow
from fastsd_lib.vit.calibration_file import write_facts
from fastsd_lib.vit.export_tensorflow import torch_logits
from fastsd_lib.vit.exports import Recipe
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.parity import made_pictures
from fastsd_lib.vit.transform import Transform

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="TensorFlow is not installed"
)

READER = """
import json, sys
import numpy as np
import tensorflow as tf
folder = sys.argv[1]
given = np.load(folder + "/given.npz")
loaded = tf.saved_model.load(folder + "/saved/saved_model")
by_pixels = loaded.signatures["serving_default"](pixel_values=tf.constant(given["pixels"]))
by_image = loaded.signatures["images"](images=tf.constant(given["image"]))
lite = tf.lite.Interpreter(folder + "/lite/model.tflite").get_signature_runner()
print(json.dumps({
    "logits": by_pixels["logits"].numpy().tolist(),
    "probabilities": by_pixels["probabilities"].numpy().tolist(),
    "image_logits": by_image["logits"].numpy().tolist(),
    "lite": [lite(pixel_values=one[None])["logits"][0].tolist() for one in given["pixels"]],
    "labels": tf.io.read_file(loaded.labels.asset_path).numpy().decode(),
}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A ViT as SavedModel in fp32, a DeiT as TFLite in fp16, both read back by a program of its own."""
    folder = tmp_path_factory.mktemp("tensorflow")
    models = {kind: open_model(make_vit(folder / kind, kind=kind)) for kind in ("vit", "deit")}
    write_facts(models["vit"].path, temperature=2.0)
    models["vit"] = open_model(models["vit"].path)
    written = {}
    for name, kind, write, precision in (
        ("saved", "vit", export_tensorflow.write, "fp32"),
        ("lite", "deit", export_tensorflow.write_tflite, "fp16"),
    ):
        (folder / name).mkdir()
        written[name] = write(models[kind], precision, folder / name, Recipe())
    image = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3), np.uint8)
    np.savez(folder / "given.npz", pixels=made_pictures(models["vit"]), image=image)
    ran = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return folder, models, written, image, json.loads(ran.stdout.splitlines()[-1])


def test_the_saved_model_gives_pytorchs_logits(exported):
    _, models, written, _, read = exported
    expected = torch_logits(models["vit"], made_pictures(models["vit"]))
    assert np.abs(np.array(read["logits"]) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert written["saved"].opens == "saved_model"
    assert written["saved"].max_abs_logit_error <= 1e-4 * np.abs(expected).max()


def test_its_probabilities_are_calibrated_and_sum_to_one(exported):
    _, _, _, _, read = exported
    calm = np.array(read["logits"]) / 2.0  # the temperature of the model
    expected = np.exp(calm) / np.exp(calm).sum(1, keepdims=True)
    assert np.allclose(read["probabilities"], expected, atol=1e-6)


def test_a_picture_in_bytes_is_transformed_inside(exported):
    _, models, _, image, read = exported
    pixels = Transform.of(models["vit"])(Image.fromarray(image[0]))[None]
    assert np.allclose(read["image_logits"], torch_logits(models["vit"], pixels), atol=1e-5)


def test_the_labels_travel_as_an_asset(exported):
    assert exported[4]["labels"].split() == ["cat", "dog", "fish"]


def test_tflite_in_half_precision_stays_near_pytorch(exported):
    folder, models, _, _, read = exported
    expected = torch_logits(models["deit"], np.load(folder / "given.npz")["pixels"])
    assert np.abs(np.array(read["lite"]) - expected).max() <= 1e-2 * np.abs(expected).max()
    assert (folder / "lite" / "labels.txt").read_text().split() == ["cat", "dog", "fish"]


@pytest.mark.parametrize(
    ("write", "precision"),
    [(export_tensorflow.write, "int8"), (export_tensorflow.write_tflite, "bf16")],
)
def test_a_precision_that_is_not_written_is_named(tmp_path, write, precision):
    model = open_model(make_vit(tmp_path / "vit"))
    with pytest.raises(UserError, match=precision) as refused:
        write(model, precision, tmp_path, Recipe())
    assert "choose" in refused.value.fix


def test_another_architecture_is_refused_before_tensorflow_starts(tmp_path):
    model = open_model(make_vit(tmp_path / "swin", kind="swin"))
    with pytest.raises(UserError, match="swin") as refused:
        export_tensorflow.write(model, "fp32", tmp_path, Recipe())
    assert "onnx" in refused.value.fix


def test_what_the_other_process_says_reaches_the_user(tmp_path):
    model = open_model(make_vit(tmp_path / "vit"))
    tensors = load_file(model.path / "model.safetensors")
    del tensors["vit.layernorm.bias"]
    save_file(tensors, str(model.path / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layernorm\.bias") as refused:
        export_tensorflow.write(model, "fp32", tmp_path, Recipe())
    assert "save_pretrained" in refused.value.fix
