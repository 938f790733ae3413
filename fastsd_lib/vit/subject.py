"""Does a picture show the subject? A classifier of one subject against its class, made from a handful of photos.

Pictures become vectors, by a ViT or by colours and edges alone (`images/likeness.py`), and a ridge classifier (Hoerl
and Kennard 1970) on them is solved in one step. What it says of the photos it was made from is said without them: the
leave-one-out answers follow from the same solution (Allen 1974), photos that are nearly the same being left out
together. Probabilities are Platt's (1999), which for five photos never come near 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoConfig

from fastsd_lib.core.errors import UserError
from fastsd_lib.images.likeness import describe
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.model import VitModel

Describer = Callable[[Sequence[Image.Image]], np.ndarray]  # pictures -> (n, D)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # shares of the mean square length of a vector
LEAST = 2  # photos of the subject, and of the class
_NEWTON_STEPS = 50


@dataclass(frozen=True)
class SubjectJudge:
    """A classifier, and how it did on the photos that it was made from, each judged without itself."""

    way: str  # what the vectors are made by: "look", or the name of a ViT
    separation: float  # area under the ROC of the leave-one-out answers: 1 = all told apart, 0.5 = chance
    own: np.ndarray  # (n,) score of each photo of the subject, made without it
    others: np.ndarray  # (m,) score of each class picture, made without it
    compared: Mapping[str, float]  # the separation of every way that was tried
    describer: Describer
    solution: Ridge
    scale: tuple[float, float]  # Platt's slope and offset

    def score(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """(n,) in (0, 1): how likely each picture shows the subject, if half of all did; 0.5 = undecided."""
        if not pictures:
            return np.zeros(0)
        return _platt(self.solution.margins(self.describer(pictures)), self.scale)


def train_judge(
    subject: Sequence[Image.Image],
    others: Sequence[Image.Image],
    describers: Mapping[str, Describer] | None = None,
    twins: Sequence[int] | None = None,
) -> SubjectJudge:
    """The classifier whose vectors tell `subject` and `others` apart best, by the leave-one-out answers.

    `describers`: name -> way to make vectors (default: colours and edges); `twins`: a number for each picture of the
    subject, the same for those that are nearly the same. Takes seconds for hundreds of pictures. UserError for fewer
    than two of either.
    """
    for name, pictures in (("subject", subject), ("class", others)):
        if len(pictures) < LEAST:
            raise UserError(
                f"A judge needs at least {LEAST} pictures of the {name}; there are {len(pictures)}.",
                fix="add photos." if name == "subject" else "make class images, or name a folder with some.",
            )
    groups = np.arange(len(subject)) if twins is None else np.asarray(twins)
    groups = np.concatenate([groups, groups.max() + 1 + np.arange(len(others))])
    labels = np.concatenate([np.ones(len(subject)), -np.ones(len(others))])
    judges = []
    for way, describer in (describers or {"look": look}).items():
        vectors = describer([*subject, *others])
        judges.append(_judge(way, describer, vectors, labels, groups))
    # Of two that separate alike, the one whose answers lie further apart.
    best = max(judges, key=lambda one: (round(one.separation, 3), one.own.mean() - one.others.mean()))
    compared = {one.way: one.separation for one in judges}
    return SubjectJudge(**{**vars(best), "compared": compared})


def look(pictures: Sequence[Image.Image]) -> np.ndarray:
    """(n, 360): colours and edge directions; no network."""
    return np.stack([describe(picture) for picture in pictures])


@contextmanager
def vit_describer(model: VitModel, config: RunnerConfig | None = None) -> Iterator[Describer]:
    """Vectors of length 1 from a ViT's last layer: its class token, or the mean over patches where it has none."""
    from fastsd_lib.vit.outputs import tokens_before_patches
    from fastsd_lib.vit.runner import open_runner
    from fastsd_lib.vit.transform import Transform

    has_class_token = tokens_before_patches(AutoConfig.from_pretrained(model.path)) > 0
    transform = Transform.of(model)
    runner = open_runner(model, Features(pool="cls" if has_class_token else "mean", normalize=True), config)

    def described(pictures: Sequence[Image.Image]) -> np.ndarray:
        found = []
        for start in range(0, len(pictures), runner.batch_size):
            part = pictures[start : start + runner.batch_size]
            found.append(runner.run(np.stack([transform(one.convert("RGB")) for one in part])))
        return np.concatenate(found).astype(np.float64)

    try:
        yield described
    finally:
        runner.close()


