"""What each way of making a model smaller saves and costs: written, run and measured side by side, in one table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit import exports, quantize
from fastsd_lib.vit.compress_table import Row, Table
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.exports import BACKEND_OF, EXPORTERS, Export
from fastsd_lib.vit.gate import Cost, Gate
from fastsd_lib.vit.model import VitModel, open_model
from fastsd_lib.vit.runner import Runner, open_runner
from fastsd_lib.vit.user_set import LIMIT, Samples, UserSet, open_user_set

#: "format:precision". The first is what all others are compared with.
REFERENCE = "safetensors:fp32"
KINDS = (
    REFERENCE, "safetensors:bf16", "safetensors:int8w",
    "openvino:fp32", "openvino:bf16", "openvino:int8w", "openvino:int8", "openvino:int4w",
    "onnx:fp32", "onnx:int8w", "onnx:int8", "onnx:int4w",
    "coreml:fp16", "tensorrt:fp16", "tensorflow:fp32", "tflite:int8w",
)  # fmt: skip
BATCHES = (1, 16)
ROUNDS = 3
SECONDS = 1.0  # of each measurement, at least one batch


@dataclass(frozen=True)
class _Made:
    """A kind that could be written, or the reason why not."""

    kind: str
    export: Export | None
    cost: Cost | None
    problem: str = ""

    @property
    def runs(self) -> bool:
        return self.export is not None and self.export.format in BACKEND_OF


def compress(
    model: VitModel,
    samples: Samples,
    kinds: Sequence[str] = KINDS,
    out: Path = Path("compressed"),
    *,
    calibration: Samples | None = None,
    gate: Gate | None = None,
    limit: int = LIMIT,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    threads: int = 0,
    report: Report = silent,
) -> Table:
    """Write `model` as every kind into `out`/exports/, measure all of them on `samples`, write `out`/table.md, .json.

    `samples`: the user's own pictures, with their class numbers or without (then only changed answers are counted).
    Integer kinds pass the gate (see quantize) or fall back. A kind that cannot be written here is a row that says why.
    UserError for an unknown kind or unreadable pictures, before anything is written.
    """
    for kind in kinds:
        _check(kind)
    with open_user_set(model, samples, limit=limit, calibration=calibration, report=report) as pictures:
        reference = quantize.reference_answers(model, pictures, report)
        made = []
        for number, kind in enumerate(kinds):
            report(ProgressEvent("compress", number, len(kinds), {"": kind}))
            made.append(_make(model, kind, out / "exports", pictures, reference, gate or Gate(), report))
        report(ProgressEvent("compress", len(kinds), len(kinds)))
    running = {one.kind: one.export for one in made if one.export is not None and one.runs}
    speeds = speeds_of(
        running, model.image_px, rounds=rounds, seconds=seconds, threads=threads, report=report
    )
    truth = pictures.truth
    table = Table(
        model=model.name,
        parameters=model.parameters,
        pictures=pictures.words,
        reference_accuracy=None if truth is None else float((reference.argmax(1) == truth).mean()),
        threads=threads,
        rows=tuple(_row(one, speeds.get(one.kind, {}), pictures) for one in made),
    )
    for row, one in zip(table.rows, made, strict=True):
        if one.export is not None:
            exports.set_measured(one.export.path, row.as_json())
    table.write(out)
    return table


def _check(kind: str) -> None:
    format, _, precision = kind.partition(":")
    if format not in EXPORTERS or not precision:
        raise UserError(f"There is no kind {kind!r}.", fix=f"choose some of: {', '.join(KINDS)}.")


def _make(
    model: VitModel,
    kind: str,
    folder: Path,
    pictures: UserSet,
    reference: np.ndarray,
    gate: Gate,
    report: Report,
) -> _Made:
    format, _, precision = kind.partition(":")
    out = folder / f"{format}-{precision}"
    try:
        if (format, precision) in quantize.FALLBACK:
            found = quantize.quantize_on(
                model, precision, out, pictures, reference, format=format, gate=gate, report=report
            )
            return _Made(kind, found.export, found.cost)
        export = exports.export(model, format, precision, out)
        runs = format in BACKEND_OF
        return _Made(kind, export, quantize.judge(export, pictures, reference, report) if runs else None)
    except UserError as error:
        return _Made(kind, None, None, f"not written: {error.message}")


def speeds_of(
    made: Mapping[str, Export],
    image_px: tuple[int, int],
    *,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    threads: int = 0,
    report: Report = silent,
) -> dict[str, dict[int, float]]:
    """name -> batch -> pictures a second, the median of rounds in which every export has its turn.

    So a machine that is busy for a while disturbs all of them and not one.
    """
    found: dict[str, dict[int, list[float]]] = {name: {} for name in made}
    for number in range(rounds):
        for name, export in made.items():
            report(ProgressEvent("speed", number, rounds, {"": name}))
            runner = open_runner(open_model(export.path), config=RunnerConfig(threads=threads))
            try:
                for batch in BATCHES:
                    found[name].setdefault(batch, []).append(_speed(runner, image_px, batch, seconds))
            finally:
                runner.close()
    report(ProgressEvent("speed", rounds, rounds))
    return {
        name: {size: statistics.median(each) for size, each in sizes.items()} for name, sizes in found.items()
    }


def _speed(runner: Runner, image_px: tuple[int, int], batch: int, seconds: float) -> float:
    pixels = np.random.default_rng(0).standard_normal((batch, 3, *image_px), np.float32)
    runner.run(pixels)  # the first call of a size prepares memory
    done, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not done:
        runner.run(pixels)
        done += batch
    return done / spent


def _row(made: _Made, speeds: dict[int, float], pictures: UserSet) -> Row:
    format, _, precision = made.kind.partition(":")
    row = Row(kind=made.kind, format=format, precision=precision, note=made.problem)
    if made.export is None:
        return row
    export, cost = made.export, made.cost
    row = replace(
        row,
        precision=export.precision,
        size_mib=export.size_mib,
        images_per_s_b1=speeds.get(1),
        images_per_s_b16=speeds.get(16),
        max_abs_logit_error=export.max_abs_logit_error,
        kept_layers=len(export.kept),
        checked=_checked(made, pictures),
        note=export.note,
    )
    if cost is None:
        return row
    return replace(
        row, accuracy=cost.accuracy, change_points=cost.change_points, flips=cost.flips,
        max_abs_logit_error=cost.max_abs_logit_error,
    )  # fmt: skip


def _checked(made: _Made, pictures: UserSet) -> str:
    if made.runs:
        return f"run on {pictures.count} pictures"
    return made.export.checked or "structure only"
