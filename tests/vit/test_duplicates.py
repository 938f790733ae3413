"""Near duplicates: copies in every disguise, and what leaks between the parts of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.collection_pictures import duplicates_picture
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.duplicates import near_duplicates, phash
from fastsd_lib.vit.embed import embed
from fastsd_lib.vit.index import build_index
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.vector_store import VectorStore, write_vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Seven photographs in train/, and in test/: a copy, a small re-encoded copy, a cut one, and other photographs."""
    top = tmp_path_factory.mktemp("set")
    originals = photos(top / "train", 7)
    (top / "test").mkdir()
    shutil.copyfile(originals[0], top / "test" / "copy.jpg")
    with Image.open(originals[1]) as photo:
        photo.resize((photo.width // 2, photo.height // 2)).save(top / "test" / "small.jpg", quality=40)
    with Image.open(originals[3]) as photo:
        cut = photo.crop((6, 6, photo.width - 6, photo.height - 6))
        ImageEnhance.Brightness(cut).enhance(1.1).save(top / "test" / "cut.jpg")
    for number in range(2):
        Image.new("RGB", (64, 64), (250, 250, 250)).save(
            top / "test" / f"blank_{number}.png", compress_level=9 * number
        )
    return top


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory) -> VectorStore:
    scratch = tmp_path_factory.mktemp("out")
    model = open_model(make_vit(scratch / "tiny"))
    config = RunnerConfig(backend="torch", precision="fp32", threads=1)
    return embed(model, folder, Features(), config, scratch / "store")


def found(groups) -> set[tuple[str, ...]]:
    return {group.keys for group in groups}


def test_equal_bytes_are_found(store):
    groups = near_duplicates(store, ["bytes"])
    assert found(groups) == {("test/copy.jpg", "train/photo_0000.jpg")}
    assert groups[0].ways == ("bytes",) and groups[0].pairs[0].score == 1


def test_a_small_re_encoded_copy_is_found_by_its_look_and_blank_pages_are_not(store):
    assert found(near_duplicates(store, ["phash"])) >= {
        ("test/copy.jpg", "train/photo_0000.jpg"), ("test/small.jpg", "train/photo_0001.jpg"),
    }  # fmt: skip
    assert not any(
        "blank" in key for keys in found(near_duplicates(store, ["phash", "embedding"])) for key in keys
    )


def test_all_ways_together_find_every_leak_and_nothing_else(store):
    groups = near_duplicates(store, across=("train/", "test/"), cosine=0.98)
    assert found(groups) == {
        ("test/copy.jpg", "train/photo_0000.jpg"), ("test/small.jpg", "train/photo_0001.jpg"),
        ("test/cut.jpg", "train/photo_0003.jpg"),
    }  # fmt: skip
    assert near_duplicates(store, across=("train/", "valid/")) == []
    index = build_index(store)
    assert found(near_duplicates(store, across=("train/", "test/"), cosine=0.98, index=index)) == found(
        groups
    )


def test_the_perceptual_hash_is_that_of_its_definition():
    grey = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    basis = [[np.cos(np.pi * (2 * x + 1) * u / 64) for x in range(32)] for u in range(8)]
    low = np.array([[sum(basis[v][y] * basis[u][x] * float(grey[y, x]) for y in range(32) for x in range(32))
                     for u in range(8)] for v in range(8)])  # fmt: skip
    bits = "".join("1" if one > np.median(low) else "0" for one in low.ravel())
    assert phash(Image.fromarray(grey)) == int(bits, 2)


def test_without_files_only_the_vectors_speak_and_chains_hang_together(tmp_path):
    random = np.random.default_rng(1)
    vectors = random.normal(size=(300, 32)).astype(np.float32) + 5
    vectors[200] = vectors[10] + 0.02 * random.normal(size=32)
    vectors[201] = vectors[200] + 0.02 * random.normal(size=32)
    vectors[250] = vectors[20]
    store = write_vectors(tmp_path, [f"row {row}" for row in range(300)], vectors)
    groups = near_duplicates(store)
    assert [group.rows for group in groups] == [(10, 200, 201), (20, 250)]
    assert all(group.ways == ("embedding",) for group in groups)
    unit = vectors - vectors.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for group in groups:
        for pair in group.pairs:
            assert pair.score == pytest.approx(float(unit[pair.first] @ unit[pair.second]), abs=1e-4)


def test_wrong_wishes_are_one_line(store, tmp_path):
    with pytest.raises(UserError, match="duplicates called 'md5'"):
        near_duplicates(store, ["md5"])
    other = build_index(write_vectors(tmp_path, ["a", "b"], np.eye(2, 32, dtype=np.float32)))
    with pytest.raises(UserError, match="not one of this store"):
        near_duplicates(store, index=other)
    with pytest.raises(UserError, match="no duplicates"):
        duplicates_picture(store, [])


def test_the_picture_has_a_row_for_each_group(store):
    groups = near_duplicates(store, ["bytes", "phash"])
    one, all_of_them = (
        duplicates_picture(store, groups[:1], cell_px=64),
        duplicates_picture(store, groups, cell_px=64),
    )
    assert all_of_them.height >= one.height + 64 * (len(groups) - 1)
