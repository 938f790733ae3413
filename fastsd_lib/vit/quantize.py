"""Smaller, faster models whose answers stay: fewer bits, judged on the user's pictures, taken back where they hurt."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.vit import exports, sensitivity
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.exports import Export, Recipe
from fastsd_lib.vit.gate import Cost, Gate, cost_of
from fastsd_lib.vit.model import VitModel, open_model
from fastsd_lib.vit.runner import open_runner
from fastsd_lib.vit.user_set import LIMIT, Samples, UserSet, open_user_set

#: What is tried when the bits of a precision cost too much, even with layers kept.
FALLBACK = {
    ("openvino", "int4w"): "int8w",
    ("openvino", "int8"): "int8w",
    ("openvino", "int8w"): "fp16",
    ("onnx", "int4w"): "int8w",
    ("onnx", "int8"): "int8w",
    ("onnx", "int8w"): "fp32",
    ("safetensors", "int8w"): "fp16",
}
KEPT_SHARES = (0.1, 0.25, 0.5)  # of the layers, the worst first, that stay in high precision in one more try


@dataclass(frozen=True)
class Judged:
    """An export that passed the gate, and what it costs."""

    export: Export
    cost: Cost
    reference_accuracy: float | None


def quantize(
    model: VitModel,
    precision: str,
    out: Path,
    samples: Samples,
    *,
    format: str = "openvino",
    calibration: Samples | None = None,
    gate: Gate | None = None,
    limit: int = LIMIT,
    report: Report = silent,
) -> Judged:
    """Write `model` with integer weights into the folder `out` and judge it on `samples` (paths, or path and class).

    Where the gate objects, the layers that rounding hurts most stay in high precision, up to half of them; where that
    does not help either, the next higher precision is written and the export's note says so. UserError for a precision
    that is not integer or a format without one.
    """
    check_kind(format, precision)
    with open_user_set(model, samples, limit=limit, calibration=calibration, report=report) as pictures:
        return quantize_on(model, precision, out, pictures, reference_answers(model, pictures, report), format=format,
                           gate=gate or Gate(), report=report)  # fmt: skip


def check_kind(format: str, precision: str) -> None:
    if (format, precision) not in FALLBACK:
        there = ", ".join(f"{one} {bits}" for one, bits in FALLBACK)
        raise UserError(f"There is no quantizing to {format} {precision}.", fix=f"choose one of: {there}.")


def reference_answers(model: VitModel, pictures: UserSet, report: Report = silent) -> np.ndarray:
    """(N, classes) logits of PyTorch in float32: what all others are held against."""
    runner = open_runner(model, config=RunnerConfig(backend="torch", precision="fp32"))
    try:
        return pictures.answers(runner, report, f"answers of {runner.name}")
    finally:
        runner.close()


def quantize_on(
    model: VitModel, precision: str, out: Path, pictures: UserSet, reference: np.ndarray, *, format: str, gate: Gate,
    report: Report = silent,
) -> Judged:  # fmt: skip
    """`quantize` on pictures that are read already."""
    objection = ""
    for recipe in _recipes(model, pictures):
        note = _kept_words(recipe, objection)
        export = exports.export(model, format, precision, out, recipe=recipe, note=note)
        cost, again = judge(export, pictures, reference, report), objection
        objection = gate.objection(cost)
        if not objection:
            return _judged(export, cost, reference, pictures)
        objection = again or objection  # the first one says what the plain way costs
    return _fallen_back(model, precision, out, pictures, reference, format, gate, objection, report)


def judge(export: Export, pictures: UserSet, reference: np.ndarray, report: Report = silent) -> Cost:
    """Run the export over the pictures."""
    runner = open_runner(open_model(export.path))
    try:
        return cost_of(pictures.answers(runner, report, export.path.name), reference, pictures.truth)
    finally:
        runner.close()


def _recipes(model: VitModel, pictures: UserSet) -> Iterator[Recipe]:
    yield Recipe(pictures.calibration)
    ranked = sensitivity.worst_first(model, pictures.calibration)
    for share in KEPT_SHARES:
        kept = tuple(ranked[: math.ceil(share * len(ranked))])
        yield Recipe(pictures.calibration, kept=kept)


def _kept_words(recipe: Recipe, objection: str) -> str:
    if not recipe.kept:
        return ""
    return f"{len(recipe.kept)} layers stay in high precision: without them {objection}."


def _fallen_back(
    model: VitModel, precision: str, out: Path, pictures: UserSet, reference: np.ndarray, format: str, gate: Gate,
    objection: str, report: Report,
) -> Judged:  # fmt: skip
    """The next higher precision in the place of one that the gate has refused in every try."""
    instead = FALLBACK[format, precision]
    if (format, instead) in FALLBACK:
        found = quantize_on(model, instead, out, pictures, reference, format=format, gate=gate, report=report)
    else:
        export = exports.export(model, format, instead, out)
        found = _judged(export, judge(export, pictures, reference, report), reference, pictures)
    why = f"{precision} was asked; {found.export.precision} was written: {objection}, also with half of the layers kept."
    export = exports.set_note(out, asked=precision, note=why)
    return Judged(export, found.cost, found.reference_accuracy)


def _judged(export: Export, cost: Cost, reference: np.ndarray, pictures: UserSet) -> Judged:
    truth = pictures.truth
    return Judged(export, cost, None if truth is None else float((reference.argmax(1) == truth).mean()))
