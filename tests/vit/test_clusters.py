"""Clusters, the map, and the pictures of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import clusters as module
from fastsd_lib.vit.clusters import clusters, picture_map, principal_axes
from fastsd_lib.vit.collection_pictures import clusters_picture, map_picture
from fastsd_lib.vit.vector_store import VectorStore, write_vectors

SIZES = (40, 30, 20)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> VectorStore:
    """Three tight bundles of directions with a colour each, in mixed order, and their pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    truth = random.permutation(np.repeat(np.arange(3), SIZES))
    centres = random.normal(size=(3, 24))
    lengths = random.uniform(0.5, 20, (len(truth), 1))  # must not matter
    vectors = (centres[truth] + 0.1 * random.normal(size=(len(truth), 24))) * lengths
    keys = []
    for row, kind in enumerate(truth):
        keys.append(str(folder / f"{'rgb'[kind]}{row:03d}.png"))
        Image.new("RGB", (40, 30), ((200, 40, 40), (40, 160, 40), (40, 40, 200))[kind]).save(keys[-1])
    return write_vectors(folder / "store", keys, vectors.astype(np.float32))


def kinds(store: VectorStore) -> np.ndarray:
    return np.array(["rgb".index(key.rsplit("/", 1)[-1][0]) for key in store.keys])


@pytest.mark.parametrize("way", ["kmeans", "agglomerative", "hdbscan"])
def test_each_way_finds_the_bundles_their_number_and_who_stands_for_them(store, way):
    found = clusters(store, way, least=5)
    assert len(found) == 3 and tuple(found.sizes) == SIZES and found.silhouette > 0.8
    assert np.array_equal(found.labels, kinds(store))
    for number, rows in enumerate(found.representatives):
        assert len(rows) == 12 and set(found.labels[rows]) == {number}
        unit = store.vectors / np.linalg.norm(store.vectors, axis=1, keepdims=True)
        near = unit @ found.centres[number]
        assert rows[0] == int(np.argmax(np.where(found.labels == number, near, -9)))
    if way != "hdbscan":
        assert max(found.tried, key=found.tried.get) == 3
    again = clusters(store, way, least=5)
    assert np.array_equal(found.labels, again.labels)


def test_a_number_that_is_asked_for_is_kept(store):
    assert len(clusters(store, "kmeans", 5)) == 5 and len(clusters(store, "agglomerative", 2)) == 2


def test_a_large_collection_is_learnt_from_a_part_of_it(store, monkeypatch):
    monkeypatch.setattr(module, "_LEARNT_FROM", 45)
    assert np.array_equal(clusters(store, "kmeans", 3).labels, kinds(store))


def test_impossible_wishes_are_one_line(store, tmp_path, monkeypatch):
    for call, words in (
        (lambda: clusters(store, "kmeans", 1), "cannot make 1 clusters"),
        (lambda: clusters(store, "kmeans", 91), "cannot make 91 clusters"),
        (lambda: clusters(store, "spectral"), "no way to cluster called 'spectral'"),
        (
            lambda: clusters(write_vectors(tmp_path / "a", ["a"], np.ones((1, 4), np.float32))),
            "too few to cluster",
        ),
        (
            lambda: clusters(write_vectors(tmp_path / "b", list("abcd"), np.ones((4, 4), np.float32))),
            "same vector",
        ),
    ):
        with pytest.raises(UserError, match=words):
            call()
    monkeypatch.setattr(module, "_ALL_PAIRS", 50)
    with pytest.raises(UserError, match="90 pictures are too many"):
        clusters(store, "hdbscan")


def test_the_map_is_that_of_a_singular_value_decomposition(store):
    places, share = picture_map(store)
    unit = store.vectors / np.linalg.norm(store.vectors, axis=1, keepdims=True)
    centred = (unit - unit.mean(axis=0)).astype(np.float64)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    for axis in range(2):
        wanted = left[:, axis] * values[axis]
        assert np.allclose(places[:, axis], wanted, atol=1e-5) or np.allclose(
            places[:, axis], -wanted, atol=1e-5
        )
    assert share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=1e-6)
    assert np.allclose(principal_axes(unit, 2)[0], places, atol=1e-4)


def test_the_pictures_show_each_cluster_in_a_row_and_each_colour_on_the_map(store):
    found = clusters(store, "kmeans", 3)
    sheet = clusters_picture(store, found, columns=4, cell_px=64)
    seen = np.asarray(sheet).reshape(-1, 3)
    for colour in ((200, 40, 40), (40, 160, 40), (40, 40, 200)):
        assert (np.abs(seen.astype(int) - colour).sum(axis=1) < 12).sum() > 4 * 40 * 30 - 200
    page = np.asarray(map_picture(store, found.labels, ["red", "green", "blue"], side_px=400)).reshape(-1, 3)
    for colour in ((51, 34, 136), (136, 204, 238), (68, 170, 153)):
        assert (np.abs(page.astype(int) - colour).sum(axis=1) < 12).sum() > 100
