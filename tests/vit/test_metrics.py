"""Figures of a classifier against scikit-learn, closed forms and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import metrics


def _set(images=400, classes=5, seed=0, sharp=2.0):
    """Logits that are right more often than chance, and a class that nobody is (the last)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes - 1, images)
    logits = rng.normal(size=(images, classes)) * 1.3
    logits[np.arange(images), truth] += sharp
    logits[:, -1] -= 50 if seed % 2 else 0
    return logits, truth


@pytest.mark.parametrize("seed", range(4))
def test_the_figures_are_those_of_scikit_learn(seed):
    from sklearn import metrics as witness

    logits, truth = _set(seed=seed)
    predicted = logits.argmax(axis=1)
    probabilities = metrics.softmax(logits)
    confusion = metrics.confusion_matrix(truth, predicted, 5)
    labels = list(range(5))
    assert (confusion == witness.confusion_matrix(truth, predicted, labels=labels)).all()
    ours = metrics.class_figures(confusion)
    theirs = witness.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    for mine, other in zip((ours.precision, ours.recall, ours.f1, ours.support), theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    for average in ("macro", "weighted"):
        expected = witness.f1_score(truth, predicted, average=average, zero_division=0)
        assert getattr(ours, average)("f1") == pytest.approx(expected, abs=1e-12)
    with np.errstate(all="ignore"):
        expected = witness.balanced_accuracy_score(truth, predicted, adjusted=False)
    assert metrics.balanced_accuracy(confusion) == pytest.approx(expected, abs=1e-12)
    assert metrics.matthews(confusion) == pytest.approx(
        witness.matthews_corrcoef(truth, predicted), abs=1e-12
    )
    expected = witness.top_k_accuracy_score(truth, logits, k=2, labels=labels)
    assert metrics.top_k_hits(logits, truth, 2).mean() == pytest.approx(expected)
    expected = witness.log_loss(truth, probabilities, labels=labels)
    assert metrics.log_loss(logits, truth).mean() == pytest.approx(expected, abs=1e-9)
    one_hot = np.eye(5)[truth]
    assert metrics.brier_score(probabilities, truth) == pytest.approx(
        ((probabilities - one_hot) ** 2).sum(1).mean()
    )


def test_figures_computed_by_hand():
    confusion = np.array(
        [[3, 1, 0], [0, 2, 0], [0, 0, 0]]
    )  # nobody is, and nobody is taken for, the third class
    figures = metrics.class_figures(confusion)
    np.testing.assert_allclose(figures.precision, [1, 2 / 3, 0])
    np.testing.assert_allclose(figures.recall, [3 / 4, 1, 0])
    assert metrics.balanced_accuracy(confusion) == pytest.approx(7 / 8)
    assert figures.macro("recall") == pytest.approx(7 / 8)
    assert metrics.matthews(np.array([[5, 0], [0, 5]])) == pytest.approx(1)
    assert metrics.matthews(np.array([[0, 5], [5, 0]])) == pytest.approx(-1)
    assert metrics.matthews(np.array([[5, 0], [5, 0]])) == 0  # always the same answer


def test_probabilities_survive_huge_logits():
    probabilities = metrics.softmax(np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32))
    np.testing.assert_allclose(probabilities, [[1, 0], [0, 1]])
    assert metrics.log_loss(np.array([[0.0, 1e4]]), np.array([0]))[0] == pytest.approx(1e4)


def test_a_perfectly_honest_model_has_no_calibration_error_and_a_boaster_has_the_gap():
    honest = np.array([[0.75, 0.25]] * 4)
    assert metrics.reliability(honest, np.array([0, 0, 0, 1])).ece == pytest.approx(0)
    boaster = np.array([[0.99, 0.01]] * 4)
    assert metrics.reliability(boaster, np.array([0, 0, 1, 1])).ece == pytest.approx(0.49)
    assert metrics.reliability(boaster, np.array([0, 0, 1, 1]), adaptive=True).count.sum() == 4


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_calibration_error_agrees_with_a_slow_twin(adaptive):
    logits, truth = _set(seed=3)
    probabilities = metrics.softmax(logits)
    sure, hit = probabilities.max(1), probabilities.argmax(1) == truth
    if adaptive:
        order = sorted(range(len(sure)), key=lambda one: sure[one])
        groups = [list(part) for part in np.array_split(order, 10)]
    else:
        groups = [[i for i in range(len(sure)) if b / 10 < sure[i] <= (b + 1) / 10] for b in range(10)]
    slow = sum(abs(sum(hit[i] - sure[i] for i in group)) for group in groups) / len(sure)
    curve = metrics.reliability(probabilities, truth, 10, adaptive=adaptive)
    assert curve.ece == pytest.approx(slow, abs=1e-12)
    assert curve.count.sum() == len(truth)
    if adaptive:
        assert curve.count.max() - curve.count.min() <= 1


def test_a_known_temperature_is_found_again():
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(20_000, 6)) * 2
    chances = metrics.softmax(honest).cumsum(axis=1)
    truth = (rng.random((20_000, 1)) > chances).sum(axis=1).clip(max=5)
    for temperature in (0.4, 1.0, 3.0):
        assert metrics.fit_temperature(honest * temperature, truth) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_has_the_least_loss_of_all():
    logits, truth = _set(images=3000, sharp=1.0)
    logits *= 3
    found = metrics.fit_temperature(logits, truth)
    losses = {t: metrics.log_loss(logits, truth, t).mean() for t in (found * 0.9, found, found * 1.1)}
    assert min(losses, key=losses.get) == found > 1
    before = metrics.reliability(metrics.softmax(logits), truth).ece
    assert metrics.reliability(metrics.softmax(logits, found), truth).ece < before / 3


def test_a_set_without_mistakes_does_not_ask_for_certainty():
    logits = np.eye(3)[[0, 1, 2] * 10] * 4.0
    found = metrics.fit_temperature(logits, np.array([0, 1, 2] * 10))
    assert metrics.softmax(logits, found).max() == pytest.approx(31 / 32, abs=1e-6)  # (n + 1) / (n + 2)


def test_a_temperature_needs_images():
    with pytest.raises(UserError, match="no images") as error:
        metrics.fit_temperature(np.zeros((0, 3)), np.zeros(0, int))
    assert "at least one labelled image" in error.value.fix


def test_wilsons_interval_holds_the_truth_about_95_times_of_100():
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    low, high = metrics.wilson_interval(10, 10)  # closed form: n / (n + z^2)
    assert high == 1.0 and low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    for rate, total in ((0.98, 80), (0.7, 40)):
        chances = [math.comb(total, k) * rate**k * (1 - rate) ** (total - k) for k in range(total + 1)]
        held = sum(
            chance
            for k, chance in enumerate(chances)
            if metrics.wilson_interval(k, total)[0] <= rate <= metrics.wilson_interval(k, total)[1]
        )
        assert 0.92 < held < 0.985
