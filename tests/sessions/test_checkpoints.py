"""What a checkpoint on disk promises, apart from crashes (test_crash_points.py tries those)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time

import pytest

from fastsd_lib.core.files import fingerprint, sha256_file, write_json
from fastsd_lib.sessions import checkpoints, sealed_folder
from fastsd_lib.sessions.checkpoints import (
    clear_unfinished,
    discard_run,
    find_damage,
    list_checkpoints,
    newest_intact,
    prune,
    write_checkpoint,
)

RUN = "r" * 16


def _save(folder, step, run=RUN, **more):
    values = {"total_steps": 9, "stage": "U-Net", "facts": {"lr": 1e-05}} | more
    weights = [b"weights of ", b"step %d" % step * 100]
    return write_checkpoint(
        folder, step=step, run=run, files={"unet.safetensors": lambda: weights, "empty.bin": list}, **values
    )


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def _first_release(folder, step, run=RUN):
    """A checkpoint as the first release wrote it: no begun.json, no saved_at, the facts among the rest."""
    path = folder / f"step_{step:06d}"
    path.mkdir(parents=True)
    (path / "unet.safetensors").write_bytes(b"old weights %d" % step)
    files = {
        "unet.safetensors": [
            (path / "unet.safetensors").stat().st_size,
            sha256_file(path / "unet.safetensors"),
        ]
    }
    manifest = {
        "schema": 1, "step": step, "total_steps": 9, "stage": "U-Net", "run": run, "files": files,
        "config": {"unet_learning_rate": 2e-06, "name": "Katze ü"},
    }  # fmt: skip
    write_json(path / "manifest.json", {**manifest, "seal": fingerprint(manifest)})
    return path


def _damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_was_saved_is_listed_with_its_facts_and_every_byte(tmp_path):
    saved = _save(
        tmp_path / "new" / "checkpoints", 3, facts={"lr": 1e-05, "name": "Ünï", "inner": {"1": [2, None]}}
    )
    (found,) = list_checkpoints(tmp_path / "new" / "checkpoints")
    assert found == saved and found.path.name == "step_000003" and not found.finished
    assert found.facts == saved.facts == {"lr": 1e-05, "name": "Ünï", "inner": {"1": [2, None]}}
    assert (found.path / "unet.safetensors").read_bytes() == b"weights of " + b"step 3" * 100
    assert (found.path / "empty.bin").read_bytes() == b"" and find_damage(found.path) == ""
    assert _save(tmp_path, 9).finished


def test_checkpoints_of_the_first_release_load_copy_and_can_be_deleted(tmp_path):
    path = _first_release(tmp_path, 4)
    newest, passed_over = newest_intact(tmp_path, RUN)
    assert newest.path == path and passed_over == [] and newest.saved_at == ""
    assert newest.facts == {"config": {"unet_learning_rate": 2e-06, "name": "Katze ü"}}
    (tmp_path / "drive").mkdir()
    copied = checkpoints.copy_checkpoint(newest, tmp_path / "drive")
    assert find_damage(copied.path) == "" and copied.facts == newest.facts
    _save(tmp_path, 5)
    assert prune(tmp_path, RUN, 1) == ["step_000004"] and _names(tmp_path) == ["drive", "step_000005"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in ("manifest.json", "unet.safetensors", "empty.bin", "begun.json")
        for how in ("flip", "cut", "grow", "remove", "folder")
        if name != "empty.bin" or how not in {"flip", "cut"}
    ],
)
def test_any_damage_to_the_newest_is_found_named_and_the_one_before_is_used(tmp_path, name, how):
    older = _save(tmp_path, 3)
    newest = _save(tmp_path, 6)
    file = newest.path / name
    data = file.read_bytes()
    if how in {"remove", "folder"}:
        file.unlink()
        file.mkdir() if how == "folder" else None
    else:
        _damage(file) if how == "flip" else file.write_bytes(data[:-5] if how == "cut" else data + b"\n")
    found, passed_over = newest_intact(tmp_path, RUN)
    assert found == older
    gone = how in {"remove", "folder"}
    if name == "manifest.json":
        wrong = "was not written to its end" if how == "remove" else "manifest.json is damaged"
    else:
        wrong = f"{name} is {'missing' if gone else 'damaged'}"
    assert passed_over == [f"step_000006: {wrong}"]


def test_a_damaged_newest_falls_back_to_its_copy_on_drive_and_of_equals_the_first_folder_s_is_taken(tmp_path):
    local, drive = tmp_path / "local", tmp_path / "drive"
    drive.mkdir()
    for step in (1, 2):
        checkpoints.copy_checkpoint(_save(local, step), drive)
    assert newest_intact([local, drive], RUN)[0].path == local / "step_000002"
    assert newest_intact([drive, local], RUN)[0].path == drive / "step_000002"
    _damage(local / "step_000002" / "unet.safetensors")
    found, passed_over = newest_intact([local, drive], RUN)
    assert found.path == drive / "step_000002"
    assert passed_over == ["step_000002: unet.safetensors is damaged"]
    assert newest_intact([tmp_path / "nowhere"], RUN) == (None, [])


def test_a_folder_that_cannot_be_read_is_said_and_the_other_is_used(tmp_path, monkeypatch):
    local, drive = tmp_path / "local", tmp_path / "drive"
    saved = _save(local, 1)
    drive.mkdir()
    real = os.listdir

    def listdir(path):
        if str(path) == str(drive):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert newest_intact([local, drive], RUN) == (
        saved, [f"{drive} cannot be read: Transport endpoint is not connected"]
    )  # fmt: skip
    with pytest.raises(OSError):
        list_checkpoints([local, drive])


def test_drive_s_numbered_manifest_counts_when_its_seal_holds(tmp_path):
    saved = _save(tmp_path, 2)
    (saved.path / "manifest.json").rename(saved.path / "manifest (1).json")
    assert newest_intact(tmp_path, RUN)[0] == saved
    (saved.path / "manifest.json").write_text("{}")
    assert newest_intact(tmp_path, RUN)[0] == saved
    _damage(saved.path / "manifest (1).json")
    assert newest_intact(tmp_path, RUN) == (None, ["step_000002: manifest.json is damaged"])


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../../secret": [1, "0"]}},
        {"files": {"/etc/passwd": [1, "0"]}},
        {"files": {"a\\b": [1, "0"]}},
        {"files": ["unet.safetensors"]},
        {"files": {"unet.safetensors": 5}},
        {"step": "3"},
        {"step": True},
        {"run": None},
        {"facts": []},
        {"schema": 2},
    ],
    ids=str,
)
def test_a_strange_manifest_is_none_even_when_its_seal_holds(tmp_path, change):
    saved = _save(tmp_path, 3)
    manifest = json.loads((saved.path / "manifest.json").read_text())
    manifest = {key: value for key, value in (manifest | change).items() if key != "seal"}
    write_json(saved.path / "manifest.json", {**manifest, "seal": fingerprint(manifest)})
    assert list_checkpoints(tmp_path) == [] and newest_intact(tmp_path, RUN)[0] is None


@pytest.mark.parametrize("text", ["", "[]", "nul", "[" * 100_000, '{"seal": 1}', "\ud800", '{"step": 1e999}'])
def test_rubbish_in_place_of_a_manifest_is_passed_over(tmp_path, text):
    saved = _save(tmp_path, 3)
    (saved.path / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert newest_intact(tmp_path, RUN)[0] is None


@pytest.mark.parametrize(
    "name", ["../out", "a/b", "", ".", "manifest.json", "manifest (2).json", "begun.json", "a\0"]
)
def test_a_file_name_that_leads_elsewhere_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(ValueError):
        write_checkpoint(tmp_path / "c", step=1, total_steps=1, stage="U-Net", run=RUN, files={name: list})
    assert not (tmp_path / "c").exists()


def test_a_name_that_is_taken_is_never_written_into(tmp_path):
    (tmp_path / "step_000003").mkdir()
    (tmp_path / "step_000003" / "notes.txt").write_text("mine")
    (tmp_path / "step_000003-rrrrrrrr").write_text("a file")
    paths = [
        _save(tmp_path, 3).path.name,
        _save(tmp_path, 3).path.name,
        _save(tmp_path, 3, run="b" * 16).path.name,
    ]
    assert paths == ["step_000003-rrrrrrrr-2", "step_000003-rrrrrrrr-3", "step_000003-bbbbbbbb"]
    assert newest_intact(tmp_path, RUN)[0].path.name == "step_000003-rrrrrrrr-3"
    assert _names(tmp_path / "step_000003") == ["notes.txt"]


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "read error", "local.bin"), RuntimeError("torch"), KeyboardInterrupt()]
)
def test_a_save_whose_content_fails_raises_that_and_leaves_only_the_older_ones(tmp_path, error):
    _save(tmp_path, 3)

    def content():
        yield b"half"
        raise error

    with pytest.raises(type(error)) as caught:
        write_checkpoint(tmp_path, step=6, total_steps=9, stage="U-Net", run=RUN, files={"unet": content})
    assert caught.value is error and _names(tmp_path) == ["step_000003"]


def test_a_buffer_that_changes_while_it_is_written_is_found_out(tmp_path, monkeypatch):
    buffer, real = bytearray(b"x" * 1000), os.write

    def write(handle, data):
        written = real(handle, data)
        buffer[0] ^= 1  # the training goes on too early
        return written

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="other bytes than were written") as caught:
        write_checkpoint(
            tmp_path,
            step=1,
            total_steps=9,
            stage="U-Net",
            run=RUN,
            files={"unet": lambda: [memoryview(buffer)]},
        )
    assert caught.value.filename == str(tmp_path / "step_000001" / "unet") and _names(tmp_path) == []


def test_without_space_for_1_3_times_the_save_nothing_is_begun(tmp_path, monkeypatch):
    _save(tmp_path, 1)
    free = shutil.disk_usage(tmp_path)._replace(free=129 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OSError) as caught:
        _save(tmp_path, 2, expected_bytes=100 << 20)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    assert caught.value.strerror == "129 MiB are free, a checkpoint needs 130"
    assert _names(tmp_path) == ["step_000001"]
    _save(tmp_path, 2, expected_bytes=99 << 20)


def test_pruning_keeps_the_newest_the_milestones_other_runs_and_what_it_did_not_make(tmp_path):
    for step in range(1, 8):
        _save(tmp_path, step)
    _save(tmp_path, 1, run="b" * 16)
    (tmp_path / "step_000000").mkdir()
    (tmp_path / "step_000000" / "notes.txt").write_text("mine")
    (tmp_path / "step_000001" / "notes.txt").write_text("mine, too")
    assert prune(tmp_path, RUN, 2, keep_every_steps=3) == [f"step_00000{step}" for step in (1, 2, 4, 5)]
    assert [one.step for one in list_checkpoints(tmp_path, RUN)] == [3, 6, 7]
    assert _names(tmp_path / "step_000001") == ["begun.json", "notes.txt"]
    assert _names(tmp_path) == [
        "step_000000", "step_000001", "step_000001-bbbbbbbb", "step_000003", "step_000006", "step_000007"
    ]  # fmt: skip


def test_pruning_does_not_count_damaged_ones_and_deletes_nothing_newer_than_what_is_proven(tmp_path):
    saved = [_save(tmp_path, step) for step in (1, 2, 3, 4)]
    (saved[3].path / "unet.safetensors").write_bytes(b"")
    checkpoints._proven.clear()  # as in a new program
    _damage(saved[2].path / "unet.safetensors")  # same size: only a hash can tell
    assert prune(tmp_path, RUN, 1) == ["step_000001"]
    assert newest_intact(tmp_path, RUN)[0].step == 2


def test_a_checkpoint_that_drive_shows_as_empty_is_not_what_others_are_deleted_for(tmp_path):
    for step in (1, 2, 3):
        newest = _save(tmp_path, step)
    (newest.path / "unet.safetensors").write_bytes(b"")
    assert prune(tmp_path, RUN, 1, confirmed=lambda one: True) == ["step_000001"]
    assert newest_intact(tmp_path, RUN)[0].step == 2


def test_pruning_waits_for_a_confirmation_and_never_empties_the_folder(tmp_path):
    for step in (1, 2, 3):
        _save(tmp_path, step)
    assert prune(tmp_path, RUN, 1, confirmed=lambda one: False) == []
    assert prune(tmp_path, RUN, 1, confirmed=lambda one: one.step == 2) == ["step_000001"]
    assert prune(tmp_path, RUN, 0) == ["step_000002"]
    assert [one.step for one in list_checkpoints(tmp_path)] == [3]


def test_starting_over_discards_this_run_only(tmp_path):
    _save(tmp_path, 1)
    other = _save(tmp_path, 2, run="b" * 16)
    discard_run(tmp_path, RUN)
    assert list_checkpoints(tmp_path) == [other] and _names(tmp_path) == ["step_000002"]


def test_only_our_own_unfinished_saves_are_cleared(tmp_path):
    kept = _save(tmp_path, 1)
    broken, torn, empty = (tmp_path / f"step_00000{n}" for n in (2, 3, 4))
    shutil.copytree(kept.path, broken)
    (broken / "manifest.json").write_bytes((kept.path / "manifest.json").read_bytes()[:40])
    torn.mkdir()
    (torn / "begun.json").write_text('{"made')
    empty.mkdir()
    foreign, damaged, mixed = (tmp_path / f"step_00000{n}" for n in (5, 6, 7))
    foreign.mkdir()
    (foreign / "weights.bin").write_text("of another program")
    shutil.copytree(kept.path, damaged)
    _damage(damaged / "manifest.json")
    shutil.copytree(broken, mixed)
    (mixed / "notes.txt").write_text("mine")
    assert clear_unfinished(tmp_path) == ["step_000002", "step_000003", "step_000004", "step_000007"]
    assert _names(tmp_path) == ["step_000001", "step_000005", "step_000006", "step_000007"]
    assert _names(mixed) == ["begun.json", "notes.txt"] and _names(foreign) == ["weights.bin"]


def test_on_drive_an_unfinished_save_goes_to_the_trash_after_a_day_and_is_never_deleted(tmp_path):
    folder = tmp_path / "session" / "checkpoints"
    for step in (1, 2):
        path = _save(folder, step).path
        (path / "manifest.json").unlink()
    assert clear_unfinished(folder, remote=True) == []
    for file in (folder / "step_000001").iterdir():
        os.utime(file, (time.time() - 25 * 3600,) * 2)
    assert clear_unfinished(folder, remote=True) == ["step_000001"]
    assert _names(folder) == ["step_000002"]
    assert _names(folder.parent / "trash" / "step_000001") == ["begun.json", "empty.bin", "unet.safetensors"]


def test_a_link_is_read_but_nothing_is_deleted_through_it(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    _save(elsewhere, 1)
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step_000001").symlink_to(elsewhere / "step_000001")
    _save(folder, 2)
    prune(folder, RUN, 1)
    discard_run(folder, RUN)
    assert find_damage(elsewhere / "step_000001") == "" and _names(folder) == ["step_000001"]


def test_what_a_broken_disk_did_not_let_go_is_deleted_by_the_next_save(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", broken)
        with pytest.raises(OSError, match="Input/output error"):
            write_checkpoint(tmp_path, step=1, total_steps=9, stage="U-Net", run=RUN, files={"unet": broken})
    assert _names(tmp_path) == ["step_000001"]
    assert _save(tmp_path, 2).path.name == "step_000002" and _names(tmp_path) == ["step_000002"]


def test_what_others_cleared_after_a_broken_save_is_forgotten_and_its_name_used_again(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", broken)
        with pytest.raises(OSError, match="Input/output error"):
            write_checkpoint(tmp_path, step=1, total_steps=9, stage="U-Net", run=RUN, files={"unet": broken})
    shutil.rmtree(tmp_path / "step_000001")
    for step in (1, 2):
        _save(tmp_path, step)
    assert [one.path.name for one in list_checkpoints(tmp_path)] == ["step_000001", "step_000002"]
    assert sealed_folder._left_behind == []
