"""One door for both kinds of model files: written, compared, and nothing of dead processes left lying."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, remove_leftovers
from fastsd_lib.core.pickle_header import read_pickle_header
from fastsd_lib.core.progress import silent
from fastsd_lib.core.tensor_file import ByteRange, NewTensor, read_tensor_file
from fastsd_lib.formats.writing import write_and_verify

VALUES = np.arange(300_000, dtype="<f4")


def tensors(folder: Path) -> list[NewTensor]:
    """One copied from a file, one brought as bytes."""
    source = folder / "source"
    source.write_bytes(b"some header" + VALUES.tobytes())
    return [
        NewTensor.copied("copied", "F32", (300, 1000), [ByteRange(source, 11, 11 + VALUES.nbytes)]),
        NewTensor("made", "F32", (300_000,), lambda: [VALUES[:99].tobytes(), VALUES[99:].tobytes()]),
    ]


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device that forgets")
def test_a_disk_that_gives_back_other_bytes_is_found(tmp_path, name):
    lying = tmp_path / f".scratch{Path(name).suffix}"
    lying.symlink_to("/dev/zero")  # takes all that is written, and gives back zeros
    with pytest.raises(UserError, match=rf"{name} reads back differently .*first at copied") as error:
        write_and_verify(lying, tmp_path / name, tensors(tmp_path), {}, silent)
    assert error.value.fix == "write to another disk."


def test_what_killed_processes_left_of_this_file_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    final = tmp_path / "m.safetensors"
    left = tmp_path / f".m.{gone.pid}.partial.safetensors"
    kept = [
        tmp_path / f".m.{os.getppid()}.partial.safetensors",  # of one that runs
        tmp_path / f".m.{gone.pid}.partial.ckpt",  # of another file
        tmp_path / f".mm.{gone.pid}.partial.safetensors",
        tmp_path / f"m.{gone.pid}.partial.safetensors",
        tmp_path / ".m.x.partial.safetensors",
        tmp_path / ".m.999999999999999999999999.partial.safetensors.bak",
    ]
    for path in (left, *kept):
        path.write_bytes(b"half")
    link = tmp_path / f".m.{gone.pid}0000000.partial.safetensors"
    link.symlink_to(kept[0])
    given = tensors(tmp_path)
    with atomic_path(final) as scratch:
        write_and_verify(scratch, final, given, {}, silent)
    assert {path.name for path in tmp_path.iterdir()} == {
        path.name for path in (final, link, tmp_path / "source", *kept)
    }
    assert b"".join(read_tensor_file(final).chunks("made")) == VALUES.tobytes()


def test_folders_that_killed_processes_left_half_written_are_removed_as_well(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f".model.{gone.pid}.partial", f".model.{os.getpid()}.partial", f".other.{gone.pid}.partial"):
        (tmp_path / name / "unet").mkdir(parents=True)
    remove_leftovers(tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {
        f".model.{os.getpid()}.partial",
        f".other.{gone.pid}.partial",
    }


@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_a_source_that_ends_too_early_is_named_and_nothing_is_left(tmp_path, name):
    given = tensors(tmp_path)
    with (tmp_path / "source").open("r+b") as file:
        file.truncate(1_000_000)
    with pytest.raises(UserError, match="source ends in the middle of its tensors"):
        with atomic_path(tmp_path / name) as scratch:
            write_and_verify(scratch, tmp_path / name, given, {}, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_every_tensor_is_told_of_and_the_end_as_well(tmp_path):
    told = []
    given = tensors(tmp_path)
    write_and_verify(tmp_path / "m.safetensors", tmp_path / "m.safetensors", given, {}, told.append)
    assert [(event.task, event.done, event.total) for event in told] == [
        ("writing m.safetensors", done, 2) for done in (0, 1, 2)
    ]


SLOW = """
import sys, time
from pathlib import Path
from fastsd_lib.core.files import atomic_path, remove_leftovers
from fastsd_lib.core.progress import silent
from fastsd_lib.core.tensor_file import NewTensor
from fastsd_lib.formats.writing import write_and_verify

def chunks():
    for _ in range(10):
        time.sleep(0.002)
        yield bytes(5000)

final = Path(sys.argv[1])
tensors = [NewTensor(str(n), "U8", (50_000,), chunks) for n in range(8)]
print("began", flush=True)
with atomic_path(final) as scratch:
    write_and_verify(scratch, final, tensors, {}, silent)
print("done", flush=True)
"""


def killed_while_writing(final: Path, after_s: float) -> bool:
    """Whether a process that writes `final` was killed before it told of the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(final)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert child.stdout.readline() == b"began\n"
    time.sleep(after_s)
    child.kill()
    told = child.communicate()[0]
    return told == b""


@pytest.mark.skipif(os.name != "posix", reason="a kill that nobody can catch")
@pytest.mark.parametrize("name", ["m.safetensors", "m.ckpt"])
def test_killed_at_any_moment_it_leaves_nothing_under_the_final_name(tmp_path, name):
    final, moments = tmp_path / name, random.Random(name)
    read = read_pickle_header if final.suffix == ".ckpt" else read_tensor_file
    killed, left = 0, 0
    for number in range(12):
        killed += killed_while_writing(final, moments.uniform(0, 0.25) * (number > 0))
        if final.exists():  # it was done before: then it is whole
            assert {one.shape for one in read(final).tensors.values()} == {(50_000,)}
            final.unlink()
        scratches = list(tmp_path.iterdir())
        assert len(scratches) <= 1  # what the one before had left is gone
        left += len(scratches)
    assert killed >= 6 and left >= 4, "the machine is too fast or too slow for this test to show anything"
    given = [NewTensor("w", "U8", (2,), lambda: [b"hi"])]
    with atomic_path(final) as scratch:
        write_and_verify(scratch, final, given, {}, silent)
    assert list(tmp_path.iterdir()) == [final]
