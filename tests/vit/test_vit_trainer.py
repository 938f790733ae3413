"""What training does to a model: what it changes and leaves, what it says, and that several processes are one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_vit import make_vit
from vit_runs import ROOT, base_config, make_pictures

from fastsd_lib.core import disk
from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions.checkpoints import list_checkpoints
from fastsd_lib.vit import train_loop
from fastsd_lib.vit.model import load_torch, open_model
from fastsd_lib.vit.train_config import PRESETS, VitTrainConfig, preset
from fastsd_lib.vit.train_data import TrainingSet
from fastsd_lib.vit.trainer import train
from fastsd_lib.vit.transform import Transform


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_vit(tmp_path_factory.mktemp("base") / "vit", classes=("a", "b", "c"), image_px=16)


def _config(data, **changes):
    return VitTrainConfig(**{**base_config(data), "save_every_steps": 0, **changes})


def _weights(folder):
    return load_file(folder / "model.safetensors")


def _close(found, expected, most):
    """Equal but for rounding. A key's bias changes no attention: its gradient is rounding alone, which Adam enlarges."""
    assert found.keys() == expected.keys()
    for name in found.keys() - {name for name in found if name.endswith("key.bias")}:
        assert torch.allclose(found[name], expected[name], atol=most), name


# -- learning ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_leaves_a_model_that_opens_with_its_classes_and_recipe(data, tmp_path):
    config = _config(data, epochs=12, augment="light", report=True, new_layers=1)
    done = train(config, tmp_path / "run")
    assert done.metrics["accuracy"] == 1.0 and done.steps == 60
    model = open_model(tmp_path / "run" / "model")
    assert model.labels == ("dark", "light") and model.image_px == (16, 16)
    assert model.temperature is None  # four pictures say nothing about it
    facts = json.loads((model.path / "fastsd_vit.json").read_text())
    assert facts["recipe"]["epochs"] == 12 and facts["trained_on"]["classes"] == {"dark": 7, "light": 7}
    assert (
        str(tmp_path) not in (model.path / "fastsd_vit.json").read_text()
    )  # nobody's folders travel with a model
    assert done.report.is_file() and (model.path / "README.md").is_file()
    with torch.no_grad():
        out = load_torch(model)(pixel_values=torch.zeros(1, 3, 16, 16)).logits
    assert out.shape == (1, 2)


@pytest.mark.parametrize(
    "freeze, learn",
    [
        ("head", {"classifier"}),
        ("last_1", {"classifier", "layer.1", "layernorm"}),
        ("embeddings,0", {"classifier", "layer.1", "layernorm"}),
        ("0-1", {"classifier", "embeddings", "layernorm"}),
    ],
)
def test_frozen_weights_stay_as_they_are_bit_for_bit_and_the_others_move(freeze, learn, data, base, tmp_path):
    config = _config(data, model=str(base), freeze=freeze, weight_decay=0.1, ema_decay=0.5, epochs=1)
    train(config, tmp_path / "run")
    before, after = _weights(base), _weights(tmp_path / "run" / "model")
    assert before.keys() == after.keys()

    def learns(name):
        last = name.startswith("vit.layernorm") and "layernorm" in learn
        return last or any(part in name for part in learn - {"layernorm"})

    for name, tensor in before.items():
        if name.startswith("classifier"):
            continue  # for other classes
        same = torch.equal(tensor, after[name])
        assert same != learns(name) or "key.bias" in name, name  # a key's bias changes no attention


def test_a_head_for_other_classes_begins_anew_and_one_for_the_same_goes_on(data, base, tmp_path):
    config = _config(data, model=str(base), max_steps=1, learning_rate=0.0)
    other = _weights(train(config, tmp_path / "other").model.path)["classifier.weight"]
    assert other.shape == (2, 32) and 0.01 < float(other.std()) < 0.03
    again = _weights(
        train(replace(config, model=str(tmp_path / "other" / "model")), tmp_path / "same").model.path
    )
    assert torch.equal(again["classifier.weight"], other)


def test_the_head_alone_can_come_first(data, base, tmp_path):
    config = _config(data, model=str(base), probe_epochs=1, epochs=1)
    train(config, tmp_path / "run")
    start, probed = _weights(base), _weights(tmp_path / "run" / "probe" / "model")
    name = "vit.encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(start[name], probed[name])
    assert not torch.equal(probed[name], _weights(tmp_path / "run" / "model")[name])


