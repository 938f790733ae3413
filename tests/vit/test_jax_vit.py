"""ViT and DeiT in JAX compute what PyTorch computes, from the same file."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vit import make_vit
from transformers import AutoModelForImageClassification, DeiTForImageClassificationWithTeacher

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import jax_vit
from fastsd_lib.vit.array_weights import read_design, read_weights, write_weights
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.outputs import output_module
from fastsd_lib.vit.runner_jax import JaxRunner

pytest.importorskip("jax")


@pytest.fixture(scope="module", params=["vit", "deit"])
def folder(request, tmp_path_factory):
    return make_vit(tmp_path_factory.mktemp("jax") / request.param, kind=request.param, layers=3)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).normal(0, 1, (4, 3, 32, 32)).astype(np.float32)


def oracle(folder, dtype=torch.float64):
    """PyTorch in double precision: what both frameworks are held against."""
    return (
        AutoModelForImageClassification.from_pretrained(folder, attn_implementation="eager").eval().to(dtype)
    )


def relative(found, expected) -> float:
    expected = np.asarray(expected, np.float64)
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


def states_of(folder, pixels):
    design = read_design(folder)
    weights = read_weights(folder, design)
    import jax

    with jax.default_matmul_precision("highest"):
        return design, weights, jax_vit.hidden_states(jax_vit.on_device(weights), design, pixels)


def test_logits_equal_pytorch_in_double_precision(folder, pixels):
    design = read_design(folder)
    found = jax_vit.compiled(design)(jax_vit.on_device(read_weights(folder, design)), pixels)
    with torch.no_grad():
        expected = oracle(folder)(torch.from_numpy(pixels).double()).logits
    assert relative(found, expected) <= 1e-5


def test_every_level_equals_pytorch_not_only_the_end(folder, pixels):
    _, _, states = states_of(folder, pixels)
    with torch.no_grad():
        expected = oracle(folder)(torch.from_numpy(pixels).double(), output_hidden_states=True).hidden_states
    assert len(states) == len(expected) == 4
    for found, true in zip(states, expected, strict=True):
        assert relative(found, true) <= 1e-5


@pytest.mark.parametrize(
    "features",
    [Features(), Features(0, "mean"), Features(2, "cls"), Features(-1, "mean", True), Features(3, "mean")],
    ids=str,
)
def test_features_are_those_of_the_torch_module(folder, pixels, features):
    design = read_design(folder)
    found = jax_vit.compiled(design, features)(jax_vit.on_device(read_weights(folder, design)), pixels)
    with torch.no_grad():
        expected = output_module(oracle(folder, torch.float32), features)(torch.from_numpy(pixels))
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda block: block.update(query=block["key"], key=block["query"]),
        lambda block: block["value"].update(kernel=block["value"]["kernel"].T.copy()),
        lambda block: block.update(norm1=block["norm2"], norm2=block["norm1"]),
        lambda block: block["up"].update(bias=block["up"]["bias"] * 1.01),
    ],
    ids=["query and key swapped", "a kernel transposed", "norms swapped", "a bias one percent off"],
)
def test_a_wrong_weight_is_seen_by_these_limits(folder, pixels, spoil):
    design = read_design(folder)
    weights = copy.deepcopy(read_weights(folder, design))
    spoil(weights["blocks"][1])
    found = jax_vit.compiled(design)(jax_vit.on_device(weights), pixels)
    with torch.no_grad():
        expected = oracle(folder)(torch.from_numpy(pixels).double()).logits
    assert relative(found, expected) > 1e-5


def test_torch_to_jax_to_safetensors_to_torch_is_the_same_to_the_last_bit(folder, tmp_path):
    design = read_design(folder)
    arrays = jax_vit.on_device(read_weights(folder, design))
    write_weights(tmp_path / "model.safetensors", arrays, design)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_distilled_deit_answers_with_the_mean_of_its_two_heads(tmp_path, pixels):
    folder = make_vit(tmp_path / "teacher", kind="deit")
    config = oracle(folder).config
    torch.manual_seed(1)
    model = DeiTForImageClassificationWithTeacher(config).eval()
    model.save_pretrained(folder)
    design = read_design(folder)
    found = jax_vit.compiled(design)(jax_vit.on_device(read_weights(folder, design)), pixels)
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(pixels).double()).logits
    assert relative(found, expected) <= 1e-5


@pytest.mark.parametrize("change", ["missing", "too much", "another shape"])
def test_a_file_that_does_not_fit_is_refused_by_name(tmp_path, change):
    folder = make_vit(tmp_path / "vit")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "vit.encoder.layer.1.output.dense.weight"
    if change == "missing":
        del tensors[name]
    elif change == "too much":
        tensors["vit.encoder.layer.2.output.dense.weight"] = tensors[name].clone()
    else:
        tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, str(path), metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"layer|down") as refused:
        read_weights(folder, read_design(folder))
    assert "save_pretrained" in refused.value.fix


def test_other_architectures_are_sent_to_other_backends(tmp_path):
    with pytest.raises(UserError, match="swin") as refused:
        read_design(make_vit(tmp_path / "swin", kind="swin"))
    assert "torch" in refused.value.fix and "openvino" in refused.value.fix


def test_an_activation_that_is_not_known_is_named(tmp_path):
    folder = make_vit(tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "mish"}))
    with pytest.raises(UserError, match="mish"):
        read_design(folder)


# The runner


def model_at(folder):
    return SimpleNamespace(path=folder)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_the_runner_takes_any_number_of_pictures(folder, count):
    pixels = np.random.default_rng(count).normal(0, 1, (count, 3, 32, 32)).astype(np.float32)
    runner = JaxRunner(model_at(folder), config=RunnerConfig("jax", batch_size=4))
    with torch.no_grad():
        expected = oracle(folder)(torch.from_numpy(pixels).double()).logits
    try:
        assert relative(runner.run(pixels), expected) <= 1e-5
        assert np.array_equal(runner.submit(pixels).result(), runner.run(pixels))
    finally:
        runner.close()


def test_bf16_stays_near_and_says_what_it_is(folder, pixels):
    runner = JaxRunner(model_at(folder), config=RunnerConfig("jax", precision="bf16"))
    with torch.no_grad():
        expected = oracle(folder)(torch.from_numpy(pixels).double()).logits.numpy()
    found = runner.run(pixels)
    runner.close()
    cosine = (found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected)
    assert runner.name == "jax bf16" and found.dtype == np.float32
    assert cosine >= 0.999 and not np.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RunnerConfig("jax", precision="int8"), "int8"),
        (RunnerConfig("jax", device="cuda:7"), "cuda:7"),
    ],
)
def test_what_jax_cannot_do_here_is_said(folder, config, said):
    with pytest.raises(UserError, match=said) as refused:
        JaxRunner(model_at(folder), config=config)
    assert "choose" in refused.value.fix


def test_threads_that_came_too_late_are_not_swallowed(folder):
    JaxRunner(model_at(folder)).close()  # JAX has begun, with all processors
    with pytest.raises(UserError, match="began with") as refused:
        JaxRunner(model_at(folder), config=RunnerConfig("jax", threads=3))
    assert "--threads 3" in refused.value.fix


def test_pixels_of_another_size_are_refused(folder):
    runner = JaxRunner(model_at(folder))
    with pytest.raises(UserError, match="32, 32"):
        runner.run(np.zeros((1, 3, 48, 48), np.float32))
    runner.close()


def test_a_layer_that_is_not_there_is_refused(folder):
    with pytest.raises(UserError, match="no layer 9"):
        JaxRunner(model_at(folder), Features(9))
