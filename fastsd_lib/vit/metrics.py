"""Figures of a classifier: from logits (N, C) and true classes (N,) to accuracy, per-class tables and calibration.

Only numpy. Definitions agree with scikit-learn's, which the tests compare with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastsd_lib.core.errors import UserError

BINS = 15  # of the reliability diagram, as in Guo et al. 2017
TEMPERATURES = (0.05, 20.0)  # a fit that wants to leave this range has learnt nothing
_Z95 = 1.959963984540054


def softmax(logits: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """Probabilities (N, C) in float64; `temperature` is one number or one for each row."""
    scaled = np.asarray(logits, np.float64) / np.reshape(temperature, (-1, 1))
    scaled -= scaled.max(axis=1, keepdims=True)
    powers = np.exp(scaled)
    return powers / powers.sum(axis=1, keepdims=True)


def log_loss(logits: np.ndarray, truth: np.ndarray, temperature: float | np.ndarray = 1.0) -> np.ndarray:
    """-ln p(true class) of each row (N,), exact where p itself would be 0."""
    scaled = np.asarray(logits, np.float64) / np.reshape(temperature, (-1, 1))
    top = scaled.max(axis=1)
    total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return total - scaled[np.arange(len(scaled)), truth]


def top_k_hits(logits: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """(N,) bool: is the true class among the k best? Of equal logits the lower class index stands first."""
    best = np.argsort(-np.asarray(logits, np.float64), axis=1, kind="stable")[:, :k]
    return (best == np.asarray(truth)[:, None]).any(axis=1)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (C, C): row = true class, column = predicted class."""
    flat = np.asarray(truth, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class ClassFigures:
    """Figures of each class, arrays (C,). Where nothing was there to divide by the figure is 0, as scikit-learn has it."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # images that are truly of the class
    predicted: np.ndarray  # images that were taken for it

    def macro(self, figure: str) -> float:
        """The plain mean over the classes that occur, in truth or among the predictions."""
        occurs = (self.support + self.predicted) > 0
        return float(getattr(self, figure)[occurs].mean()) if occurs.any() else math.nan

    def weighted(self, figure: str) -> float:
        """The mean over images: every class counts by its support."""
        total = self.support.sum()
        return float((getattr(self, figure) * self.support).sum() / total) if total else math.nan


def class_figures(confusion: np.ndarray) -> ClassFigures:
    right = np.diag(confusion).astype(np.float64)
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return ClassFigures(
        _ratio(right, predicted),
        _ratio(right, support),
        _ratio(2 * right, support + predicted),
        support,
        predicted,
    )


def balanced_accuracy(confusion: np.ndarray) -> float:
    """The mean recall of the classes that are there; chance is 1 / their number however unequal they are."""
    figures = class_figures(confusion)
    return float(figures.recall[figures.support > 0].mean()) if confusion.sum() else math.nan


def matthews(confusion: np.ndarray) -> float:
    """Matthews' correlation for any number of classes (Gorodkin 2004), in [-1, 1]; 0 = no better than chance."""
    counts = confusion.astype(np.float64)
    truth, predicted, total = counts.sum(axis=1), counts.sum(axis=0), counts.sum()
    shared = np.trace(counts) * total - truth @ predicted
    spread = math.sqrt(total**2 - predicted @ predicted) * math.sqrt(total**2 - truth @ truth)
    return float(shared / spread) if spread else 0.0


def brier_score(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared distance to the one-hot truth, summed over classes: 0 is perfect, 2 the worst."""
    missing = np.array(probabilities, np.float64)
    missing[np.arange(len(missing)), truth] -= 1.0
    return float((missing**2).sum(axis=1).mean())


@dataclass(frozen=True)
class Reliability:
    """Bins of confidence, low to high; arrays (B,) of the bins that hold images."""

    count: np.ndarray
    confidence: np.ndarray  # mean in the bin
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between confidence and accuracy, by images."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float((gaps * self.count).sum() / self.count.sum()) if len(self.count) else math.nan


def reliability(
    probabilities: np.ndarray, truth: np.ndarray, bins: int = BINS, *, adaptive: bool = False
) -> Reliability:
    """How often the top class is right, by how sure the model was.

    `adaptive` bins hold equally many images (Nguyen and O'Connor 2015); the plain ones are equally wide (Guo et al. 2017).
    """
    sure, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    if adaptive:
        groups = [part for part in np.array_split(np.argsort(sure, kind="stable"), bins) if len(part)]
    else:
        place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
        groups = [part for one in range(bins) if len(part := np.flatnonzero(place == one))]
        edges = [(one / bins, (one + 1) / bins) for one in range(bins) if (place == one).any()]
    if adaptive:
        edges = [(sure[part].min(), sure[part].max()) for part in groups]
    return Reliability(
        np.array([len(part) for part in groups], int),
        np.array([sure[part].mean() for part in groups]),
        np.array([hit[part].mean() for part in groups]),
        np.array([low for low, _ in edges]),
        np.array([high for _, high in edges]),
    )


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The T for which softmax(logits / T) has the least log loss (Guo et al. 2017), within `TEMPERATURES`.

    The targets are Platt's (1999): of n images the true class counts (n + 1) / (n + 2), because a set without a
    single mistake would otherwise ask for certainty. The loss is convex in 1/T, so its slope is bisected.
    Never fit on the images that you report on.
    """
    logits, truth = np.asarray(logits, np.float64), np.asarray(truth)
    images, classes = logits.shape
    if images == 0:
        raise UserError(
            "There are no images to fit a temperature on.", fix="give at least one labelled image."
        )
    if classes < 2:
        return 1.0
    doubt = 1 / (images + 2)
    true = logits[np.arange(images), truth]
    wanted = ((1 - doubt) * true + doubt * (logits.sum(axis=1) - true) / (classes - 1)).mean()

    def slope(temperature: float) -> float:  # of the loss by 1/T; it falls as T rises
        return float((softmax(logits, temperature) * logits).sum(axis=1).mean() - wanted)

    low, high = TEMPERATURES
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


def wilson_interval(right: int, total: int, z: float = _Z95) -> tuple[float, float]:
    """Where the true rate lies with 95 % confidence (Wilson 1927); sound for small sets and rates near 0 or 1."""
    if total == 0:
        return 0.0, 1.0
    rate, spread = right / total, z * z / total
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    low = 0.0 if right == 0 else middle - half
    return low, 1.0 if right == total else middle + half


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part), np.float64), where=whole > 0)
