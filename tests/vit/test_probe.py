"""Linear probe and nearest neighbours: they see what is there, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import probe
from fastsd_lib.vit.evaluation import Calibration, Evaluation


def _clusters(images, classes=4, spread=0.5, seed=0, columns=16):
    random = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    centres = np.random.default_rng(7).normal(size=(classes, columns))
    return centres[labels] + spread * random.normal(size=(images, columns)), labels


@pytest.mark.parametrize("way", [probe.linear_probe, probe.knn])
def test_clear_clusters_are_told_apart_on_test_images_and_by_cross_validation(way):
    known, labels = _clusters(80)
    asked, truth = _clusters(80, seed=1)
    on_test = way(known, labels, asked, truth)
    assert on_test.accuracy > 0.97 and on_test.judged == "80 test images" and on_test.images == 80
    crossed = way(known, labels)
    assert crossed.accuracy > 0.97 and crossed.judged == "5-fold cross-validation" and crossed.images == 80


@pytest.mark.parametrize("images", [20, 120])
@pytest.mark.parametrize("way", [probe.linear_probe, probe.knn])
def test_labels_without_any_sense_are_guessed_no_better_than_by_chance(way, images):
    """Were an image judged by a probe that had seen it, this would be near 1."""
    features, labels = _clusters(images, seed=3)
    labels = np.random.default_rng(4).permutation(labels)
    found = way(features, labels)
    assert found.interval[0] < 0.30 and found.accuracy < 0.5
    assert (found.judged == "leave-one-out") == (images == 20)


def test_neighbours_vote_as_those_of_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    known, labels = _clusters(120, spread=2.0)
    asked, truth = _clusters(90, spread=2.0, seed=5)
    for count in (1, 5):
        witness = KNeighborsClassifier(count, metric="cosine", algorithm="brute").fit(known, labels)
        chances = np.sort(witness.predict_proba(asked), axis=1)
        clear = chances[:, -1] > chances[:, -2]  # draws are decided by likeness here, by class number there
        said = probe._vote(known.astype(np.float32), labels, asked.astype(np.float32), count)
        assert (said == witness.predict(asked))[clear].all() and clear.sum() > 60
        assert probe.knn(known, labels, asked, truth, neighbours=count).right == (said == truth).sum()


def test_the_number_of_neighbours_is_chosen_without_asking_the_image_itself():
    """A third of the labels is wrong: whoever asked himself would take one neighbour and be always right."""
    features, labels = _clusters(240, classes=2, spread=0.3)
    wrong = np.random.default_rng(1).random(240) < 0.35
    noisy = np.where(wrong, 1 - labels, labels)
    features = features.astype(np.float32)
    assert (probe._vote(features, noisy, features, 1, own=True) == noisy).mean() < 0.75
    assert probe._best_neighbours(features, noisy) >= 5


def test_names_serve_as_labels_and_a_class_of_one_image_breaks_nothing():
    features, labels = _clusters(41)
    names = np.array([f"class {one}" for one in labels])
    names[-1] = "lonely"
    for way in (probe.linear_probe, probe.knn):
        found = way(features, names)
        assert found.images == 41 and found.right >= 38


def test_one_table_compares_probes_with_a_fine_tuned_model():
    features, labels = _clusters(100)
    truth = labels[:50]
    evaluation = Evaluation(
        "m",
        tuple("abcd"),
        ("k",) * 50,
        truth,
        np.eye(4, dtype=np.float32)[truth],
        Calibration(1.0, np.ones(50), ""),
        seconds=2.0,
    )
    rows = [probe.linear_probe(features, labels), probe.knn(features, labels), probe.row_of(evaluation)]
    lines = probe.probe_table(rows)
    assert len(lines) == 5 and lines[-1].startswith(
        "| fine-tuned | 100.00% (50 of 50) | 92.9% to 100.0% | 100.00% |"
    )
    assert lines[-1].endswith("| 50 images of test | 2.0 |")


def test_a_probe_says_what_does_not_fit_together():
    features, labels = _clusters(40)
    with pytest.raises(UserError, match="39 labels do not belong"):
        probe.knn(features, labels[1:])
    with pytest.raises(UserError, match="of one class") as error:
        probe.linear_probe(features, np.zeros(40))
    assert error.value.fix == "add a second class."
    with pytest.raises(UserError, match="8 numbers each, those to learn from 16") as error:
        probe.knn(features, labels, features[:, :8], labels)
    assert "same model and layer" in error.value.fix
    with pytest.raises(UserError, match="not numbers"):
        probe.knn(np.full((40, 2), np.nan), labels)
