import copy
import json
import os
import signal
import threading
import time
from dataclasses import replace
from itertools import count

import pytest
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.training import trainer
from fastsd_lib.training.objective import Objective
from fastsd_lib.training.stage_state import make_state


def _weights(parts):
    return {
        f"{name}.{key}": value
        for name in ("unet", "text_encoder", "vae")
        for key, value in getattr(parts, name).state_dict().items()
    }


def _changed(before, after):
    """The parts of which any weight differs."""
    old, new = _weights(before), _weights(after)
    return {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}


def _stop_after(steps):
    ticks = count(1)
    return lambda: next(ticks) >= steps


def test_the_first_stage_changes_the_text_encoder_alone_and_the_second_the_unet_alone(job):
    _, after_text = job.run("text", unet_steps=0)
    assert _changed(job.parts, after_text) == {"text_encoder"}
    _, after_unet = job.run("unet", text_encoder_steps=0)
    assert _changed(job.parts, after_unet) == {"unet"}


def test_training_lowers_the_loss_on_what_it_has_seen(job):
    job.run(text_encoder_steps=0, unet_steps=40, unet_learning_rate=2e-3, save_every_steps=0)
    losses = [
        json.loads(line)["loss"] for line in (job.folder / "run/logs/metrics.jsonl").read_text().splitlines()
    ]
    assert len(losses) == 40
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("stop", [1, 3, 4, 6])  # within, and at the end of, both stages
@pytest.mark.parametrize(
    "changes",
    [{}, {"class_prompt": "", "gradient_accumulation": 2, "min_snr_gamma": 5.0, "offset_noise": 0.1}],
)
def test_a_run_stopped_anywhere_and_resumed_ends_with_the_very_weights_of_one_never_stopped(
    job, stop, changes
):
    whole, expected = job.run("whole", **changes)
    stopped, _ = job.run("parts", should_stop=_stop_after(stop), **changes)
    assert (stopped.step, stopped.finished) == (stop, False)
    finished, resumed = job.run("parts", **changes)
    assert whole.finished and finished.finished
    assert _changed(expected, resumed) == set()

    def losses(name):
        lines = (job.folder / name / "logs" / "metrics.jsonl").read_text().splitlines()
        return [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines]

    assert losses("whole") == losses("parts")


def test_a_finished_run_is_not_trained_again(job):
    job.run()
    log = job.folder / "run" / "logs" / "metrics.jsonl"
    before = log.read_text()
    again, _ = job.run()
    assert again.finished and log.read_text() == before


def test_other_settings_start_their_own_run_and_bookkeeping_settings_do_not(job):
    base = trainer.run_fingerprint("base", job.training_set, job.config)
    assert (
        trainer.run_fingerprint("base", job.training_set, replace(job.config, unet_learning_rate=1e-5))
        != base
    )
    assert trainer.run_fingerprint("other base", job.training_set, job.config) != base
    assert (
        trainer.run_fingerprint(
            "base", job.training_set, replace(job.config, save_every_steps=7, sample_count=1)
        )
        == base
    )


def test_ctrl_c_saves_the_running_step_and_stops(job):
    pressed = []

    def press_once():
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)
        return False

    handler = signal.getsignal(signal.SIGINT)
    stopped, _ = job.run(should_stop=press_once)
    assert not stopped.finished and stopped.step <= 2
    assert signal.getsignal(signal.SIGINT) is handler  # the caller's own Ctrl-C works again
    assert job.run()[0].finished


@pytest.fixture
def ctrl_c():
    """As in a kernel; a shell that started the tests in the background has had SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_in_a_thread_beside_a_notebook_it_stops_and_saves_when_the_main_thread_was_interrupted(job, ctrl_c):
    asked, ended = threading.Event(), []
    long = {"unet_steps": 200, "save_every_steps": 0}  # so that it is not over before it is interrupted
    thread = threading.Thread(target=lambda: ended.append(job.run(should_stop=asked.is_set, **long)[0]))
    thread.start()
    try:
        while not job.steps_taken("run"):
            time.sleep(0.01)
        signal.raise_signal(signal.SIGINT)  # the kernel's: no handler of training's stands in the way
    except KeyboardInterrupt:
        asked.set()
    thread.join(60)
    assert not ended[0].finished and ended[0].step == job.steps_taken("run")
    assert job.run(**long)[0].finished


def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_change(job):
    with pytest.raises(UserError, match="loss became") as caught:
        job.run(text_encoder_steps=0, unet_learning_rate=1e30, unet_steps=6)
    assert "learning rate" in caught.value.fix


def test_accumulating_two_halves_gives_the_gradient_of_the_whole_batch(job):
    """Slower twin: the losses of two micro-batches, averaged by hand, have the gradient that the trainer applies."""
    config = replace(job.config, gradient_accumulation=2, text_encoder_steps=0)
    (stage,) = trainer.stages_of(config)
    parts = copy.deepcopy(job.parts)
    objective = Objective(parts, job.cache, job.training_set, config)
    objective.freeze_text_encoder()
    state = make_state(stage, parts.unet, config, "cpu")
    wanted = torch.autograd.grad((objective.loss(stage, 0) + objective.loss(stage, 1)) / 2, state.parameters)
    run = trainer._Run(parts, config, objective, None, None, None, None)
    run.accumulate(state)
    for parameter, gradient in zip(state.parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
