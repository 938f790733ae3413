"""A run that was interrupted and one that was not are the same run: each process here is a new one."""

import json

import pytest
from micro_runs import CONFIG, Runs

from fastsd_lib.sessions.checkpoints import list_checkpoints

ALL_STEPS = CONFIG.text_encoder_steps + CONFIG.unet_steps
EVERYTHING = {
    "prior_target": "base",
    "gradient_accumulation": 2,
    "mixed_precision": "bf16",
    "ema_decay": 0.9,
    "min_snr_gamma": 5.0,
    "offset_noise": 0.1,
}
RUNS = {
    "no prior": {"class_prompt": ""},
    "prior of images": {},
    "prior of the base model": {"prior_target": "base"},
    "accumulation": {"gradient_accumulation": 2},
    "bf16": {"mixed_precision": "bf16"},
    "average weights": {"ema_decay": 0.9},
    "everything": EVERYTHING,
}
ALL_RUNS = [
    pytest.param({"method": method, **changes}, id=f"{method}, {name}")
    for method in ("full", "lora")
    for name, changes in RUNS.items()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder):
    server = Runs(folder)
    yield server
    server.close()


def _name(changes):
    return "-".join(f"{key}={value}" for key, value in changes.items()).replace(" ", "_") or "plain"


def _whole(runs, folder, changes):
    """The run that was never interrupted: its weights and losses."""
    name = f"whole-{_name(changes)}"
    if not (folder / name).exists():
        assert runs.run(name, changes).code == 0
    return runs.weights(name, changes), runs.losses(name)


@pytest.mark.parametrize("changes", ALL_RUNS)
def test_interrupted_after_every_single_step_it_ends_with_the_same_losses_and_bits(runs, folder, changes):
    weights, losses = _whole(runs, folder, changes)
    name = f"steps-{_name(changes)}"
    for _ in range(ALL_STEPS):
        assert runs.run(name, changes, stop_after=1).error == ""
    assert runs.losses(name) == losses and len(losses) == ALL_STEPS
    assert runs.weights(name, changes) == weights


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("step", range(1, ALL_STEPS))
def test_interrupted_once_at_any_step_it_ends_with_the_same_losses_and_bits(runs, folder, step, method):
    changes = {"method": method, **EVERYTHING}
    weights, losses = _whole(runs, folder, changes)
    name = f"once-{method}-{step}"
    assert runs.run(name, changes, stop_after=step).code == 0
    assert list_checkpoints(folder / name / "checkpoints")[-1].step == step
    assert runs.run(name, changes).code == 0
    assert (runs.weights(name, changes), runs.losses(name)) == (weights, losses)


def test_a_python_that_was_started_anew_goes_on_to_the_same_bits(runs, folder):
    weights, losses = _whole(runs, folder, EVERYTHING)
    assert runs.run("anew", EVERYTHING, stop_after=9).code == 0
    (folder / "other").mkdir()
    (folder / "other" / "anew").symlink_to(folder / "anew")
    other = Runs(folder / "other")
    try:
        assert other.run("anew", EVERYTHING).code == 0
    finally:
        other.close()
    assert (runs.weights("anew", EVERYTHING), runs.losses("anew")) == (weights, losses)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("step", [5, 9])  # no save is due there
def test_a_signal_saves_the_running_step_and_ends_the_process_in_order(runs, folder, name, step):
    weights, losses = _whole(runs, folder, {})
    run = f"{name}-{step}"
    ended = runs.run(run, signal_at=step - 1, signal=name)  # when that one is done: the next one is running
    assert (ended.code, ended.error) == (0, "")
    assert list_checkpoints(folder / run / "checkpoints")[-1].step == step
    assert runs.run(run).code == 0
    assert (runs.weights(run), runs.losses(run)) == (weights, losses)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_at_once_and_what_was_saved_before_is_gone_on_from(runs, folder, name):
    weights, losses = _whole(runs, folder, {})
    run = f"twice-{name}"
    ended = runs.run(run, signal_at=9, signal=name, signals=2)
    assert ended.code == 1 and "KeyboardInterrupt" in ended.error
    held = list_checkpoints(folder / run / "checkpoints")
    assert held and held[-1].step <= 8
    assert runs.run(run).code == 0
    assert (runs.weights(run), runs.losses(run)) == (weights, losses)


def test_an_error_in_mid_run_is_raised_once_the_last_whole_step_is_saved(runs, folder):
    weights, losses = _whole(runs, folder, {})
    ended = runs.run("error", raise_at=5)
    assert ended.code == 1 and "the panel broke" in ended.error
    assert list_checkpoints(folder / "error/checkpoints")[-1].step == CONFIG.text_encoder_steps + 5
    assert runs.run("error").code == 0
    assert (runs.weights("error"), runs.losses("error")) == (weights, losses)


def test_a_checkpoint_says_what_made_it(runs, folder):
    _whole(runs, folder, EVERYTHING)
    last = list_checkpoints(folder / f"whole-{_name(EVERYTHING)}" / "checkpoints")[-1]
    facts = json.loads((last.path / "manifest.json").read_text())["facts"]
    assert facts["config"]["prior_target"] == "base" and len(facts["config_hash"]) == 16
    assert facts["position"] == {"stage_step": 8, "draws": 16, "instances": 32}
    assert facts["circumstances"]["threads"] == 1
    names = {path.name for path in last.path.iterdir()}
    assert names == {
        "begun.json", "live.safetensors", "manifest.json", "optimizer.safetensors", "random.json",
        "text_encoder.safetensors", "unet.safetensors",
    }  # fmt: skip


def test_killed_at_200_random_times_it_opens_goes_on_and_ends_with_the_same_bits(runs, folder):
    """SIGKILL, saves every 2 steps in a thread beside the training; from the start again after each whole run."""
    result = runs.killed_at_random("killed", times=200, seed=1)
    assert "error" not in result, result
    assert result["kills"] == 200
    assert result["lost"] == 0, "steps that had been announced as safe"
    assert result["finished"] == result["runs"] >= 5
    assert result["where"]["in a save"] >= 20, "most kills missed the saves"