def test_lora_changes_attention_and_head_only_and_the_adapter_alone_says_the_same(data, base, tmp_path):
    from peft import PeftModel

    done = train(_config(data, model=str(base), method="lora", lora_rank=2, epochs=2), tmp_path / "run")
    before, after = _weights(base), _weights(done.model.path)
    moved = {
        name
        for name in before
        if before[name].shape == after[name].shape and not torch.equal(before[name], after[name])
    }
    moved = {name for name in moved if not name.startswith("classifier")}
    assert moved and all(".attention.attention." in name and name.endswith(".weight") for name in moved)
    assert all(np.linalg.matrix_rank((after[n] - before[n]).numpy(), tol=1e-5) <= 2 for n in moved)
    assert sum(file.stat().st_size for file in done.adapter.glob("*.safetensors")) < 40_000
    torch.manual_seed(0)
    pixels = torch.randn(4, 3, 16, 16)
    with_adapter = PeftModel.from_pretrained(
        load_torch(open_model(base), labels=done.images.classes), done.adapter
    )
    with torch.no_grad():
        expected = with_adapter.eval()(pixel_values=pixels).logits
        found = load_torch(done.model)(pixel_values=pixels).logits
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["deit", "dinov2", "swin", "convnext"])
def test_other_architectures_are_trained_the_same_way(kind, data, tmp_path):
    side = 28 if kind == "dinov2" else 32
    base = make_vit(tmp_path / kind, kind=kind, image_px=side, patch=7 if kind == "dinov2" else 8)
    config = _config(data, model=str(base), epochs=1, layer_decay=0.8, freeze="last_1", max_steps=2)
    before, after = _weights(base), _weights(train(config, tmp_path / "run").model.path)
    same = [
        name
        for name in before
        if before[name].shape == after[name].shape and torch.equal(before[name], after[name])
    ]
    assert 0 < len(same) < len(before)


def test_early_stopping_ends_a_run_that_gets_no_better(data, tmp_path):
    config = _config(data, learning_rate=0.0, epochs=50, early_stopping=2, augment="none")
    done = train(config, tmp_path / "run")
    assert done.steps == 3 * 5  # the first epoch is the best, two more bring nothing
    assert train(config, tmp_path / "run").steps == 15


def test_the_best_epoch_is_kept_and_not_the_last(data, tmp_path):
    """A learning rate that spoils the model at once: the best epoch lies before the last."""
    config = _config(
        data,
        learning_rate=0.5,
        epochs=6,
        schedule="constant",
        warmup_steps=0,
        best_by="loss",
        keep_checkpoints=1,
    )
    done = train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert min(losses) < losses[-1] and done.metrics["loss"] == min(losses)
    best = 5 * (1 + int(np.argmin(losses)))
    kept = next(one for one in list_checkpoints(tmp_path / "run" / "checkpoints") if one.step == best)
    held = load_file(kept.path / "weights.safetensors")["classifier.weight"]
    assert torch.equal(held, _weights(done.model.path)["classifier.weight"])


