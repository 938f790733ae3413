"""Run a classifier over labelled images and keep what its figures are made of.

A temperature is never judged on an image that it was fitted on: it comes from other images (validation), or from the
other half of the same split.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped
from fastsd_lib.vit import metrics
from fastsd_lib.vit.classify import Classifier
from fastsd_lib.vit.config import ClassifyConfig, RunnerConfig
from fastsd_lib.vit.evaluation import Calibration, Evaluation
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.sources import Item

Samples = Sequence[tuple[Path, int]]
FEWEST_TO_CALIBRATE = 20  # a temperature from fewer images says more about them than about the model
_SEED = 1337


def evaluate(
    model: VitModel | str | Path,
    samples: Samples,
    runner_config: RunnerConfig | None = None,
    classify_config: ClassifyConfig | None = None,
    *,
    fit_on: Samples | None = None,
    classes: Sequence[str] | None = None,
    split: str = "test",
    on_progress: Report = silent,
) -> Evaluation:
    """The answers to every readable image of `samples` (path, class index), and its calibration.

    `model` may be a model, its name, or the folder of an export. `classes` names what the indices mean, if not the
    model's labels; they are matched by name. `fit_on`: other labelled images, such as the validation split, to fit the
    temperature on. Without them and without a temperature of the model's own, each half of `samples` is judged with
    the temperature of the other half. Raises UserError for what cannot be evaluated.
    """
    if not samples:
        raise UserError(
            "There are no images to evaluate on.", fix="name a folder with one folder for each class."
        )
    with Classifier(model, runner_config, classify_config) as classifier:
        model = classifier.model
        index_of = _indices(model, [*samples, *(fit_on or ())], classes)
        others = _answers(classifier, fit_on, index_of, "calibrate", on_progress) if fit_on else None
        started = time.perf_counter()
        keys, truth, logits, errors = _answers(classifier, samples, index_of, "evaluate", on_progress)
        seconds = time.perf_counter() - started
        runner = classifier.runner.name
    if not keys:
        raise UserError(
            f"None of the {len(samples)} images could be read; the first: {errors[0][1]}",
            fix="give readable photos.",
        )
    calibration = calibrate(
        logits, truth, *(others[2], others[1]) if others else (None, None), own=model.temperature
    )
    return Evaluation(
        model=model.name,
        classes=tuple(model.labels),
        keys=tuple(keys),
        truth=truth,
        logits=logits,
        calibration=calibration,
        split=split,
        runner=runner,
        seconds=seconds,
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        errors=tuple(errors),
    )


def calibrate(
    logits: np.ndarray,
    truth: np.ndarray,
    other_logits: np.ndarray | None = None,
    other_truth: np.ndarray | None = None,
    *,
    own: float | None = None,
) -> Calibration:
    """The temperature for each row of `logits`: of the other images, else the model's own, else of the other half."""
    images = len(truth)
    if other_logits is not None and len(other_logits) >= FEWEST_TO_CALIBRATE:
        found = metrics.fit_temperature(other_logits, other_truth)
        return Calibration(found, np.full(images, found), f"fitted on {len(other_logits)} other images")
    if own is not None:
        return Calibration(own, np.full(images, own), "stored with the model")
    if images < 2 * FEWEST_TO_CALIBRATE:
        few = f"not fitted: that takes {2 * FEWEST_TO_CALIBRATE} images"
        return Calibration(1.0, np.ones(images), few, fitted=False)
    first = _half(truth)
    of_row = np.empty(images)
    of_row[first] = metrics.fit_temperature(logits[~first], truth[~first])
    of_row[~first] = metrics.fit_temperature(logits[first], truth[first])
    source = "each half of the images is judged with the temperature fitted on the other half"
    return Calibration(metrics.fit_temperature(logits, truth), of_row, source)


def _half(truth: np.ndarray) -> np.ndarray:
    """(N,) bool: half of the images of every class, drawn with a fixed seed."""
    chosen = np.zeros(len(truth), bool)
    order = np.random.default_rng(_SEED).permutation(len(truth))
    ordered = order[np.argsort(truth[order], kind="stable")]
    chosen[ordered[::2]] = True
    return chosen


def _answers(
    classifier: Classifier, samples: Samples, index_of: dict[int, int], task: str, on_progress: Report
) -> tuple[list[str], np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """(file names, true classes, logits, unreadable files), in the order of the samples."""
    keys, truth, rows, errors = [], [], [], []
    on_progress(ProgressEvent(task, 0, len(samples)))
    answers = classifier.logits([Item(str(path), Path(path)) for path, _ in samples])
    for done, ((path, label), (_, answer)) in enumerate(zip(samples, answers, strict=True), 1):
        if isinstance(answer, np.ndarray):
            keys.append(str(path))
            truth.append(index_of[label])
            rows.append(answer)
        else:
            errors.append((str(path), str(answer)))
        on_progress(ProgressEvent(task, done, len(samples)))
    logits = np.stack(rows).astype(np.float32) if rows else np.zeros((0, 0), np.float32)
    return keys, np.array(truth, int), logits, errors


def _indices(model: VitModel, samples: Samples, classes: Sequence[str] | None) -> dict[int, int]:
    """Class index of the samples -> class index of the model; UserError where they do not fit together."""
    if model.multi_label:
        raise UserError(
            f"{model.name} gives several labels to one image; these figures are for one label each.",
            fix="evaluate a model with one label for each image.",
        )
    names = tuple(classes) if classes is not None else tuple(model.labels)
    used = sorted({label for _, label in samples})
    if used[0] < 0 or used[-1] >= len(names):
        raise UserError(
            f"An image has the class number {used[-1] if used[0] >= 0 else used[0]}, but there are {len(names)} classes.",
            fix="number classes from 0, in the order of their names.",
        )
    place = {name.casefold(): index for index, name in reversed(list(enumerate(model.labels)))}
    unknown = [names[label] for label in used if names[label].casefold() not in place]
    if unknown:
        known = ", ".join(escaped(name) for name in model.labels[:8])
        raise UserError(
            f"{model.name} does not know the class {escaped(unknown[0])!r}"
            + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
            + f" (its {len(model.labels)} classes begin with {known}).",
            fix="name the folders as the model names its classes, or train on this folder first.",
        )
    return {label: label if classes is None else place[names[label].casefold()] for label in used}
