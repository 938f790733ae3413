"""Each disk operation does one thing, names its file when it fails, and never writes over anything."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from fastsd_lib.core import disk

OPERATIONS = {
    "make_folder": lambda path: disk.make_folder(path / "new"),
    "make_folders": lambda path: disk.make_folders(path / "new" / "newer"),
    "write_file": lambda path: disk.write_file(path / "file", [b"x"]),
    "read_back": lambda path: disk.read_back(path / "there"),
    "sync_folder": lambda path: disk.sync_folder(path),
    "rename": lambda path: disk.rename(path / "there", path / "elsewhere"),
    "unlink": lambda path: disk.unlink(path / "there"),
    "remove_folder": lambda path: disk.remove_folder(path / "empty"),
    "names_in": lambda path: disk.names_in(path),
    "file_size": lambda path: disk.file_size(path / "there"),
}
CALLS = ("mkdir", "open", "write", "fsync", "read", "replace", "unlink", "rmdir", "listdir", "stat")


def test_a_file_is_its_chunks_and_comes_with_its_size_and_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "WRITE_BYTES", 7)
    chunks = [b"weights", memoryview(b""), memoryview(bytearray(range(40))).cast("I"), b"!"]
    whole = b"".join(bytes(chunk) for chunk in chunks)
    assert disk.write_file(tmp_path / "a", chunks) == (len(whole), hashlib.sha256(whole).hexdigest())
    assert disk.read_bytes(tmp_path / "a") == (tmp_path / "a").read_bytes() == whole
    assert disk.read_back(tmp_path / "a") == (len(whole), hashlib.sha256(whole).hexdigest())


def test_a_disk_that_takes_a_few_bytes_at_a_time_gets_them_all(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: real(handle, data[:3]))
    disk.write_file(tmp_path / "a", [b"0123456789"])
    assert (tmp_path / "a").read_bytes() == b"0123456789"


def test_a_file_is_synced_before_its_hash_is_given(tmp_path, monkeypatch):
    calls = []
    for name in ("write", "fsync", "close"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *given, name=name, real=real: (calls.append(name), real(*given))[1]
        )
    disk.write_file(tmp_path / "a", [b"0", b"1"])
    assert calls == ["write", "write", "fsync", "close"]


def test_reading_back_asks_for_the_disk_s_bytes_and_not_for_those_in_memory(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    calls, fadvise, read = [], os.posix_fadvise, os.read
    monkeypatch.setattr(os, "posix_fadvise", lambda *given: (calls.append(given[1:]), fadvise(*given)))
    monkeypatch.setattr(os, "read", lambda *given: (calls.append("read"), read(*given))[1])
    disk.read_back(tmp_path / "a")
    assert calls[:2] == [(0, 0, os.POSIX_FADV_DONTNEED), "read"]


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        disk.write_file(tmp_path / "a", [b"new"])
    with pytest.raises(FileExistsError):
        disk.make_folder(tmp_path / "a")
    with pytest.raises(FileExistsError):
        disk.make_folders(tmp_path / "a" / "b")
    assert (tmp_path / "a").read_bytes() == b"mine"


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("call", CALLS)
def test_every_error_names_its_file_and_leaves_no_descriptor_open(tmp_path, monkeypatch, operation, call):
    (tmp_path / "there").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    before, hits = len(os.listdir("/proc/self/fd")), []

    def fail(*_, **__):
        hits.append(1)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        try:
            OPERATIONS[operation](tmp_path)
        except OSError as error:
            assert error.errno == errno.EIO and str(error.filename).startswith(str(tmp_path))
        else:
            assert not hits, "the error was swallowed"
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_host_that_cannot_sync_folders_is_forgiven_and_one_that_fails_is_not(tmp_path, monkeypatch):
    def fail(code):
        def fsync(handle):
            raise OSError(code, os.strerror(code))

        return fsync

    monkeypatch.setattr(os, "fsync", fail(errno.EINVAL))
    disk.sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError) as caught:
        disk.sync_folder(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_missing_parents_are_made_but_never_the_root(tmp_path):
    disk.make_folders(tmp_path / "a" / "b" / "c", root=tmp_path)
    assert (tmp_path / "a" / "b" / "c").is_dir()
    gone = tmp_path / "drive"
    with pytest.raises(FileNotFoundError) as caught:
        disk.make_folders(gone / "checkpoints", root=gone)
    assert caught.value.filename == str(gone) and not gone.exists()


def test_what_is_not_there_is_nothing(tmp_path):
    gone = tmp_path / "gone"
    disk.unlink(gone)
    assert disk.names_in(gone) == [] and disk.file_size(gone) is None and disk.changed_at(gone) is None
    assert not disk.is_folder(gone) and not disk.is_link(gone) and disk.file_size(tmp_path) is None
    (tmp_path / "link").symlink_to(tmp_path)
    assert disk.is_link(tmp_path / "link") and disk.is_folder(tmp_path / "link")


def test_a_folder_that_is_not_empty_is_not_deleted(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").write_bytes(b"")
    with pytest.raises(OSError):
        disk.remove_folder(tmp_path / "a")
    assert (tmp_path / "a" / "mine").exists()
