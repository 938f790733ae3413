"""A training that was killed and one that was not end with the very same weights; each process here is a new one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_vit import make_vit
from vit_runs import Runs, base_config, make_pictures

from fastsd_lib.sessions.checkpoints import list_checkpoints

STEPS = 15  # 14 training pictures, 3 at a time, 3 epochs
WAYS = {
    "plain": {"keep_best": False},
    "all that draws": {
        "mixup": 0.4, "cutmix": 1.0, "erase": 0.5, "label_smoothing": 0.1, "balance": "sampler", "ema_decay": 0.9,
    },
    "accumulated in bf16": {
        "gradient_accumulation": 2, "epochs": 5, "mixed_precision": "bf16", "layer_decay": 0.7, "schedule": "linear",
        "warmup_steps": 4,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def runs():
    server = Runs()
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(runs, data, tmp_path_factory):
    """Runs that were never stopped, made once each."""
    folder, made = tmp_path_factory.mktemp("whole"), {}

    def of(name, config):
        if name not in made:
            code, said = runs.run(folder / name, config)
            assert code == 0, said
            made[name] = _state(folder / name)
        return made[name]

    return of


def _state(out: Path) -> dict[str, bytes]:
    """The model that came out, and all that the last checkpoint holds: weights, average, moments, schedule."""
    last = list_checkpoints(out / "checkpoints")[-1]
    assert last.finished
    held = {file.name: file.read_bytes() for file in last.path.iterdir() if file.suffix == ".safetensors"}
    held["state"] = (last.path / "state.json").read_bytes()
    return held | {"model": (out / "model" / "model.safetensors").read_bytes()}


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_different_steps_it_ends_with_the_same_bits(way, runs, data, whole, tmp_path):
    config = base_config(data, **WAYS[way])
    expected = whole(way, config)
    for step in (1, 6, 11):
        code, _ = runs.run(tmp_path / "run", config, kill_at_step=step)
        assert code == -9
    code, said = runs.run(tmp_path / "run", config)
    assert code == 0 and "goes on from step 10" in said, said
    assert _state(tmp_path / "run") == expected


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_saves_the_step_that_it_comes_in_and_the_run_ends_with_the_same_bits(
    way, runs, data, whole, tmp_path
):
    config = base_config(data, **WAYS[way], save_every_steps=0)
    expected = whole(f"{way}, saved by epoch", config)
    for step in (3, 5, 7):  # of 5 in an epoch
        code, said = runs.run(tmp_path / "run", config, stop_at_step=step)
        assert code == 1 and f"TrainingStopped: Stopped, saved at step {step} of 15." in said
        assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1].step == step
    code, said = runs.run(tmp_path / "run", config)
    assert code == 0 and "goes on from step 7" in said, said
    assert _state(tmp_path / "run") == expected


def test_killed_in_the_middle_of_any_write_it_ends_with_the_same_bits(runs, data, whole, tmp_path):
    config = base_config(data, **WAYS["all that draws"])
    expected = whole("all that draws", config)
    for write in (2, 5, 6, 8, 13):
        assert runs.run(tmp_path / "run", config, kill_at_write=write)[0] == -9
    assert runs.run(tmp_path / "run", config)[0] == 0
    assert _state(tmp_path / "run") == expected
    unsealed = [
        path
        for path in (tmp_path / "run" / "checkpoints").iterdir()
        if not (path / "manifest.json").is_file()
    ]
    assert unsealed == []


def test_dropout_and_lora_are_resumed_to_the_bit_too(runs, data, whole, tmp_path):
    base = make_vit(tmp_path / "base", classes=("a", "b", "c"), image_px=16)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps({**settings, "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.2})
    )
    for method in ("full", "lora"):
        config = base_config(data, model=str(base), method=method, lora_rank=2)
        expected = whole(f"dropout {method}", config)
        for step in (3, 8):
            assert runs.run(tmp_path / method, config, kill_at_step=step)[0] == -9
        assert runs.run(tmp_path / method, config)[0] == 0
        assert _state(tmp_path / method) == expected


def test_a_damaged_checkpoint_is_passed_over_and_said(runs, data, whole, tmp_path):
    config = base_config(data, **WAYS["plain"])
    assert runs.run(tmp_path / "run", config, kill_at_step=9)[0] == -9
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    file = newest.path / "optimizer.safetensors"
    spoilt = bytearray(file.read_bytes())
    spoilt[-3] ^= 1
    file.write_bytes(spoilt)
    code, said = runs.run(tmp_path / "run", config)
    assert code == 0
    assert f"passed over: {newest.path.name}: optimizer.safetensors is damaged" in said
    assert "goes on from step 6" in said
    assert _state(tmp_path / "run") == whole("plain", config)


def test_a_finished_run_is_not_run_again_and_its_model_is_made_again_when_lost(runs, data, tmp_path):
    config = base_config(data)
    assert runs.run(tmp_path / "run", config)[0] == 0
    first = _state(tmp_path / "run")
    assert runs.run(tmp_path / "run", config, kill_at_step=1) == (0, "")
    shutil.rmtree(tmp_path / "run" / "model")
    code, said = runs.run(tmp_path / "run", config, kill_at_step=1)
    assert code == 0, said
    assert _state(tmp_path / "run") == first


def test_other_settings_or_pictures_begin_another_run(runs, data, tmp_path):
    config = base_config(data)
    assert runs.run(tmp_path / "run", config, kill_at_step=9)[0] == -9
    code, said = runs.run(tmp_path / "run", {**config, "seed": 4})
    assert code == 0 and "goes on" not in said
    pictures = shutil.copytree(data, tmp_path / "pictures")
    assert runs.run(tmp_path / "run", config)[1].count("goes on from step 8") == 1
    (pictures / "dark" / "0.png").unlink()
    code, said = runs.run(tmp_path / "run", {**config, "data": str(pictures)})
    assert code == 0 and "goes on" not in said


def test_the_lines_of_figures_tell_each_step_once(runs, data, tmp_path):
    config = base_config(data)
    for step in (7, 11):
        assert runs.run(tmp_path / "run", config, kill_at_step=step)[0] == -9
    assert runs.run(tmp_path / "run", config)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    judged = [line["step"] for line in lines if "eval_accuracy" in line]
    assert judged == [5, 10, 15]
