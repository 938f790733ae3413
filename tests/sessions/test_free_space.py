"""What can go, what goes, and what never does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions import free_space
from fastsd_lib.sessions.checkpoints import find_damage, list_checkpoints, write_checkpoint
from fastsd_lib.sessions.lock import session_lock
from fastsd_lib.sessions.session import Session, create_session, list_sessions

PNG = b"\x89PNG\r\n\x1a\n"


def save(session: Session, step: int, run: str = "ab" * 8) -> Path:
    files = {"unet.safetensors": lambda: [bytes([step]) * 1000]}
    return write_checkpoint(
        session.checkpoints, step=step, total_steps=99, stage="U-Net", run=run, files=files
    ).path


@pytest.fixture
def session(tmp_path) -> Session:
    """Three checkpoints, one broken save of ours, one folder of somebody else's, caches, photos, scratch files."""
    made = create_session(tmp_path, "my cat")
    for step in (1, 2, 3):
        save(made, step)
    broken = save(made, 4)
    (broken / "manifest.json").unlink()
    (made.checkpoints / "step_mine").mkdir()
    (made.checkpoints / "step_mine" / "thesis.doc").write_bytes(b"x" * 50)
    (made.instance_images / "a.png").write_bytes(PNG)
    (made.class_images / "class-1-0001.png").write_bytes(PNG)
    base = made.path / "cache" / ("base-" + "0" * 16) / "unet"
    base.mkdir(parents=True)
    (base / "weights.safetensors").write_bytes(b"w" * 500)
    (made.path / "cache" / "latents.safetensors").write_bytes(b"l" * 300)
    (made.path / "cache" / "mine.bin").write_bytes(b"m" * 10)
    old, young = made.path / ".a.1.partial.png", made.path / ".b.1.partial.png"
    for path in (old, young):
        path.write_bytes(b"s" * 70)
    os.utime(old, (1, 1))
    made.model_file.write_bytes(b"model")
    return made


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_sizes_add_up_to_what_lies_there_and_looking_changes_nothing(session):
    before = tree(session.path)
    found = free_space.usage(session)
    assert found.bytes == sum(len(data) for data in before.values())
    assert found.parts["cache"] == 810 and found.parts["model"] == 5 and found.parts["photos"] == len(PNG)
    assert set(found.checkpoints) == {"step_000001", "step_000002", "step_000003", "step_000004", "step_mine"}
    assert tree(session.path) == before


def test_what_can_go_goes_and_nothing_else(session):
    before = tree(session.path)
    planned = free_space.usage(session)
    kinds = sorted(one.kind for one in planned.candidates)
    assert kinds == [
        "cache",
        "cache",
        "older checkpoint",
        "older checkpoint",
        "scratch file",
        "unfinished save",
    ]
    freed = free_space.free(session)
    after = tree(session.path)
    gone = {name for name in before if name not in after}
    assert {name.split("/")[1] for name in gone if name.startswith("checkpoints")} == {
        "step_000001", "step_000002", "step_000004",
    }  # fmt: skip
    assert {name for name in gone if not name.startswith("checkpoints")} == {
        "cache/latents.safetensors", "cache/base-0000000000000000/unet/weights.safetensors", ".a.1.partial.png",
    }  # fmt: skip
    assert freed.bytes == planned.free_bytes == sum(len(before[name]) for name in gone)
    assert all(after[name] == before[name] for name in after if name != ".lock.json")
    assert not (session.path / "cache" / "base-0000000000000000").exists()
    assert free_space.usage(session).candidates == ()


def test_keep_is_counted_for_each_run(session):
    for step in (7, 8, 9):
        save(session, step, run="cd" * 8)
    free_space.free(session, keep=2)
    left = [one.step for one in list_checkpoints(session.checkpoints)]
    assert left == [2, 3, 8, 9]
    with pytest.raises(UserError, match="0 checkpoints cannot be kept"):
        free_space.usage(session, keep=0)


def test_an_older_checkpoint_stays_while_the_newest_is_damaged(session):
    newest = session.checkpoints / "step_000003" / "unet.safetensors"
    newest.write_bytes(b"\xff" * 1000)
    freed = free_space.free(session)
    intact = [one.step for one in list_checkpoints(session.checkpoints) if not find_damage(one.path)]
    assert 2 in intact
    assert [line for line in freed.kept if "step_000002" in line]


