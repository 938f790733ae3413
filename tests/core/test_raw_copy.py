"""Bytes copied by the kernel, by whichever way two disks allow, and compared beside it."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from pathlib import Path

import pytest

from fastsd_lib.core import raw_copy
from fastsd_lib.core.byte_range import ByteRange
from fastsd_lib.core.checked_writing import WINDOW_BYTES, Piece, write_checked
from fastsd_lib.core.errors import UserError

DATA = bytes(range(251)) * 9001  # two mebibytes and some, of no period that a page has


def copied(source: Path, out: Path, ranges: list[tuple[int, int]]) -> bytes:
    """These stretches of `source` one after another, from byte 3 on."""
    out.write_bytes(b"abc")
    with out.open("r+b", buffering=0) as handle, raw_copy.RawCopier(handle) as copier:
        at = 3
        for start, end in ranges:
            copier.copy(ByteRange(source, start, end), at)
            at += end - start
    return out.read_bytes()


@pytest.mark.parametrize("way", raw_copy.WAYS, ids=lambda way: way.__name__)
def test_every_way_copies_the_same_bytes(tmp_path, monkeypatch, way):
    monkeypatch.setattr(raw_copy, "WAYS", (way,))
    (tmp_path / "source").write_bytes(DATA)
    ranges = [(1_000_001, len(DATA)), (5, 5), (7, 1_500_000)]
    expected = b"abc" + b"".join(DATA[start:end] for start, end in ranges)
    assert copied(tmp_path / "source", tmp_path / "out", ranges) == expected


def test_from_one_disk_to_another(tmp_path):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one disk")
    source = other / f"fastsd-test-{os.getpid()}"
    try:
        source.write_bytes(DATA)
        assert copied(source, tmp_path / "out", [(1, len(DATA))]) == b"abc" + DATA[1:]
    finally:
        source.unlink()


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a file that kernels do not copy from")
def test_where_the_kernel_does_not_copy_the_bytes_go_through_here(tmp_path):
    text = Path("/proc/version").read_bytes()
    assert copied(Path("/proc/version"), tmp_path / "out", [(0, len(text))]) == b"abc" + text


@pytest.mark.parametrize("way", raw_copy.WAYS, ids=lambda way: way.__name__)
def test_a_source_that_is_shorter_than_its_header_says_is_named(tmp_path, monkeypatch, way):
    monkeypatch.setattr(raw_copy, "WAYS", (way,))
    (tmp_path / "source").write_bytes(DATA)
    with pytest.raises(UserError, match="source ends in the middle of its tensors") as error:
        copied(tmp_path / "source", tmp_path / "out", [(0, len(DATA) + 1)])
    assert error.value.fix == "download or copy it again."


@pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="Linux has it")
def test_a_thousand_neighbours_cost_one_call(tmp_path, monkeypatch):
    calls = []
    real = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda *given: calls.append(given) or real(*given))
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(DATA)
    out.write_bytes(b"")
    step = 2000
    pieces = [
        Piece(str(n), n * step, ByteRange(source, 9 + n * step, 9 + (n + 1) * step)) for n in range(1000)
    ]
    write_checked(out, pieces)
    assert out.read_bytes() == DATA[9 : 9 + 1000 * step]
    assert len(calls) == 1


def test_checksums_and_hash_are_those_of_the_bytes_however_they_came(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    large = os.urandom(1 << 20) * (2 * WINDOW_BYTES // (1 << 20)) + b"end"
    source.write_bytes(large)
    out.write_bytes(b"")
    pieces = [
        Piece("large", 0, ByteRange(source, 0, len(large))),
        Piece("made", len(large), DATA),
        Piece("made", len(large) + len(DATA), memoryview(DATA)[:100]),
        Piece("empty", 0, b""),
    ]
    written = write_checked(out, pieces, checksums=True, sha256=True)
    made = DATA + DATA[:100]
    assert out.read_bytes() == large + made
    assert written.checksums == {"large": zlib.crc32(large), "made": zlib.crc32(made)}
    assert written.sha256 == hashlib.sha256(large + made).hexdigest()


@pytest.mark.parametrize("after", [0, 1, 40])
def test_what_goes_wrong_while_bytes_are_made_comes_out_and_no_thread_stays(tmp_path, after):
    out = tmp_path / "out"
    out.write_bytes(b"")
    before = threading.active_count()

    def pieces():
        for number in range(after):
            yield Piece("x", number * 1000, DATA[:1000])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checked(out, pieces(), sha256=True)
    assert threading.active_count() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_ends_it_at_once_whatever_is_still_to_come(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    made = []

    def pieces():
        for number in range(100_000):
            made.append(number)
            yield Piece("x", 0, DATA[:1000])

    with pytest.raises(OSError, match="No space left"):
        write_checked(tmp_path / "full", pieces())
    assert len(made) < 1000
