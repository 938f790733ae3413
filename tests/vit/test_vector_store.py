"""Vectors on disk: whole or not at all, and never taken for whole when they are not."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.config import Features
from fastsd_lib.vit.names import Names, write_names
from fastsd_lib.vit.vector_store import Maker, Row, VectorStore, write_store, write_vectors

KEYS = ["a.jpg", "b/ö.jpg", "c\udcff.jpg"]  # the last is a file name that is no Unicode
VECTORS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_store_gives_back_what_was_put_in(tmp_path, dtype):
    maker = Maker("tiny", "0123", Features(layer=3, pool="mean", normalize=True), "pad", "torch fp32")
    rows = [Row(key, f"/photos/{key}", 7, 8, "ab") for key in KEYS]
    rows.insert(1, Row("broken.jpg", error="ends too early"))
    write_store(tmp_path, maker, rows, iter([VECTORS[:2], VECTORS[2:]]), 4, dtype)
    store = VectorStore.open(tmp_path)
    assert store.vectors.dtype == dtype and isinstance(store.vectors, np.memmap)
    assert np.array_equal(store.vectors, VECTORS.astype(dtype))
    assert store.keys == KEYS and store.errors == {"broken.jpg": "ends too early"} and store.all_rows == rows
    assert store.maker == maker and store.row_of["b/ö.jpg"] == 1


def test_the_file_of_vectors_is_a_plain_numpy_file(tmp_path):
    store = write_vectors(tmp_path, KEYS, VECTORS)
    assert np.array_equal(np.load(store.vectors_file), VECTORS)


def test_a_flipped_bit_a_missing_file_and_a_changed_manifest_are_found(tmp_path):
    write_vectors(tmp_path, KEYS, VECTORS)
    for name in os.listdir(tmp_path):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:])
        with pytest.raises(UserError) as caught:
            VectorStore.open(tmp_path)
        assert "\n" not in caught.value.message and caught.value.fix
        path.write_bytes(whole[:-2])
        with pytest.raises(UserError):
            VectorStore.open(tmp_path, verify=False)
        path.unlink()
        with pytest.raises(UserError):
            VectorStore.open(tmp_path, verify=False)
        path.write_bytes(whole)
    VectorStore.open(tmp_path)
    said = json.loads((tmp_path / "store.json").read_text())
    (tmp_path / "store.json").write_text(json.dumps({**said, "schema": 99}))
    with pytest.raises(UserError, match="newer fastsd"):
        VectorStore.open(tmp_path)


def test_a_folder_that_is_no_store_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no store of vectors: store\.json is not in it"):
        VectorStore.open(tmp_path)
    (tmp_path / "store.json").write_text("[1]")
    with pytest.raises(UserError, match="not the manifest of a store of vectors"):
        VectorStore.open(tmp_path)


def test_numbers_that_are_none_are_refused_and_leave_the_old_store(tmp_path):
    write_vectors(tmp_path, KEYS, VECTORS)
    before = sorted(os.listdir(tmp_path))
    for bad, words in ((np.nan, "NaN or infinite"), (np.inf, "NaN or infinite")):
        wrong = VECTORS.copy()
        wrong[1, 2] = bad
        with pytest.raises(UserError, match=words):
            write_vectors(tmp_path, KEYS, wrong)
    with pytest.raises(UserError, match="too large for float16"):
        write_store(tmp_path, Maker("x", ""), [Row("a")], [np.full((1, 4), 1e6)], 4, "float16")
    with pytest.raises(UserError, match="int8"):
        write_store(tmp_path, Maker("x", ""), [Row("a")], [np.full((1, 4), 1)], 4, "int8")
    with pytest.raises(UserError, match=r"The key 'a\.jpg' stands twice"):
        write_vectors(tmp_path, ["a.jpg", "a.jpg", "b"], VECTORS)
    with pytest.raises(UserError, match="2 keys do not fit"):
        write_vectors(tmp_path, ["a", "b"], VECTORS)
    assert sorted(name for name in os.listdir(tmp_path) if "partial" not in name) == before
    assert np.array_equal(VectorStore.open(tmp_path).vectors, VECTORS)


def test_a_new_state_replaces_the_old_one_while_readers_keep_theirs(tmp_path):
    old = write_vectors(tmp_path, KEYS, VECTORS)
    write_vectors(tmp_path, ["z"], np.ones((1, 4), np.float32))
    assert np.array_equal(old.vectors, VECTORS)
    assert VectorStore.open(tmp_path).keys == ["z"]
    assert len(os.listdir(tmp_path)) == 3


def test_millions_of_names_read_like_a_list(tmp_path):
    names = [f"photos/{number}-ä.jpg" for number in range(70_000)] + ["", *KEYS]
    write_names(names, tmp_path / "letters.npy", tmp_path / "ends.npy")
    opened = Names.open(tmp_path / "letters.npy", tmp_path / "ends.npy")
    assert list(opened) == names and len(opened) == len(names)
    assert [opened[row] for row in (0, 65_536, -1)] == [names[0], names[65_536], names[-1]]
    assert opened[69_998:70_002] == names[69_998:70_002]
    with pytest.raises(IndexError):
        opened[len(names)]
    write_names([], tmp_path / "l.npy", tmp_path / "e.npy")
    assert list(Names.open(tmp_path / "l.npy", tmp_path / "e.npy")) == []
    with pytest.raises(ValueError, match="cut off"):
        Names.open(tmp_path / "l.npy", tmp_path / "ends.npy")
