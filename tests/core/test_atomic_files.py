from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsd_lib.core import files
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import (
    atomic_path,
    fingerprint,
    plain_disk_errors,
    read_json,
    sha256_file,
    write_json,
    write_text,
)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_scratch(tmp_path):
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), atomic_path(checkpoint) as scratch:
        scratch.write_bytes(b"half of the n")
        raise OSError("disk full")
    assert checkpoint.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_until_the_block_ends_readers_see_the_old_file(tmp_path):
    checkpoint = tmp_path / "model.safetensors"
    checkpoint.write_bytes(b"old")
    with atomic_path(checkpoint) as scratch:
        scratch.write_bytes(b"new")
        assert checkpoint.read_bytes() == b"old"
        assert scratch.suffix == ".safetensors" and scratch.name.startswith(".")
    assert checkpoint.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_process_that_is_killed_while_writing_leaves_the_old_file(tmp_path):
    final = tmp_path / "model.bin"
    final.write_bytes(b"old")
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom fastsd_lib.core.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as scratch:\n"
        "    scratch.write_bytes(b'half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, final], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -9
    assert final.read_bytes() == b"old"
    write_text(final, "new")
    assert final.read_text() == "new"


def test_bytes_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    """Without this order a power cut may leave the new name on an empty file."""
    order = []
    sync, replace = files.fsync_path, os.replace
    monkeypatch.setattr(
        files, "fsync_path", lambda path: (order.append(f"sync {path.suffix or 'folder'}"), sync(path))
    )
    monkeypatch.setattr(os, "replace", lambda old, new: (order.append("rename"), replace(old, new)))
    write_text(tmp_path / "deep" / "a.txt", "x")
    assert order == ["sync .txt", "rename", "sync folder"]


def test_text_is_written_the_same_on_every_system(tmp_path):
    write_text(tmp_path / "a.txt", "zwei\nZeilen ü\n")
    assert (tmp_path / "a.txt").read_bytes() == "zwei\nZeilen ü\n".encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abü", max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_values)
def test_json_comes_back_as_it_was_written(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_with_a_bom_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_damaged_json_is_named_by_line_and_column(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n  "a": 1,\n  "b": \n')
    with pytest.raises(UserError, match=r"a\.json is not valid JSON: .* at line 4, column 1\.") as error:
        read_json(path)
    assert "backup" in error.value.fix
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_json(path)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    data = os.urandom(files.CHUNK_BYTES + 17)
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@given(st.dictionaries(st.text(max_size=3), json_values, min_size=2, max_size=4))
def test_a_fingerprint_ignores_the_order_of_keys_and_nothing_else(value):
    backwards = dict(reversed(value.items()))
    assert fingerprint(value) == fingerprint(backwards)
    assert fingerprint(value) != fingerprint([value])
    key = next(iter(value))
    assert fingerprint(value) != fingerprint(value | {key: json.dumps(value[key]) + "x"})
    assert len(fingerprint(value)) == 16


@pytest.mark.parametrize(
    ("number", "fix"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "you may write to"), (errno.EROFS, "read-only"),
     (errno.EDQUOT, "quota"), (errno.ENAMETOOLONG, "shorter"), (errno.EIO, "run this again")],
)  # fmt: skip
def test_a_disk_that_says_no_is_one_clear_line(number, fix):
    with (
        pytest.raises(UserError, match="Could not store the photos: ") as error,
        plain_disk_errors("store the photos"),
    ):
        raise OSError(number, os.strerror(number), "/drive/a.png")
    assert os.strerror(number) in error.value.message and "/drive/a.png" in error.value.message
    assert fix in error.value.fix


def test_other_errors_are_not_dressed_up():
    with pytest.raises(OSError, match="strange"), plain_disk_errors("store the photos"):
        raise OSError("strange")
    with pytest.raises(KeyError), plain_disk_errors("store the photos"):
        raise KeyError
