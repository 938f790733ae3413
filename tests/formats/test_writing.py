"""One door for both kinds of model files: written, compared, and nothing of dead processes left lying."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
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
