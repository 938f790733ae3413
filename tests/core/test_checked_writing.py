"""Large files written behind a reader and before a checker, in constant memory."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from fastsd_lib.core import checked_writing
from fastsd_lib.core.byte_range import ByteRange, Made
from fastsd_lib.core.checked_writing import BLOCK_BYTES, Piece, ReadsBackDifferently, write_checked
from fastsd_lib.core.crc import joined_crc32
from fastsd_lib.core.errors import UserError

DATA = bytes(range(251)) * 9001  # two mebibytes and some, of no period that a page has


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def out(tmp_path) -> Path:
    path = tmp_path / "out"
    path.write_bytes(b"")
    return path


@pytest.mark.parametrize("checksums", [False, True])
def test_ranges_of_several_files_land_where_they_belong(tmp_path, source, out, checksums):
    other = tmp_path / "other"
    other.write_bytes(DATA[::-1])
    ranges = [
        ByteRange(source, 1_000_001, len(DATA)),
        ByteRange(other, 5, 5),
        ByteRange(other, 7, 1_500_000),
        *(ByteRange(source, 9 + n * 2000, 9 + (n + 1) * 2000) for n in range(1000)),
        ByteRange(source, 0, BLOCK_BYTES),
    ]
    out.write_bytes(b"abc")
    pieces, at, expected = [], 3, b"abc"
    for number, one in enumerate(ranges):
        pieces.append(Piece(str(number), at, one))
        expected += one.path.read_bytes()[one.start : one.end]
        at += one.size_bytes
    holes = [Piece("far", at + 1000, ByteRange(source, 0, 10)), Piece("back", at, ByteRange(source, 0, 10))]
    written = write_checked(out, [*pieces, *holes], checksums=checksums)
    assert out.read_bytes() == expected + DATA[:10] + bytes(990) + DATA[:10]
    sums = {str(n): zlib.crc32(one.path.read_bytes()[one.start : one.end]) for n, one in enumerate(ranges)}
    sums |= {"far": zlib.crc32(DATA[:10]), "back": zlib.crc32(DATA[:10])}
    del sums["1"]  # of no bytes
    assert written.checksums == (sums if checksums else {})


def test_checksums_and_hash_are_those_of_the_bytes_however_they_came(tmp_path, out):
    source = tmp_path / "large"
    large = os.urandom(1 << 20) * 20 + b"end"  # more than all buffers together
    source.write_bytes(large)
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


def test_from_one_disk_to_another(tmp_path, out):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is only one disk")
    source = other / f"fastsd-test-{os.getpid()}"
    try:
        source.write_bytes(DATA)
        write_checked(out, [Piece("x", 0, ByteRange(source, 1, len(DATA)))])
        assert out.read_bytes() == DATA[1:]
    finally:
        source.unlink()


@pytest.mark.parametrize("missing", ["pwrite and preadv", "posix_fadvise", "advice"])
def test_a_system_that_can_do_less_writes_the_same(tmp_path, source, out, monkeypatch, missing):
    if missing == "advice":  # as a file system that takes none

        def refused(*given):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(os, "posix_fadvise", refused, raising=False)
    else:
        for name in missing.split(" and "):
            monkeypatch.delattr(os, name, raising=False)
    source.write_bytes(DATA * 10)  # more than is flushed at a time
    write_checked(out, [Piece("x", 3, ByteRange(source, 1, 10 * len(DATA)))])
    assert out.read_bytes() == bytes(3) + (DATA * 10)[1:]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="a system without this advice")
@pytest.mark.parametrize("gap", [0, 64])  # as between the entries of a .ckpt
@pytest.mark.parametrize(("memory_bytes", "times"), [(0, 1), (5 * 80_000_000, 1), (5 * 80_000_000 - 1, 2)])
def test_only_the_end_of_a_file_that_is_large_for_the_memory_stays_there(
    out, monkeypatch, gap, memory_bytes, times
):
    told, advise = Counter(), os.posix_fadvise

    def listening(file, start, length, advice):
        assert advice == os.POSIX_FADV_DONTNEED
        told[start, length] += 1
        advise(file, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", listening)
    monkeypatch.setattr(checked_writing, "physical_bytes", lambda: memory_bytes)
    monkeypatch.setattr(checked_writing, "_KEPT_BYTES", 20 << 20)
    one = memoryview(bytes(range(256)) * 31_250)  # 8 MB
    pieces = [Piece(str(number), number * (len(one) + gap), one) for number in range(10)]
    write_checked(out, pieces, size_bytes=80_000_000)
    assert out.read_bytes() == (bytes(one) + bytes(gap)) * 9 + bytes(one)
    ranges = sorted(told)
    assert ranges[0][0] == 0 and all(sum(one) == other[0] for one, other in pairwise(ranges))
    assert sum(ranges[-1]) > 60_000_000, "the disk is not told early of what was written"
    behind = [place for place in ranges if sum(ranges[-1]) - place[0] > 20 << 20]
    assert behind and {told[place] for place in behind} == {times}
    assert all(told[place] == 1 for place in ranges if place not in behind)


def test_a_source_that_is_shorter_than_its_header_says_is_named(source, out):
    with pytest.raises(UserError, match="source ends in the middle of its tensors") as error:
        write_checked(out, [Piece("x", 0, ByteRange(source, 0, len(DATA) + 1))])
    assert error.value.fix == "download or copy it again."


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device that forgets")
@pytest.mark.parametrize("zeros", [0, 1, 700_000, 2 * BLOCK_BYTES])
def test_the_first_wrong_byte_is_named_exactly(tmp_path, zeros):
    lying = tmp_path / "lying"
    lying.symlink_to("/dev/zero")  # takes all that is written, and gives back zeros
    source = tmp_path / "source"
    source.write_bytes(bytes(zeros) + b"\x01" + DATA)
    before = set(threading.enumerate())
    for content in (source.read_bytes(), ByteRange(source, 0, source.stat().st_size)):
        with pytest.raises(ReadsBackDifferently) as wrong:
            write_checked(lying, [Piece("x", 5, content)])
        assert wrong.value.at == 5 + zeros
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("after", [0, 1, 40])
def test_what_goes_wrong_while_bytes_are_made_comes_out_and_no_thread_stays(source, out, after):
    before = set(threading.enumerate())

    def pieces():
        for number in range(after):
            yield Piece("x", number * 2000, ByteRange(source, 0, 1000))
            yield Piece("x", number * 2000 + 1000, DATA[:1000])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checked(out, pieces(), sha256=True)
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("from_file", [True, False])
def test_a_full_disk_ends_it_at_once_whatever_is_still_to_come(tmp_path, source, from_file):
    (tmp_path / "full").symlink_to("/dev/full")
    made = []

    def pieces():
        for number in range(100_000):
            made.append(number)
            yield Piece("x", 7 * number, ByteRange(source, 0, 1000) if from_file else DATA[:1000])

    with pytest.raises(OSError, match="No space left"):
        write_checked(tmp_path / "full", pieces())
    assert len(made) < 1000


def test_what_is_computed_is_written_where_it_belongs_and_errors_of_it_come_out(tmp_path, source, out):
    def inverted(lent):
        return memoryview(bytes(255 - value for value in lent))

    ranges = [
        ByteRange(source, start, min(start + 300_000, len(DATA))) for start in range(0, len(DATA), 300_000)
    ]
    pieces = [Piece("x", one.start, Made(one, one.size_bytes, inverted)) for one in ranges]
    written = write_checked(out, pieces, checksums=True, sha256=True)
    expected = bytes(255 - value for value in DATA)
    assert out.read_bytes() == expected
    assert written.checksums == {"x": zlib.crc32(expected)}
    assert written.sha256 == hashlib.sha256(expected).hexdigest()

    def wrong(lent):
        raise UserError("no number", fix="another")

    with pytest.raises(UserError, match="no number"):
        write_checked(out, [*pieces, Piece("y", len(DATA), Made(ranges[0], 300_000, wrong))])
    with pytest.raises(ValueError, match="y: 300000 bytes made, 7 expected"):
        write_checked(out, [Piece("y", 0, Made(ranges[0], 7, inverted))])


def test_checksums_of_parts_join_to_that_of_the_whole():
    for first, second in ((0, 1), (1, 0), (5, 1), (70_000, 524_288), (3, 1 << 20)):
        joined = joined_crc32(zlib.crc32(DATA[:first]), zlib.crc32(DATA[-second:] if second else b""), second)
        assert joined == zlib.crc32(DATA[:first] + (DATA[-second:] if second else b""))