def test_a_checkpoint_is_unsealed_before_anything_of_it_is_deleted(session, monkeypatch):
    deleted, unlink = [], os.unlink

    def noted(path, *more, **named):
        deleted.append(Path(path))
        return unlink(path, *more, **named)

    monkeypatch.setattr(os, "unlink", noted)
    free_space.free(session)
    names = [path.name for path in deleted if path.parent.name == "step_000001"]
    assert names[0] == "manifest.json" and "unet.safetensors" in names


def test_a_link_is_neither_followed_nor_emptied(session, tmp_path):
    outside = create_session(tmp_path / "elsewhere", "other")
    for step in (1, 2, 3):
        save(outside, step)
    linked = create_session(tmp_path, "linked")
    linked.checkpoints.rmdir()
    linked.checkpoints.symlink_to(outside.checkpoints)
    (linked.path / "cache").symlink_to(session.path / "cache")
    before = tree(outside.path), tree(session.path)
    assert free_space.usage(linked).candidates == ()
    assert free_space.free(linked).deleted == ()
    assert (tree(outside.path), tree(session.path)) == before


def test_nothing_of_a_running_session_goes(session):
    program = (
        "import sys, time; from pathlib import Path; from fastsd_lib.sessions.lock import session_lock\n"
        "with session_lock(Path(sys.argv[1]), 'training'): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(session.path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline().strip() == "held"
        before = tree(session.path)
        found = free_space.usage(session)
        assert found.candidates == () and "training, process" in found.busy
        for attempt in (free_space.free, lambda one: free_space.remove(one, session.path.parents[2], True)):
            with pytest.raises(UserError, match="in use: training"):
                attempt(session)
        assert tree(session.path) == before
    finally:
        other.kill()
        other.wait()
    assert free_space.free(session).deleted  # the lock of a dead one holds nothing


def test_a_removed_session_lies_in_the_trash_whole_until_that_is_emptied(session, tmp_path):
    before = {name: data for name, data in tree(session.path).items() if name != ".lock.json"}
    place = free_space.remove(session, tmp_path)
    assert place.parent == tmp_path / "Fast-Dreambooth" / "trash" and list_sessions(tmp_path) == []
    assert {name: data for name, data in tree(place).items() if name != ".lock.json"} == before
    assert free_space.trash_bytes(tmp_path) == sum(map(len, tree(place).values()))
    assert free_space.empty_trash(tmp_path) > 0
    assert list(free_space.trash_dir(tmp_path).iterdir()) == []


def test_two_removed_sessions_of_one_name_do_not_meet_in_the_trash(tmp_path):
    places = {free_space.remove(create_session(tmp_path, "cat"), tmp_path) for _ in range(3)}
    assert len(places) == 3 and all(place.is_dir() for place in places)


def test_removing_for_good_leaves_nothing_of_it_and_everything_else(session, tmp_path):
    other = create_session(tmp_path, "other")
    before = tree(other.path)
    assert free_space.remove(session, tmp_path, for_good=True) is None
    assert not session.path.exists() and tree(other.path) == before


def test_a_session_that_is_a_link_is_not_removed(session, tmp_path):
    link = session.path.with_name("link")
    link.symlink_to(session.path)
    with pytest.raises(UserError, match="is only a link"):
        free_space.remove(Session(link), tmp_path, for_good=True)
    assert session.model_file.exists()


def test_a_linked_file_in_a_session_is_removed_and_its_target_stays(session, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(PNG)
    (session.path / "mine").symlink_to(tmp_path / "photos")
    free_space.remove(session, tmp_path, for_good=True)
    assert (tmp_path / "photos" / "a.png").read_bytes() == PNG


def test_the_trash_of_drive_is_thought_of(tmp_path):
    assert free_space.on_drive(tmp_path / "MyDrive" / "x") and free_space.on_drive(
        tmp_path / "Shareddrives" / "team"
    )
    assert not free_space.on_drive(tmp_path)
    assert "still counts" in free_space.DRIVE_TRASH


def test_saves_that_a_drive_session_put_aside_can_go(session):
    aside = session.path / "trash" / "step_000009"
    aside.mkdir(parents=True)
    (aside / "unet.safetensors").write_bytes(b"x" * 10)
    (session.path / "trash" / "keep.txt").write_text("mine")
    free_space.free(session)
    assert not aside.exists() and (session.path / "trash" / "keep.txt").exists()


def test_the_lock_is_free_again_afterwards(session):
    free_space.free(session)
    with session_lock(session.path, "training"):
        assert time.time() > 0
