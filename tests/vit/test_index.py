"""Every kind of index against comparing with everything, by hand in float64."""

from __future__ import annotations

import importlib.util
import json
import os

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import search_kinds
from fastsd_lib.vit.index import Index, build_index
from fastsd_lib.vit.vector_store import VectorStore, write_vectors

COUNT, DIMENSION = 3000, 72  # no multiple of 64: the last word of the sign bits is not full
KINDS = ("exact", "signs", "ivf", "hnsw")


def made(count: int = COUNT, seed: int = 0) -> np.ndarray:
    """Nearly unclustered vectors on a 16-dimensional sheet: (count, 72) float32, not around zero."""
    random = np.random.default_rng(seed)
    sheet = np.random.default_rng(99).normal(size=(16, DIMENSION))
    return (
        random.normal(size=(count, 16)) @ sheet + 3.0 + 0.1 * random.normal(size=(count, DIMENSION))
    ).astype("f4")


def by_hand(vectors: np.ndarray, queries: np.ndarray, metric: str) -> np.ndarray:
    """(Q, N) float64, larger = nearer."""
    vectors, queries = vectors.astype(np.float64), queries.astype(np.float64)
    if metric == "l2":
        return -np.linalg.norm(queries[:, None] - vectors[None], axis=2)
    dots = queries @ vectors.T
    if metric == "cosine":
        dots /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    return dots


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> VectorStore:
    keys = [f"{'train' if row % 3 else 'test'}/{row:05d}.jpg" for row in range(COUNT)]
    return write_vectors(tmp_path_factory.mktemp("store"), keys, made())


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_exact_search_finds_what_a_comparison_by_hand_finds(store, metric):
    queries = made(20, seed=1)
    scores, rows = build_index(store, "exact", metric=metric).search(queries, 7)
    truth = by_hand(made(), queries, metric)
    assert np.array_equal(rows, np.argsort(-truth, axis=1, kind="stable")[:, :7])
    sign = -1 if metric == "l2" else 1
    assert np.allclose(scores, sign * np.take_along_axis(truth, rows, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
@pytest.mark.parametrize("kind", ["signs", "ivf", "hnsw"])
def test_every_kind_reaches_the_recall_that_it_was_asked_for_with_exact_scores(store, kind, metric):
    index = build_index(store, kind, metric=metric, recall=0.97)
    queries = made(60, seed=2)
    scores, rows = index.search(queries, 10)
    truth = by_hand(made(), queries, metric)
    best = np.argsort(-truth, axis=1)[:, :10]
    recall = np.mean([len(set(found) & set(wanted)) / 10 for found, wanted in zip(rows, best, strict=True)])
    assert recall >= 0.95 and index.facts["recall"] >= 0.95
    sign = -1 if metric == "l2" else 1
    assert np.allclose(scores, sign * np.take_along_axis(truth, rows, 1), rtol=1e-4, atol=1e-4)


def test_signs_without_faiss_find_the_same_candidates_as_with_it(store):
    codes = np.random.default_rng(3).integers(0, 2**63, size=(70_000, 2), dtype=np.uint64)
    asked = codes[:5] ^ np.uint64(0b1011)
    by_hand = np.bitwise_count(codes[None] ^ asked[:, None]).sum(axis=2)
    for scan in (search_kinds._NumpyScan(codes), search_kinds._FaissScan(codes)):
        for found, bits in zip(scan.nearest(asked, 50), by_hand, strict=True):
            assert sorted(bits[found]) == sorted(np.sort(bits)[:50])


def test_without_faiss_signs_still_work_and_the_other_kinds_name_the_install_line(store, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "faiss" else find(name, *more)
    )
    index = build_index(store, "signs")
    assert index.search(store.vectors[5], 1)[1][0, 0] == 5
    with pytest.raises(UserError, match="faiss is not installed") as caught:
        build_index(store, "ivf")
    assert "install vit" in caught.value.fix


def test_auto_is_exact_for_few_vectors(store):
    assert build_index(store).kind == "exact"


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_answers_as_before_and_takes_new_rows(store, tmp_path, kind):
    index = build_index(store, kind, metric="l2")
    queries = made(5, seed=4)
    index.save(tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    for one, other in zip(index.search(queries, 9), opened.search(queries, 9), strict=True):
        assert np.array_equal(one, other)

    fresh = made(3, seed=5) + 40
    opened.add(["new/a", "new/b", "new/c"], fresh)
    opened.remove(["test/00000.jpg", "new/b"])
    opened.save(tmp_path / "index")
    again = Index.open(tmp_path / "index")
    assert len(again) == COUNT + 1
    rows = again.search(fresh, 2)[1]
    assert [again.keys[row] for row in rows[:, 0]] == ["new/a", rows_key(again, fresh[1]), "new/c"]
    assert "new/b" not in again and "test/00000.jpg" not in again
    assert again.search(store.vectors[0], 1)[1][0, 0] != 0
    again.add(["new/b"], fresh[1:2])  # a name may come back
    assert again.keys[again.search(fresh[1], 1)[1][0, 0]] == "new/b"


def rows_key(index: Index, removed: np.ndarray) -> str:
    """What is nearest to a removed vector now, by hand."""
    alive = np.flatnonzero(index.alive)
    near = np.linalg.norm(index.vectors.take(alive) - removed, axis=1)
    return index.keys[alive[near.argmin()]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_searches_among_the_keys_that_begin_so(store, kind):
    index = build_index(store, kind, metric="l2")
    queries = made(10, seed=6)
    _, rows = index.search(queries, 5, prefix="test/")
    truth = by_hand(made(), queries, "l2")
    truth[:, [row for row, key in enumerate(store.keys) if not key.startswith("test/")]] = -np.inf
    wanted = np.argsort(-truth, axis=1)[:, :5]
    assert all(index.keys[row].startswith("test/") for row in rows.ravel())
    assert np.mean([len(set(one) & set(other)) / 5 for one, other in zip(rows, wanted, strict=True)]) >= 0.9
    with pytest.raises(UserError, match="No key begins with 'valid/'"):
        index.search(queries, 5, prefix="valid/")


@pytest.mark.parametrize("kind", KINDS)
def test_more_neighbours_than_vectors_are_all_of_them_in_order(tmp_path, kind):
    vectors = made(30)
    index = build_index(write_vectors(tmp_path, [str(row) for row in range(30)], vectors), kind, metric="l2")
    scores, rows = index.search(vectors[:4], 1000)
    assert rows.shape == (4, 30) and np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(30), (4, 1)))
    assert (np.diff(scores, axis=1) >= 0).all() and np.array_equal(rows[:, 0], np.arange(4))


def test_one_vector_alone_is_found_by_every_kind_that_can_be_built_of_it(tmp_path):
    store = write_vectors(tmp_path, ["only"], made(1))
    for kind in ("exact", "signs"):
        assert build_index(store, kind).search(made(1), 5)[1].tolist() == [[0]]


def test_an_empty_store_cannot_be_searched(tmp_path):
    store = write_vectors(tmp_path, [], np.zeros((0, 8), np.float32))
    assert len(VectorStore.open(tmp_path)) == 0
    with pytest.raises(UserError, match="holds 0 vectors: too few to search"):
        build_index(store)


def test_wrong_vectors_are_refused_in_one_line(store):
    index = build_index(store, "exact")
    with pytest.raises(UserError, match=r"vectors of 72 numbers; these have shape \(1, 768\)"):
        index.search(np.zeros(768))
    bad = made(2)
    bad[1, 3] = np.nan
    for call in (lambda: index.search(bad), lambda: index.add(["a", "b"], bad)):
        with pytest.raises(UserError, match="none"):
            call()
    with pytest.raises(UserError, match=r"has 'test/00000\.jpg' already"):
        index.add(["test/00000.jpg"], made(1))
    with pytest.raises(UserError, match="stands twice"):
        index.add(["x", "x"], made(2))
    with pytest.raises(UserError, match="has no 'nowhere'"):
        index.remove(["train/00001.jpg", "nowhere"])
    assert "train/00001.jpg" in index
    with pytest.raises(UserError, match="0 neighbours"):
        index.search(made(1), 0)
    with pytest.raises(UserError, match="kind 'annoy'"):
        build_index(store, "annoy")
    with pytest.raises(UserError, match="metric 'hamming'"):
        build_index(store, metric="hamming")


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_in_any_file_of_an_index_is_found(store, tmp_path, kind):
    index = build_index(store, kind)
    index.save(tmp_path / "index")
    for name in sorted(os.listdir(tmp_path / "index")):
        path = tmp_path / "index" / name
        whole = path.read_bytes()
        if not whole:
            continue
        path.unlink()  # a file of its own: the vectors are the store's by a second name
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(UserError):
            Index.open(tmp_path / "index")
        path.write_bytes(whole)
    Index.open(tmp_path / "index")
    (
        tmp_path / "index" / json.loads((tmp_path / "index" / "index.json").read_text())["names"]["keys"]
    ).unlink()
    with pytest.raises(UserError, match="is missing"):
        Index.open(tmp_path / "index")


def test_a_file_that_a_manifest_names_outside_its_folder_is_not_opened(store, tmp_path):
    from fastsd_lib.core.files import fingerprint

    build_index(store).save(tmp_path)
    said = json.loads((tmp_path / "index.json").read_text())
    said.pop("seal")
    said["files"]["../secret.npy"] = [1, "0"]
    (tmp_path / "index.json").write_text(json.dumps({**said, "seal": fingerprint(said)}))
    with pytest.raises(UserError, match="was changed"):
        Index.open(tmp_path)


def test_a_save_that_breaks_off_leaves_the_old_index(store, tmp_path, monkeypatch):
    index = build_index(store, "signs")
    index.save(tmp_path / "index")
    before = sorted(os.listdir(tmp_path / "index"))
    index.add(["late"], made(1, seed=8))

    def full(*_: object) -> list[str]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.finder, "save", full)
    with pytest.raises(UserError, match="Could not write the index"):
        index.save(tmp_path / "index")
    assert sorted(os.listdir(tmp_path / "index")) == before
    assert len(Index.open(tmp_path / "index")) == COUNT


def test_an_index_outlives_its_store(store, tmp_path):
    own = write_vectors(tmp_path / "store", ["a", "b", "c"], made(3))
    build_index(own).save(tmp_path / "index")
    write_vectors(tmp_path / "store", ["z"], made(1, seed=9))
    assert Index.open(tmp_path / "index").search(made(3), 1)[1].ravel().tolist() == [0, 1, 2]


def test_queries_of_the_users_own_tune_the_index(store):
    index = build_index(store, "ivf", queries=made(64, seed=10), recall=0.95)
    assert index.facts["recall_queries"] == 32 and index.facts["recall"] >= 0.9
    hard = build_index(store, "signs", recall=1.0)
    assert hard.facts["width"] >= build_index(store, "signs", recall=0.8).facts["width"]
