"""A user's own pictures, read once through the model's transform and kept on disk while models are compared on them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.reading import read_ahead
from fastsd_lib.vit.runner import Runner
from fastsd_lib.vit.transform import Transform

#: Pictures with their class number, or without: then only changed answers can be counted.
Samples = Sequence[tuple[Path, int]] | Sequence[Path]
LIMIT = 1000  # pictures that are compared on; more change the third digit and cost minutes for each kind
CALIBRATION = 64  # pictures that activations are measured on
_SEED = 1337


@dataclass(frozen=True)
class UserSet:
    """Pixels of the pictures to judge on, and of others to calibrate on."""

    pixels: np.ndarray  # (N, 3, H, W) float32, mapped from a file
    truth: np.ndarray | None  # (N,) class numbers of the model
    calibration: np.ndarray  # (M, 3, H, W) float32
    unreadable: int
    of: int  # how many pictures there were to draw from
    apart: bool  # False: too few to keep calibration and judgement apart

    def answers(self, runner: Runner, report: Report = silent, task: str = "") -> np.ndarray:
        """(N, classes) logits; two batches in flight."""
        size, waiting, done = runner.batch_size, [], []
        for start in range(0, len(self.pixels), size):
            waiting.append(runner.submit(np.array(self.pixels[start : start + size])))
            if len(waiting) > 4:
                done.append(waiting.pop(0).result())
            report(ProgressEvent(task, min(start + size, len(self.pixels)), len(self.pixels)))
        return np.concatenate(done + [one.result() for one in waiting])

    @property
    def words(self) -> str:
        drawn = f" of {self.of}" if self.of > self.count + len(self.calibration) + self.unreadable else ""
        how = "labelled pictures" if self.truth is not None else "pictures without labels"
        apart = (
            f"calibrated on {len(self.calibration)} others" if self.apart else "calibrated on the same ones"
        )
        bad = f", {self.unreadable} could not be read" if self.unreadable else ""
        return f"{self.count}{drawn} {how}, {apart}{bad}"

    @property
    def count(self) -> int:
        return len(self.pixels)


@contextmanager
def open_user_set(
    model: VitModel,
    samples: Samples,
    *,
    limit: int = LIMIT,
    calibration: Samples | None = None,
    report: Report = silent,
) -> Iterator[UserSet]:
    """Read the pictures; a fixed draw of them if there are more than `limit`.

    Without pictures to calibrate on, some of `samples` (a quarter, at most CALIBRATION) are set apart and not judged on.
    Pictures that cannot be read are counted. UserError when none can, or class numbers are not the model's.
    """
    pairs = _drawn(_pairs(model, samples))
    apart = calibration is not None or len(pairs) >= 8
    if calibration is not None:
        to_measure, to_judge = _drawn(_pairs(model, calibration))[:CALIBRATION], pairs
    elif apart:
        count = min(CALIBRATION, len(pairs) // 4)
        to_measure, to_judge = pairs[:count], pairs[count:]
    else:
        to_measure = to_judge = pairs
    to_judge = to_judge[:limit]
    with tempfile.TemporaryDirectory(prefix="fastsd-vit-") as folder:
        pixels, rows = _read(model, to_judge, Path(folder) / "pixels.npy", "reading", report)
        measured, measured_rows = _read(
            model, to_measure, Path(folder) / "calibration.npy", "calibration", report
        )
        bad = len(to_judge) + len(to_measure) - len(rows) - len(measured_rows)
        truth = [to_judge[row][1] for row in rows]
        yield UserSet(
            pixels=pixels,
            truth=None if None in truth else np.array(truth),
            calibration=np.array(measured),
            unreadable=bad,
            of=len(pairs),
            apart=apart,
        )


def _drawn(pairs: list) -> list:
    """In an order that mixes the classes, always the same."""
    return [pairs[at] for at in np.random.default_rng(_SEED).permutation(len(pairs))]


def _pairs(model: VitModel, samples: Samples) -> list[tuple[Path, int | None]]:
    pairs = [one if isinstance(one, tuple) else (one, None) for one in samples]
    if not pairs:
        raise UserError("There are no pictures.", fix="name a folder with one folder for each class.")
    wrong = [label for _, label in pairs if label is not None and not 0 <= label < len(model.labels)]
    if wrong:
        raise UserError(
            f"A picture has the class number {wrong[0]}, but {model.name} has {len(model.labels)} classes.",
            fix="number classes as the model does, from 0.",
        )
    return pairs


def _read(
    model: VitModel, pairs: list[tuple[Path, int | None]], file: Path, task: str, report: Report
) -> tuple[np.ndarray, list[int]]:
    """The pixels of what could be read, in a file, and the numbers of the pairs that they are of."""
    transform = Transform.of(model)
    shape = (len(pairs), 3, *transform.size)
    pixels, rows, error = np.lib.format.open_memmap(file, "w+", np.float32, shape), [], ""
    for read in read_ahead([Path(path) for path, _ in pairs], transform):
        if read.views is None:
            error = error or read.error
        else:
            pixels[len(rows)] = read.views[0]
            rows.append(read.index)
        report(ProgressEvent(task, read.index + 1, len(pairs)))
    if not rows:
        raise UserError(
            f"None of the {len(pairs)} pictures can be read; the first: {error}", fix="give readable photos."
        )
    return pixels[: len(rows)], rows
