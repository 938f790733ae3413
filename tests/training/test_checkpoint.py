import copy

import pytest
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.training import checkpoint as store


def _save(folder, step, run="r" * 16, seed=0, optimizer=None):
    torch.manual_seed(seed)
    module = torch.nn.Linear(4, 4)
    return module, store.save_checkpoint(
        folder,
        step=step,
        total_steps=9,
        stage="U-Net",
        run=run,
        modules={"unet": module},
        optimizer=optimizer,
        extra={"config": {}},
    )


def test_weights_and_optimizer_come_back_bit_for_bit(tmp_path):
    module = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
    for _ in range(3):
        module(torch.randn(2, 4)).square().sum().backward()
        optimizer.step()
    saved = store.save_checkpoint(
        tmp_path,
        step=3,
        total_steps=9,
        stage="U-Net",
        run="a",
        modules={"unet": module},
        optimizer=optimizer,
        extra={},
    )
    other = torch.nn.Linear(4, 4)
    again = torch.optim.AdamW(other.parameters(), lr=1e-2, fused=True)
    store.load_weights(saved, "unet", other)
    store.load_optimizer(saved, again)
    before, after = optimizer.state_dict()["state"], again.state_dict()["state"]
    assert all(torch.equal(before[i][key], after[i][key]) for i in before for key in before[i])
    assert torch.equal(module.weight, other.weight)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over_with_the_reason(tmp_path, damage):
    _save(tmp_path, 3)
    _, newest = _save(tmp_path, 6, seed=1)
    file = newest.path / ("manifest.json" if damage == "manifest" else "unet.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data[:-5] if damage == "cut" else data)
    found, rejected = store.newest_intact(tmp_path, "r" * 16)
    assert found.step == 3
    # A broken seal makes it no checkpoint at all; any other damage is named.
    assert rejected == (
        []
        if damage == "manifest"
        else [f"step_000006: unet.safetensors is {'missing' if damage == 'remove' else 'damaged'}"]
    )


def test_a_save_that_fails_leaves_the_older_checkpoint_and_nothing_else(tmp_path, monkeypatch):
    _save(tmp_path, 3)
    real = store.write_json

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(UserError, match=r"step 6 could not be written.*No space left") as caught:
        _save(tmp_path, 6)
    assert "--resume" in caught.value.fix
    monkeypatch.setattr(store, "write_json", real)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000003"]
    assert store.find_damage(tmp_path / "step_000003") == ""


def test_another_run_s_checkpoint_of_the_same_step_is_not_overwritten_or_resumed(tmp_path):
    first, old = _save(tmp_path, 3, run="a" * 16)
    _, new = _save(tmp_path, 3, run="b" * 16, seed=1)
    assert old.path != new.path and store.find_damage(old.path) == store.find_damage(new.path) == ""
    assert store.newest_intact(tmp_path, "a" * 16)[0] == old
    back = copy.deepcopy(first)
    store.load_weights(old, "unet", back)
    assert torch.equal(back.weight, first.weight)


def test_pruning_keeps_the_newest_of_this_run_and_whatever_it_did_not_make(tmp_path):
    for step in (1, 2, 3):
        _save(tmp_path, step, run="a" * 16)
    _save(tmp_path, 4, run="b" * 16)
    (tmp_path / "step_000009").mkdir()
    (tmp_path / "step_000009" / "notes.txt").write_text("mine")
    store.prune(tmp_path, "a" * 16, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000003", "step_000004", "step_000009"]
