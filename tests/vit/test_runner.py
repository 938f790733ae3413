"""Runners: any number of pictures in, as many answers out, whatever computes; features are what transformers has inside."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from tiny_vit import make_vit
from torch import nn

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.model import load_torch, open_model
from fastsd_lib.vit.runner import RUNNERS, choose_backend, open_runner
from fastsd_lib.vit.runner_torch import TorchRunner

KINDS = ("vit", "deit", "dinov2", "swin", "convnext")
EXACT = RunnerConfig("torch", "fp32", batch_size=4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    top = tmp_path_factory.mktemp("models")
    return {kind: open_model(make_vit(top / kind, kind=kind)) for kind in KINDS}


def pixels(count, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, 3, 32, 32)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_as_many_answers_as_pictures_in_their_order_for_any_number(models, count):
    runner = open_runner(models["vit"], config=EXACT)
    with torch.inference_mode():
        expected = load_torch(models["vit"])(torch.from_numpy(pixels(count))).logits.numpy()
    found = runner.run(pixels(count))
    assert found.dtype == np.float32 and runner.name == "torch fp32"
    np.testing.assert_allclose(found, expected, atol=1e-5)
    flying = [runner.submit(pixels(count, seed)) for seed in range(4)]
    for seed, future in enumerate(flying):
        np.testing.assert_allclose(future.result(), runner.run(pixels(count, seed)), atol=1e-5)
    runner.close()


def test_bfloat16_is_close_to_float32_and_named(models):
    exact, rough = (open_runner(models["vit"], config=RunnerConfig("torch", one)) for one in ("fp32", "bf16"))
    assert rough.name == "torch bf16"
    a, b = exact.run(pixels(8)), rough.run(pixels(8))
    assert 0 < np.abs(a - b).max() < 0.05
    assert (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) > 0.999


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2"])
@pytest.mark.parametrize("layer", [-1, 0, 1, 2])
def test_features_are_the_hidden_states_of_transformers(models, kind, layer):
    with torch.inference_mode():
        found = load_torch(models[kind]).base_model(torch.from_numpy(pixels(3)), output_hidden_states=True)
    states = (found.last_hidden_state if layer == -1 else found.hidden_states[layer]).numpy()
    patches = states[:, {"vit": 1, "deit": 2, "dinov2": 1}[kind] :]
    for pool, expected in (("cls", states[:, 0]), ("mean", patches.mean(axis=1))):
        ours = open_runner(models[kind], Features(layer, pool), EXACT).run(pixels(3))
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        unit = open_runner(models[kind], Features(layer, pool, normalize=True), EXACT).run(pixels(3))
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(
            unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5
        )


def test_models_without_a_class_token_give_the_mean_of_what_their_head_sees(models):
    for kind, head in (("swin", "classifier"), ("convnext", "classifier")):
        features = open_runner(models[kind], Features(pool="mean"), EXACT).run(pixels(3))
        head = getattr(load_torch(models[kind]), head)
        with torch.inference_mode():
            logits = head(torch.from_numpy(features)).numpy()
        np.testing.assert_allclose(logits, open_runner(models[kind], config=EXACT).run(pixels(3)), atol=1e-5)
        with pytest.raises(UserError, match="has no class token") as error:
            open_runner(models[kind], Features(), EXACT)
        assert '"mean"' in error.value.fix


def test_a_layer_that_is_not_there_lists_those_that_are(models):
    for layer in (3, -2):
        with pytest.raises(UserError, match=f"there is no layer {layer}") as error:
            open_runner(models["vit"], Features(layer), EXACT)
        assert error.value.fix.startswith("take 0 to 2")


def test_another_size_than_the_model_was_trained_at_is_looked_at_with_its_positions_brought_to_it(models):
    larger = np.random.default_rng(1).uniform(-1, 1, (2, 3, 48, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = load_torch(models["vit"])(torch.from_numpy(larger), interpolate_pos_encoding=True).logits
    np.testing.assert_allclose(open_runner(models["vit"], config=EXACT).run(larger), expected, atol=1e-5)


# ---------------------------------------------------------------- memory


class _Small(nn.Module):
    """A device whose memory holds so many pictures and no more."""

    def __init__(self, holds):
        super().__init__()
        self.holds, self.sizes = holds, []

    def forward(self, given):
        self.sizes.append(len(given))
        if len(given) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return given.mean(dim=(2, 3))


def test_a_batch_that_does_not_fit_is_halved_said_so_and_remembered():
    module = _Small(holds=5)
    runner = TorchRunner(module, "fp32", torch.device("cpu"), batch_size=16)
    with pytest.warns(RuntimeWarning) as told:
        found = runner.run(pixels(20))
    np.testing.assert_allclose(found, pixels(20).mean(axis=(2, 3)), atol=1e-6)
    assert [str(one.message) for one in told] == [
        f"out of memory: batches of {size} from now on" for size in (8, 4)
    ]
    assert (module.sizes, runner.batch_size) == ([16, 8, 4, 4, 4, 4, 4], 4)
    runner.run(pixels(8))
    assert module.sizes[7:] == [4, 4]
    runner.close()


def test_when_not_even_one_fits_the_way_out_is_a_smaller_model():
    runner = TorchRunner(_Small(holds=0), "fp32", torch.device("cpu"), batch_size=2)
    with pytest.warns(RuntimeWarning), pytest.raises(UserError, match="Not even one picture fits") as error:
        runner.run(pixels(2))
    assert "smaller model" in error.value.fix


# ---------------------------------------------------------------- choice


def test_every_backend_has_a_function_that_opens_it():
    for where in RUNNERS.values():
        module, _, function = where.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_on_a_processor_openvino_is_taken_where_it_is_installed(monkeypatch):
    assert choose_backend("cpu") == "openvino"
    assert choose_backend("cuda") == "torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_backend("cpu") == "torch"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RunnerConfig("tensorrt"), "There is no backend 'tensorrt'"),
        (RunnerConfig("torch", "int8"), "fp32, bf16 or fp16, not in int8"),
        (RunnerConfig("torch", device="cuda:7"), "There is no GPU cuda:7 here"),
        (RunnerConfig("torch", device="toaster"), "There is no device 'toaster'"),
        (RunnerConfig("torch", batch_size=0), "The batch size is 0"),
        (RunnerConfig("torch", "fp32", batch_size=10**9), "MiB of memory"),
    ],
)
def test_a_runner_that_cannot_be_is_refused_with_the_way_out(models, config, said):
    with pytest.raises(UserError, match=said) as error:
        open_runner(models["vit"], config=config)
    assert error.value.fix


def test_an_export_is_run_by_its_path_in_what_it_was_exported_for(models, tmp_path):
    from fastsd_lib.vit.exports import export

    export(models["vit"], "openvino", "fp32", tmp_path / "exported")
    runner = open_runner(tmp_path / "exported")
    assert runner.name.startswith("openvino fp32")
    np.testing.assert_allclose(
        runner.run(pixels(3)), open_runner(models["vit"], config=EXACT).run(pixels(3)), atol=1e-3
    )
    runner.close()
    with pytest.raises(
        UserError, match="is an export to openvino: the backend torch does not run it"
    ) as error:
        open_runner(tmp_path / "exported", config=RunnerConfig("torch"))
    assert "backend auto or openvino" in error.value.fix
