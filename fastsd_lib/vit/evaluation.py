"""What a classifier answered on labelled images, and every figure that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastsd_lib.vit import metrics


@dataclass(frozen=True)
class Mistake:
    """One image that was taken for another class."""

    key: str
    truth: str
    predicted: str
    confidence: float  # calibrated, of the wrong answer
    loss: float  # -ln of what the true class got


@dataclass(frozen=True)
class Calibration:
    """The temperatures behind calibrated probabilities, and where they come from."""

    temperature: float  # to be kept with the model; 1 = none
    of_row: np.ndarray  # (N,): what each image's logits were divided by; never fitted on that image
    source: str  # one phrase for people: "fitted on 270 other images"
    fitted: bool = True  # False: too few images, nothing to keep with the model


@dataclass(frozen=True)
class Evaluation:
    """Logits and truth of N images of one split, and the figures of them (computed when asked for)."""

    model: str
    classes: tuple[str, ...]
    keys: tuple[str, ...]  # N file names, in the order of the rows
    truth: np.ndarray  # (N,) int
    logits: np.ndarray  # (N, C) float32
    calibration: Calibration
    split: str = "test"
    runner: str = ""  # "openvino bf16"
    seconds: float = 0.0  # reading, decoding and computing together
    machine: str = ""
    errors: tuple[tuple[str, str], ...] = ()  # (file, why it could not be read)

    @property
    def images(self) -> int:
        return len(self.truth)

    @property
    def right(self) -> int:
        return int((self.predicted == self.truth).sum())

    @property
    def accuracy(self) -> float:
        return self.right / self.images

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        return metrics.wilson_interval(self.right, self.images)

    @property
    def images_per_s(self) -> float | None:
        return self.images / self.seconds if self.seconds > 0 else None

    @cached_property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(axis=1)

    @cached_property
    def raw(self) -> np.ndarray:
        """Probabilities (N, C) as the model gives them."""
        return metrics.softmax(self.logits)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Probabilities (N, C) after calibration."""
        return metrics.softmax(self.logits, self.calibration.of_row)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(C, C): row = truth, column = prediction."""
        return metrics.confusion_matrix(self.truth, self.predicted, len(self.classes))

    @cached_property
    def per_class(self) -> metrics.ClassFigures:
        return metrics.class_figures(self.confusion)

    def top_k(self, k: int) -> float:
        return float(metrics.top_k_hits(self.logits, self.truth, k).mean())

    @property
    def top5(self) -> float | None:
        """None where five guesses would be nearly all classes."""
        return self.top_k(5) if len(self.classes) > 10 else None

    def mistakes(self, most: int | None = None) -> list[Mistake]:
        """Wrong answers, those that cost the most first: sure and wrong stands above unsure and wrong."""
        loss = metrics.log_loss(self.logits, self.truth, self.calibration.of_row)
        wrong = np.flatnonzero(self.predicted != self.truth)
        wrong = wrong[np.argsort(-loss[wrong], kind="stable")][:most]
        return [
            Mistake(
                self.keys[row],
                self.classes[self.truth[row]],
                self.classes[self.predicted[row]],
                float(self.probabilities[row].max()),
                float(loss[row]),
            )
            for row in wrong
        ]

    def confused_pairs(self, most: int = 10) -> list[tuple[str, str, int]]:
        """(truth, prediction, how often), the most frequent first."""
        counts = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-counts, axis=None, kind="stable")[:most]
        pairs = [divmod(int(one), len(self.classes)) for one in order]
        return [
            (self.classes[row], self.classes[column], int(counts[row, column]))
            for row, column in pairs
            if counts[row, column]
        ]

    def summary(self) -> dict[str, Any]:
        """All figures as plain JSON values; None = not measured."""
        low, high = self.accuracy_interval
        figures, truth, of_row = self.per_class, self.truth, self.calibration.of_row
        return {
            "model": self.model,
            "split": self.split,
            "images": self.images,
            "unreadable": len(self.errors),
            "accuracy": self.accuracy,
            "accuracy_95": [low, high],
            "top5": self.top5,
            "balanced_accuracy": metrics.balanced_accuracy(self.confusion),
            "macro": {name: figures.macro(name) for name in ("precision", "recall", "f1")},
            "weighted": {name: figures.weighted(name) for name in ("precision", "recall", "f1")},
            "matthews": metrics.matthews(self.confusion),
            "calibration": {
                "temperature": self.calibration.temperature,
                "source": self.calibration.source,
                "before": _honesty(self.raw, truth, metrics.log_loss(self.logits, truth)),
                "after": _honesty(self.probabilities, truth, metrics.log_loss(self.logits, truth, of_row)),
            },
            "runner": self.runner or None,
            "machine": self.machine or None,
            "seconds": self.seconds or None,
            "images_per_s": self.images_per_s,
        }


def _honesty(probabilities: np.ndarray, truth: np.ndarray, loss: np.ndarray) -> dict[str, float]:
    return {
        "ece": metrics.reliability(probabilities, truth).ece,
        "ece_adaptive": metrics.reliability(probabilities, truth, adaptive=True).ece,
        "log_loss": float(loss.mean()),
        "brier": metrics.brier_score(probabilities, truth),
    }