@dataclass(frozen=True)
class Ridge:
    """Weighted ridge regression to +1 and -1: margins of vectors about the mean of those it was made from."""

    mean: np.ndarray  # (D,)
    weights: np.ndarray  # (D + 1,); the last one is the offset

    def margins(self, vectors: np.ndarray) -> np.ndarray:
        return _with_one(vectors - self.mean) @ self.weights


def solve(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray, ridge: float
) -> tuple[Ridge, np.ndarray]:
    """The solution, and (n,) margins of each picture by the solution that its own group had no part in.

    Both classes weigh the same, however many pictures they have. `ridge`: as a share of the mean square length.
    """
    mean = vectors.mean(axis=0)
    rows = _with_one(vectors - mean)
    root = np.sqrt(_balanced(labels))
    rows, aims = rows * root[:, None], labels * root
    penalty = ridge * float(np.mean((rows[:, :-1] ** 2).sum(axis=1))) + 1e-9
    gram = rows @ rows.T
    hat = np.linalg.solve(gram + penalty * np.eye(len(rows)), gram).T  # the fitted aims are hat @ aims
    residual = aims - hat @ aims
    held_out = np.empty(len(rows))
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        left = np.eye(len(inside)) - hat[np.ix_(inside, inside)]
        held_out[inside] = aims[inside] - np.linalg.solve(left, residual[inside])
    weights = rows.T @ np.linalg.solve(gram + penalty * np.eye(len(rows)), aims)
    return Ridge(mean, weights), held_out / root


def separation(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC: the chance that a picture of the subject scores above one of the class; ties count half."""
    above = (positive[:, None] > negative[None]).mean()
    return float(above + (positive[:, None] == negative[None]).mean() / 2)


def _judge(
    way: str, describer: Describer, vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> SubjectJudge:
    vectors = np.asarray(vectors, np.float64)
    solved = [solve(vectors, labels, groups, ridge) for ridge in RIDGES]
    weights = _balanced(labels)
    errors = [float((weights * (labels - held_out) ** 2).mean()) for _, held_out in solved]
    solution, margins = solved[int(np.argmin(errors))]
    scale = _fit_platt(margins, labels)
    scores, mine = _platt(margins, scale), labels > 0
    area = separation(margins[mine], margins[~mine])
    return SubjectJudge(way, area, scores[mine], scores[~mine], {}, describer, solution, scale)


def _fit_platt(margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the logistic curve through the margins; Newton's method on the balanced log-likelihood.

    The aims are Platt's (n + 1) / (n + 2) instead of 1, so that a curve is found where the classes do not overlap.
    A slope below 0 (worse than chance) becomes 0: then every picture scores the same.
    """
    mine = labels > 0
    aims = np.where(mine, (mine.sum() + 1) / (mine.sum() + 2), 1 / ((~mine).sum() + 2))
    weights, rows = _balanced(labels), _with_one(margins[:, None])
    found = np.zeros(2)
    for _ in range(_NEWTON_STEPS):
        likely = _sigmoid(rows @ found)
        slope = rows.T @ (weights * (aims - likely)) - 1e-6 * found
        curve = (rows * (weights * likely * (1 - likely))[:, None]).T @ rows + 1e-6 * np.eye(2)
        step = np.linalg.solve(curve, slope)
        found = found + step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return (float(found[0]), float(found[1])) if found[0] > 0 else (0.0, 0.0)


def _platt(margins: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    return _sigmoid(scale[0] * margins + scale[1])


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(values, -60, 60)))


def _balanced(labels: np.ndarray) -> np.ndarray:
    """(n,) weights of mean 1; each class has half of them."""
    mine = labels > 0
    return np.where(mine, 0.5 / mine.sum(), 0.5 / (~mine).sum()) * len(labels)


def _with_one(rows: Any) -> np.ndarray:
    return np.hstack([rows, np.ones((len(rows), 1))])
