"""OpenVINO and ONNX Runtime give what PyTorch gives, from a graph that is traced once."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from tiny_vit import make_vit

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import graph_cache, intel
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.model import load_torch, open_model
from fastsd_lib.vit.outputs import output_module
from fastsd_lib.vit.runner import open_runner


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answers(runner, pixels):
    try:
        return runner.run(pixels)
    finally:
        runner.close()


@pytest.mark.parametrize("kind", ["vit", "swin", "convnext", "dinov2"])
@pytest.mark.parametrize("output", ["logits", Features(1, "mean", normalize=True)])
def test_openvino_gives_the_numbers_of_torch(kind, output, tmp_path):
    model = open_model(make_vit(tmp_path / "model", kind=kind))
    pixels = np.random.default_rng(1).normal(size=(5, 3, *model.image_px)).astype(np.float32)
    with torch.inference_mode():
        expected = output_module(load_torch(model), output)(torch.from_numpy(pixels)).numpy()
    exact = answers(open_runner(model, output, RunnerConfig("openvino", "fp32", batch_size=2)), pixels)
    np.testing.assert_allclose(exact, expected, rtol=0, atol=1e-5)
    if "BF16" in _abilities():
        rough = answers(open_runner(model, output, RunnerConfig("openvino", "bf16")), pixels)
        assert (rough * expected).sum() / np.linalg.norm(rough) / np.linalg.norm(expected) >= 0.999
        assert np.abs(rough - exact).max() > 0  # it was not float32 after all


def _abilities():
    with intel.own_signal_stack():
        return intel.openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


ENDS_ELSEWHERE = """
import gc, os, signal, sys, threading
import numpy as np
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.runner import open_runner

model = open_model(sys.argv[1])
held = [open_runner(model, "logits", RunnerConfig("openvino"))]
held[0].run(np.zeros((1, 3, *model.image_px), np.float32))

def let_go():
    held.pop().close()
    gc.collect()

thread = threading.Thread(target=let_go)
thread.start()
thread.join()
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(True))
os.kill(os.getpid(), signal.SIGINT)
print("heard", len(heard))
"""


def test_a_signal_is_heard_after_a_runner_was_closed_in_another_thread(tmp_path):
    folder = make_vit(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", ENDS_ELSEWHERE, folder], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard 1\n"), done.stderr


def test_onnxruntime_gives_the_features_of_torch(tmp_path):
    model, output = open_model(make_vit(tmp_path / "model")), Features(-1, "cls")
    pixels = np.random.default_rng(1).normal(size=(5, 3, 32, 32)).astype(np.float32)
    with torch.inference_mode():
        expected = output_module(load_torch(model), output)(torch.from_numpy(pixels)).numpy()
    found = answers(open_runner(model, output, RunnerConfig("onnxruntime", batch_size=2)), pixels)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_graph_is_traced_once_for_each_state_of_the_weights(tmp_path):
    model = open_model(make_vit(tmp_path / "model"))
    shelf = graph_cache.cache_folder() / "openvino"
    pixels = np.ones((1, 3, 32, 32), np.float32)
    first = answers(open_runner(model, "logits", RunnerConfig("openvino", "fp32")), pixels)
    (graph,) = shelf.glob("*/model.xml")
    made = graph.stat().st_mtime_ns
    answers(open_runner(model, "logits", RunnerConfig("openvino", "fp32")), pixels)
    assert [path.stat().st_mtime_ns for path in shelf.glob("*/model.xml")] == [made]
    make_vit(tmp_path / "model", seed=1)  # the same folder, other weights
    other = answers(
        open_runner(open_model(tmp_path / "model"), "logits", RunnerConfig("openvino", "fp32")), pixels
    )
    assert len(list(shelf.glob("*/model.xml"))) == 2
    assert np.abs(other - first).max() > 1e-3


def test_batches_from_many_threads_come_back_to_who_sent_them(tmp_path):
    model = open_model(make_vit(tmp_path / "model"))
    runner = open_runner(model, "logits", RunnerConfig("openvino", "fp32", batch_size=4))
    pixels = np.random.default_rng(3).normal(size=(40, 3, 32, 32)).astype(np.float32)
    expected, wrong = runner.run(pixels), []

    def ask(at: int) -> None:
        for count in (1, 2, 5):
            found = (runner.submit if at % 2 else runner.run)(pixels[at : at + count])
            found = found.result() if at % 2 else found
            if np.abs(found - expected[at : at + count]).max() > 1e-5:
                wrong.append((at, count))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(0, 32, 2)]
    threads += [threading.Thread(target=ask, args=(at,)) for at in range(1, 32, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    runner.close()
    assert not wrong


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_pixels_of_another_shape_are_refused_in_words(tmp_path, backend):
    runner = open_runner(open_model(make_vit(tmp_path / "model", layers=1)), "logits", RunnerConfig(backend))
    try:
        for shape in [(0, 3, 32, 32), (1, 3, 31, 32), (3, 32, 32), (1, 1, 32, 32)]:
            for ask in (runner.run, runner.submit):
                with pytest.raises(UserError, match=r"takes pixels \(B, 3, 32, 32\)"):
                    ask(np.zeros(shape, np.float32))
        assert runner.run(np.zeros((1, 3, 32, 32), np.float32)).shape == (1, 3)
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RunnerConfig("openvino", "int8"), "needs a compressed copy"),
        (RunnerConfig("onnxruntime", "int8w"), "needs a compressed copy"),
        (RunnerConfig("onnxruntime", "bf16"), "computes in fp32"),
        (RunnerConfig("openvino", device="npu7"), "finds no device 'npu7'"),
        (RunnerConfig("onnxruntime", device="cuda"), "runs on the processor"),
    ],
)
def test_what_a_backend_cannot_do_is_said_with_a_way_out(tmp_path, config, said):
    model = open_model(make_vit(tmp_path / "model", layers=1))
    with pytest.raises(UserError, match=said) as caught:
        open_runner(model, "logits", config)
    assert caught.value.fix


def test_nothing_is_reported_to_google(tmp_path):
    model = make_vit(tmp_path / "model", layers=1)
    code = (
        "import sys; from fastsd_lib.vit.model import open_model; from fastsd_lib.vit.runner_openvino import graph_of;"
        "from fastsd_lib.vit import intel; graph_of(open_model(sys.argv[1])); intel.nncf();"
        "assert sys.modules['openvino_telemetry'] is None; from nncf.telemetry.wrapper import telemetry;"
        "assert 'Mock' in type(telemetry).__name__ or telemetry is None, type(telemetry)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-800:]
