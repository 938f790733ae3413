"""Outliers and detectors, against distances by hand."""

from __future__ import annotations

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.collection_pictures import outliers_picture, roc_picture
from fastsd_lib.vit.outliers import fit_detector, outliers, roc
from fastsd_lib.vit.vector_store import write_vectors

WAYS = ("knn", "mahalanobis")


def normal(count: int, seed: int) -> np.ndarray:
    """Long along two directions, thin along the others: (count, 20) float32."""
    random = np.random.default_rng(seed)
    return (random.normal(size=(count, 20)) * ([3.0] * 2 + [0.2] * 18) + 1).astype(np.float32)


def odd(count: int, seed: int) -> np.ndarray:
    """No farther from the middle than many normal ones, but off along a thin direction."""
    vectors = normal(count, seed)
    vectors[:, 7] += 6
    return vectors


@pytest.mark.parametrize("way", WAYS)
def test_the_odd_ones_of_a_collection_come_first(tmp_path, way):
    vectors = np.concatenate([normal(150, 0), odd(3, 1)])
    store = write_vectors(tmp_path, [f"{row}.jpg" for row in range(153)], vectors)
    found = outliers(store, way, 3)
    assert {one.row for one in found} == {150, 151, 152}
    assert found[0].score >= found[1].score >= found[2].score and found[2].beyond > 3.5
    assert found == outliers(store, way, 3)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("false_alarms", [0.05, 0.2])
def test_a_threshold_keeps_its_word_on_pictures_that_it_never_saw(way, false_alarms):
    alarms = []
    for seed in range(12):
        detector = fit_detector(normal(200, seed), way, false_alarms=false_alarms, seed=seed)
        alarms.append(detector.odd(normal(300, 100 + seed)).mean())
        assert detector.held_out >= 40
    assert np.mean(alarms) <= false_alarms + 0.02  # expected: at most false_alarms; 12 x 40 were held out
    assert np.mean(alarms) >= false_alarms / 3  # and no threshold that nothing reaches
    assert detector.odd(odd(100, 7)).mean() > 0.95


def test_mahalanobis_is_the_distance_by_the_shrunk_covariance():
    from sklearn.covariance import LedoitWolf

    vectors, asked = normal(300, 3), normal(20, 4)
    detector = fit_detector(vectors, "mahalanobis", seed=5)
    learnt = vectors[np.sort(np.random.default_rng(5).permutation(300)[60:])].astype(np.float64)
    fitted = LedoitWolf().fit(learnt)
    assert np.allclose(detector.scores(asked) ** 2, fitted.mahalanobis(asked.astype(np.float64)), rtol=1e-4)


def test_knn_is_the_mean_distance_to_the_nearest():
    vectors, asked = normal(100, 5), odd(8, 6)
    detector = fit_detector(vectors, "knn", k=4, seed=1)
    learnt = vectors[np.random.default_rng(1).permutation(100)[20:]]
    by_hand = np.sort(np.linalg.norm(asked[:, None].astype(np.float64) - learnt[None], axis=2), axis=1)[
        :, :4
    ].mean(axis=1)
    assert np.allclose(detector.scores(asked), by_hand, rtol=1e-4)


def test_the_area_under_the_curve_is_the_chance_that_an_odd_one_scores_higher():
    random = np.random.default_rng(0)
    low, high = random.integers(0, 8, 50).astype(float), random.integers(3, 11, 40).astype(float)
    wins = (high[:, None] > low[None]).mean() + 0.5 * (high[:, None] == low[None]).mean()
    curve = roc(low, high)
    assert curve.area == pytest.approx(wins)
    assert (curve.false_alarms[0], curve.found[0], curve.false_alarms[-1], curve.found[-1]) == (0, 0, 1, 1)
    assert roc(np.array([1.0, 2]), np.array([3.0, 4])).area == 1
    picture = roc_picture({"one": curve, "other": roc(low, low)})
    assert picture.size == (560, 590)


def test_digits_of_a_class_that_was_never_seen_are_found_by_their_pixels():
    """Real pictures: the detector has seen 0 to 8, and is asked about 9 and held-out 0 to 8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = data.data.astype(np.float32) / 16
    known = pixels[data.target != 9]
    order = np.random.default_rng(0).permutation(len(known))
    for way in WAYS:
        detector = fit_detector(known[order[:1200]], way, false_alarms=0.05)
        curve = roc(detector.scores(known[order[1200:]]), detector.scores(pixels[data.target == 9]))
        assert curve.area > {"knn": 0.85, "mahalanobis": 0.7}[way]
        assert detector.odd(known[order[1200:]]).mean() < 0.09


def test_wrong_wishes_are_one_line(tmp_path):
    for call, words in (
        (lambda: fit_detector(normal(20, 0)), "20 normal pictures are too few for 5.0% false alarms"),
        (lambda: fit_detector(normal(200, 0), false_alarms=0), "false alarms means nothing"),
        (lambda: fit_detector(normal(200, 0), "forest"), "outliers called 'forest'"),
        (lambda: fit_detector(np.full((200, 4), np.nan)), "NaN"),
        (lambda: fit_detector(normal(200, 0)).scores(np.zeros((1, 3))), "vectors of 20 numbers"),
        (lambda: roc(np.zeros(0), np.ones(3)), "normal and odd"),
        (
            lambda: outliers(write_vectors(tmp_path, ["a"], np.ones((1, 4), np.float32))),
            "too few to look for outliers",
        ),
        (lambda: outliers_picture([]), "no outliers"),
    ):
        with pytest.raises(UserError, match=words):
            call()
