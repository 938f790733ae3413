"""How far the features of a model go without training it: a linear probe and k nearest neighbours, judged fairly.

Both are judged alike, so that they stand in one table beside a fine-tuned model: on test images where there are some,
else by cross-validation in which an image is never judged by a probe that has seen it, its settings included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit.evaluation import Evaluation
from fastsd_lib.vit.metrics import balanced_accuracy, confusion_matrix, wilson_interval

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)  # C of scikit-learn: 1 / weight of the penalty
NEIGHBOURS = (1, 3, 5, 10, 20)
LEAVE_ONE_OUT = 60  # images at most; a larger set is cut into FOLDS
FOLDS = 5
_FOLDS_OF_FEW = 3  # to choose the penalty in a set that is left out one by one: each image costs a choice
_SEED = 1337
_AT_ONCE = 2048  # rows of similarities
Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class ProbeRow:
    """One way to tell the classes apart, and how well it did."""

    way: str  # "linear probe", "3 nearest neighbours", "fine-tuned"
    right: int
    images: int
    balanced: float  # mean recall of the classes
    judged: str  # "360 test images", "leave-one-out", "5-fold cross-validation"
    seconds: float | None = None  # fitting and judging

    @property
    def accuracy(self) -> float:
        return self.right / self.images

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.right, self.images)


def linear_probe(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
) -> ProbeRow:
    """Logistic regression on `features` (N, D), its penalty chosen by cross-validation on the training images alone."""
    require("sklearn", group="vit")
    return _judged("linear probe", _fit_linear, features, labels, test_features, test_labels)


def knn(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray | None = None,
    test_labels: np.ndarray | None = None,
    neighbours: int | None = None,
) -> ProbeRow:
    """The vote of the nearest `features` by cosine, draws by likeness; their number, if not given, by leave-one-out."""

    def fit(known: np.ndarray, classes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        chosen = neighbours or _best_neighbours(known, classes)
        return lambda asked: _vote(known, classes, asked, chosen)

    name = f"{neighbours} nearest neighbours" if neighbours else "nearest neighbours"
    return _judged(name, fit, features, labels, test_features, test_labels)


def row_of(evaluation: Evaluation, way: str = "fine-tuned") -> ProbeRow:
    """A whole model's row in the same table."""
    judged = f"{evaluation.images} images of {evaluation.split}"
    balanced = balanced_accuracy(evaluation.confusion)
    return ProbeRow(way, evaluation.right, evaluation.images, balanced, judged, evaluation.seconds or None)


def probe_table(rows: Iterable[ProbeRow]) -> list[str]:
    """Markdown lines: the ways side by side, each with its interval and how it was judged."""
    lines = [
        "| way | accuracy | 95 % interval | balanced | judged by | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row.interval
        spent = "not measured" if row.seconds is None else f"{row.seconds:.1f}"
        lines.append(
            f"| {row.way} | {row.accuracy:.2%} ({row.right} of {row.images}) | {low:.1%} to {high:.1%} "
            f"| {row.balanced:.2%} | {row.judged} | {spent} |"
        )
    return lines


def _judged(way, fit: Fit, features, labels, test_features, test_labels) -> ProbeRow:
    features, labels = _checked(features, labels)
    began = time.perf_counter()
    if test_features is not None:
        test_features, truth = _checked(test_features, test_labels, columns=features.shape[1])
        said, judged = fit(features, labels)(test_features), f"{len(truth)} test images"
    else:
        truth, said = labels, np.empty_like(labels)
        for left_out in _folds(labels):
            said[left_out] = fit(features[~left_out], labels[~left_out])(features[left_out])
        judged = "leave-one-out" if len(labels) <= LEAVE_ONE_OUT else f"{FOLDS}-fold cross-validation"
    seconds = time.perf_counter() - began
    classes, places = np.unique(np.concatenate([truth, said]), return_inverse=True)
    confusion = confusion_matrix(places[: len(truth)], places[len(truth) :], len(classes))
    return ProbeRow(
        way, int((said == truth).sum()), len(truth), balanced_accuracy(confusion), judged, seconds
    )


def _fit_linear(known: np.ndarray, classes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    present, counts = np.unique(classes, return_counts=True)
    if len(present) == 1:  # what is left of a tiny set
        return lambda asked: np.full(len(asked), present[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    folds = min(FOLDS if len(known) >= LEAVE_ONE_OUT else _FOLDS_OF_FEW, int(counts.min()))
    if folds < 2:
        return model.fit(known, classes).predict
    cuts = StratifiedKFold(folds, shuffle=True, random_state=_SEED)
    return GridSearchCV(model, {"logisticregression__C": STRENGTHS}, cv=cuts).fit(known, classes).predict


def _best_neighbours(known: np.ndarray, classes: np.ndarray) -> int:
    able = [one for one in NEIGHBOURS if one < len(known)] or [1]
    hits = [(_vote(known, classes, known, one, own=True) == classes).sum() for one in able]
    return able[int(np.argmax(hits))]


def _vote(
    known: np.ndarray, classes: np.ndarray, asked: np.ndarray, count: int, own: bool = False
) -> np.ndarray:
    """The class of most of the `count` nearest; `own`: nobody is a neighbour of himself."""
    names, places = np.unique(classes, return_inverse=True)
    known, asked = _unit_rows(known), _unit_rows(asked)
    count = min(count, len(known) - own)
    said = np.empty(len(asked), classes.dtype)
    for start in range(0, len(asked), _AT_ONCE):
        likeness = asked[start : start + _AT_ONCE] @ known.T
        if own:
            rows = np.arange(len(likeness))
            likeness[rows, start + rows] = -np.inf
        near = np.argpartition(-likeness, count - 1, axis=1)[:, :count]
        votes = np.zeros((len(likeness), len(names)))
        weights = 1 + np.take_along_axis(likeness, near, axis=1) / (4 * count)  # likeness decides draws only
        np.add.at(votes, (np.arange(len(likeness))[:, None], places[near]), weights)
        said[start : start + _AT_ONCE] = names[votes.argmax(axis=1)]
    return said


def _folds(labels: np.ndarray) -> Iterator[np.ndarray]:
    """(N,) bool of the images to judge: one at a time in a tiny set, else a fifth of each class."""
    if len(labels) <= LEAVE_ONE_OUT:
        for at in range(len(labels)):
            yield np.arange(len(labels)) == at
        return
    order = np.random.default_rng(_SEED).permutation(len(labels))
    ordered = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), int)
    fold[ordered] = np.arange(len(labels)) % FOLDS
    for one in range(FOLDS):
        yield fold == one


def _unit_rows(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _checked(features, labels, columns: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features, np.float32)
    labels = np.asarray(labels if labels is not None else [])
    if features.ndim != 2 or len(features) != len(labels):
        raise UserError(
            f"{len(labels)} labels do not belong to features of shape {features.shape}.",
            fix="give one row of features and one label for each image.",
        )
    if len(np.unique(labels)) < 2 and columns is None:
        raise UserError(
            "All images are of one class: there is nothing to tell apart.", fix="add a second class."
        )
    if columns is not None and features.shape[1] != columns:
        raise UserError(
            f"The test features have {features.shape[1]} numbers each, those to learn from {columns}.",
            fix="embed both with the same model and layer.",
        )
    if not np.isfinite(features).all():
        raise UserError("Some features are not numbers (NaN or infinite).", fix="embed these images again.")
    return features, labels
