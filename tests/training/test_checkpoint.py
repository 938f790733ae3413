import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastsd_lib.core.files import fingerprint, sha256_file, write_json
from fastsd_lib.sessions.checkpoints import find_damage, newest_intact, write_checkpoint
from fastsd_lib.training import checkpoint as files
from fastsd_lib.training import trainer


def _write(folder, contents, **facts):
    return write_checkpoint(
        folder, step=3, total_steps=9, stage="U-Net", run="r" * 16, files=contents, facts=facts
    )


@pytest.mark.parametrize("dtype", list(files._DTYPES), ids=str)
def test_tensors_of_every_kind_and_shape_are_read_back_bit_for_bit_by_safetensors_itself(tmp_path, dtype):
    torch.manual_seed(0)
    values = {
        "matrix": (torch.randn(5, 7) * 50).to(dtype),
        "number": torch.tensor(3).to(dtype),
        "nothing": torch.zeros(0, 4, dtype=dtype),
        "turned": torch.arange(12).reshape(3, 4).to(dtype).T,
        "a byte before it": torch.tensor([1, 2, 3], dtype=torch.uint8),
    }
    saved = _write(tmp_path, {"w.safetensors": files.tensor_file(values)})
    found = load_file(saved.path / "w.safetensors")
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


def test_the_optimizer_comes_back_bit_for_bit(tmp_path):
    module, other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
    for _ in range(3):
        module(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
    held = files.optimizer_tensors(optimizer)
    saved = _write(tmp_path, {files.OPTIMIZER_FILE: files.tensor_file(held)})
    again = torch.optim.AdamW(other.parameters(), lr=1e-2, fused=True)
    files.load_optimizer(saved, again)
    before, after = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(before[i][key], after[i][key]) for i in before for key in before[i])


def test_every_generator_goes_on_where_it_stood(tmp_path):
    def draw():
        return (
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.randn(),
            torch.rand(3).tolist(),
        )

    random.gauss(0, 1), np.random.randn()  # a second value of each pair is waiting now
    state = files.random_state()
    saved = _write(tmp_path, {files.RANDOM_FILE: lambda: (state,)})
    wanted = draw()
    assert draw() != wanted
    files.restore_random_state(saved)
    assert draw() == wanted


def _as_the_first_release_wrote_it(folder, step, parts, names, optimizer, run, stage, total):
    """The directory as the code before this one left it: no begun.json, no facts, no random state."""
    path = folder / f"step_{step:06d}"
    path.mkdir(parents=True)
    for name in names:
        save_file(getattr(parts, name).state_dict(), path / f"{name}.safetensors")
    save_file(optimizer, path / "optimizer.safetensors")
    manifest = {
        "schema": 1,
        "step": step,
        "total_steps": total,
        "stage": stage,
        "run": run,
        "files": {one.name: [one.stat().st_size, sha256_file(one)] for one in sorted(path.iterdir())},
        "config": {"instance_prompt": "photo of sks cat"},
        "torch": torch.__version__,
    }
    write_json(path / "manifest.json", {**manifest, "seal": fingerprint(manifest)})


@pytest.mark.parametrize("stop", [3, 6])  # in either stage
def test_a_checkpoint_of_the_first_release_is_resumed_to_the_same_weights(job, stop):
    _, expected = job.run("whole")
    stopped, parts = job.run("new", should_stop=lambda: job.steps_taken("new") >= stop)
    optimizer = load_file(stopped.path / "optimizer.safetensors")
    names = ["text_encoder"] if stop == 3 else ["text_encoder", "unet"]
    _as_the_first_release_wrote_it(
        job.folder / "old/checkpoints", stop, parts, names, optimizer, stopped.run, stopped.stage, 9
    )
    found, _ = newest_intact(job.folder / "old/checkpoints", stopped.run)
    assert found.step == stop and find_damage(found.path) == ""
    finished, resumed = job.run("old")
    assert finished.finished and resumed is not parts
    for name in ("unet", "text_encoder"):
        wanted = getattr(expected, name).state_dict()
        assert all(torch.equal(wanted[key], one) for key, one in getattr(resumed, name).state_dict().items())


def test_settings_that_came_later_do_not_rename_runs_of_before(job):
    """The number is what the code before them gave for this very training set and config."""
    run = trainer.run_fingerprint("base", job.training_set, job.config)
    choices = {
        "instance_prompt": "photo of sks cat", "class_prompt": "photo of a cat", "class_images": 3,
        "prior_loss_weight": 1.0, "resolution_px": 64, "unet_steps": 5, "unet_learning_rate": 1e-3,
        "text_encoder_steps": 4, "text_encoder_learning_rate": 1e-3, "batch_size": 2,
        "gradient_accumulation": 1, "warmup_steps": 0, "schedule": "linear", "mixed_precision": "no",
        "min_snr_gamma": 0.0, "offset_noise": 0.0, "flip": True, "seed": 42,
    }  # fmt: skip
    assert run == fingerprint(["base", job.training_set.fingerprint, choices])


def test_a_run_that_goes_on_with_other_software_says_what_differs(job):
    stopped, _ = job.run("run", should_stop=lambda: job.steps_taken("run") >= 2)
    assert files.what_changed(stopped, "cpu") == ""
    facts = {**stopped.facts, "circumstances": {**stopped.facts["circumstances"], "torch": "1.0"}}
    other = type(stopped)(stopped.path, 2, 9, "U-Net", "r", facts=facts)
    assert files.what_changed(other, "cpu") == f"torch {torch.__version__} instead of 1.0"