def test_each_epoch_shows_the_pictures_in_another_order_and_otherwise_changed(data, tmp_path, monkeypatch):
    shown, plain = [], TrainingSet.__getitems__

    def watched(self, draws):
        shown.extend((draw.epoch, draw.index) for draw in draws)
        return plain(self, draws)

    monkeypatch.setattr(TrainingSet, "__getitems__", watched)
    train(_config(data, epochs=3), tmp_path / "run")
    orders = [[index for epoch, index in shown if epoch == number] for number in range(3)]
    assert all(sorted(order) == list(range(14)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_computing_activations_twice_saves_memory_and_changes_nothing(data, base, tmp_path):
    config = _config(data, model=str(base), epochs=1)
    plain = train(replace(config, gradient_checkpointing="off"), tmp_path / "plain")
    twice = train(replace(config, gradient_checkpointing="on"), tmp_path / "twice")
    assert any("gradient checkpointing is on" in note for note in twice.notes)
    _close(_weights(twice.model.path), _weights(plain.model.path), 1e-5)


# -- distillation -----------------------------------------------------------------------------------------------------


def test_a_student_comes_to_answer_as_its_teacher_does(data, base, tmp_path):
    teacher = train(_config(data, model=str(base), epochs=4, learning_rate=1e-3), tmp_path / "teacher").model
    told = {"teacher": str(teacher.path), "distil_weight": 1.0, "distil_features": 1.0}
    alone = train(_config(data, epochs=10, augment="none"), tmp_path / "alone")
    taught = train(_config(data, epochs=10, augment="none", **told), tmp_path / "taught")
    untaught = open_model(tmp_path / "taught" / "start")
    torch.manual_seed(0)
    transform = Transform.of(teacher)
    noise = torch.randn(64, 3, 16, 16) * 0.3  # no picture that anyone has learned from
    seen = torch.stack([torch.from_numpy(transform.open_and_apply(file)) for file, _ in taught.images.train])

    def gap(model, pixels):
        with torch.no_grad():
            own, theirs = (load_torch(one)(pixel_values=pixels).logits.softmax(1) for one in (model, teacher))
        return float((own - theirs).abs().mean())

    assert gap(taught.model, noise) < 0.7 * gap(alone.model, noise)
    assert gap(taught.model, seen) < 0.5 * gap(untaught, seen)


def test_a_teacher_of_other_classes_is_refused(data, base, tmp_path):
    with pytest.raises(UserError, match="does not know dark, light") as caught:
        train(_config(data, teacher=str(base)), tmp_path / "run")
    assert "same classes" in caught.value.fix


# -- when things go wrong ---------------------------------------------------------------------------------------------


def test_a_step_that_does_not_fit_into_memory_is_cut_and_the_result_stays(data, tmp_path, monkeypatch):
    config = _config(data, batch_size=7, epochs=2)
    whole = _weights(train(config, tmp_path / "whole").model.path)
    plain = train_loop.Loop.compute_loss

    def hungry(self, model, inputs, *args, **more):
        if len(inputs["pixel_values"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, model, inputs, *args, **more)

    monkeypatch.setattr(train_loop.Loop, "compute_loss", hungry)
    done = train(config, tmp_path / "cut")
    assert any("each step is cut into 4 parts" in note for note in done.notes) and done.steps == 4
    _close(_weights(done.model.path), whole, 1e-4)


def test_not_even_one_picture_fits(data, tmp_path, monkeypatch):
    def starving(*args, **more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_loop.Loop, "compute_loss", starving)
    with pytest.raises(UserError, match="Not even one picture") as caught:
        train(_config(data), tmp_path / "run")
    assert "gradient_checkpointing on" in caught.value.fix


def test_a_disk_that_is_full_for_a_while_is_said_and_the_run_goes_on(data, tmp_path, monkeypatch):
    whole, said = _weights(train(_config(data), tmp_path / "whole").model.path), []
    write_file, calls = disk.write_file, []

    def full(path, chunks):
        calls.append(path)
        if len(calls) in (3, 4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write_file(path, chunks)

    monkeypatch.setattr(disk, "write_file", full)
    done = train(_config(data), tmp_path / "run", lambda event: said.append(event.facts.get("")))
    assert "step 5 not saved: No space left on device; training goes on" in said
    assert all(torch.equal(tensor, whole[name]) for name, tensor in _weights(done.model.path).items())


def test_a_disk_that_stays_full_ends_in_one_line(data, tmp_path, monkeypatch):
    def full(path, chunks):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(disk, "write_file", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        train(_config(data), tmp_path / "run")
    assert "free some space" in caught.value.fix
    assert not (tmp_path / "run" / "model").exists()


def test_a_loss_that_is_no_number_any_more_is_said(data, tmp_path, monkeypatch):
    plain = train_loop.Loop.compute_loss
    monkeypatch.setattr(train_loop.Loop, "compute_loss", lambda *args, **more: plain(*args, **more) * np.nan)
    with pytest.raises(UserError, match="no number any more at step 10") as caught:
        train(_config(data), tmp_path / "run")
    assert "lower learning_rate" in caught.value.fix


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"data": ""}, "No pictures are named"),
        ({"data": "nowhere"}, "There is no folder nowhere"),
        ({"freeze": "half"}, "freeze is 'half'"),
        ({"epochs": 0}, "epochs"),
        ({"mixed_precision": "fp16"}, "fp16 training needs a GPU"),
        ({"new_patch_px": 7}, "does not divide"),
        ({"method": "lora"}, "needs a model that knows something"),
        ({"validation": 0.6, "test": 0.5}, "leave nothing to learn from"),
        ({"device": "cuda"}, "no NVIDIA GPU"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(changes, said, data, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        train(_config(**{"data": data, **changes}), tmp_path / "run")
    assert caught.value.fix and not (tmp_path / "run" / "checkpoints").exists()


def test_presets_are_valid_and_rorshark_has_the_numbers_of_its_card():
    for name in PRESETS:
        assert preset(name, data="x").conflicts() == []
    card = preset("rorshark")
    assert (card.learning_rate, card.batch_size, card.seed, card.epochs) == (2e-5, 8, 1337, 5)
    assert (card.adam_beta1, card.adam_beta2, card.adam_epsilon, card.schedule) == (
        0.9,
        0.999,
        1e-8,
        "linear",
    )
    assert card.validation == 0.15 and card.warmup_steps == 0
    with pytest.raises(UserError, match="no preset"):
        preset("shark")


# -- several processes ------------------------------------------------------------------------------------------------


def test_two_processes_end_where_one_does_and_write_once(data, tmp_path):
    changes = {"batch_size": 5, "epochs": 3, "ema_decay": 0.9, "mixup": 0.3, "cutmix": 0.5}
    config = base_config(data, **changes)
    whole = train(VitTrainConfig(**config), tmp_path / "one")
    job = {"out": str(tmp_path / "two"), "config": config}
    program = f"import json; from vit_runs import run_job; run_job(json.loads({json.dumps(json.dumps(job))}), print)"
    (tmp_path / "job.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
         "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", str(tmp_path / "job.py")],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["steps"] == whole.steps
    assert result["metrics"]["accuracy"] == whole.metrics["accuracy"]
    assert result["metrics"]["loss"] == pytest.approx(whole.metrics["loss"], abs=1e-4)
    _close(_weights(tmp_path / "two" / "model"), _weights(whole.model.path), 1e-4)
    names = [
        sorted(one.path.name for one in list_checkpoints(tmp_path / run / "checkpoints"))
        for run in ("one", "two")
    ]
    assert names[0] == names[1]
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert len([line for line in lines if "eval_loss" in line]) == 3
