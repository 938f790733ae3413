"""A model of one's own pictures: train it, judge it on pictures that it has not learned from, and say so beside it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.workflows.vit_model import EMBEDDED, folder_of, open_model
from fastsd_lib.workflows.vit_search import embed

if TYPE_CHECKING:
    from fastsd_lib.vit.evaluation import Evaluation
    from fastsd_lib.vit.folder_data import ImageFolder, Sample
    from fastsd_lib.vit.model import VitModel
    from fastsd_lib.vit.probe import ProbeRow
    from fastsd_lib.vit.trainer import TrainedVit

Split = Literal["held_out", "train", "validation", "test", "all"]


def train(
    config: VitTrainConfig,
    out: str | Path,
    report: Report = silent,
    *,
    restart: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> TrainedVit:
    """Train into the folder `out` (model/, report/, checkpoints/), or resume what it holds of the very same run.

    `restart` drops an unfinished run first. Ctrl-C and `should_stop` save and raise TrainingStopped.
    UserError for a setting, a folder or a machine that will not do.
    """
    for package in ("transformers", "accelerate"):
        require(package, group="vit")
    from fastsd_lib.vit.trainer import train as learn

    out = expanded(out)
    if restart:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        (out / "result.json").unlink(missing_ok=True)
    named = dataclasses.replace(
        config, model=str(folder_of(config.model)), teacher=str(folder_of(config.teacher))
    )
    return learn(named, out, report, should_stop=should_stop)


def probe(
    data: str | Path,
    out: str | Path,
    model: str | Path | VitModel = EMBEDDED,
    features: Features | None = None,
    runner: RunnerConfig | None = None,
    report: Report = silent,
) -> list[ProbeRow]:
    """How well a model's features tell the classes of a folder apart without training it: k-NN and a linear probe.

    Judged on `test/` where the folder has it, else by cross-validation. The vectors are kept in `out`.
    """
    from fastsd_lib.vit import probe as probes
    from fastsd_lib.vit.folder_data import open_image_folder

    folder = open_image_folder(data, validation=0.0)
    known, test = [*folder.train, *folder.validation], list(folder.test)
    store = embed([path for path, _ in (*known, *test)], out, model, features, runner, report)
    vectors = dict(zip(store.keys, store.vectors, strict=True))

    def part(samples: list[Sample]) -> tuple[Any, Any]:
        import numpy

        read = [(vectors[str(path)], label) for path, label in samples if str(path) in vectors]
        return (
            (numpy.stack([one for one, _ in read]), numpy.array([label for _, label in read]))
            if read
            else (None, None)
        )

    return [way(*part(known), *part(test)) for way in (probes.knn, probes.linear_probe)]


def evaluate(
    data: str | Path,
    model: str | Path | VitModel = EMBEDDED,
    split: Split = "held_out",
    out: str | Path | None = None,
    runner: RunnerConfig | None = None,
    report: Report = silent,
    **how: Any,
) -> Evaluation:
    """Try a model on labelled pictures; with `out`, write the report there (report.html, its pictures and numbers).

    `split`: "held_out" is the test pictures where the folder has some, else those that `train` holds back with the
    same `how` (validation, test, seed, group_by as in VitTrainConfig). UserError for classes that the model has not.
    """
    opened = open_model(model)
    from fastsd_lib.vit.folder_data import open_image_folder

    return _measured(opened, open_image_folder(data, **how), split, out, runner, report)


def headline(evaluation: Evaluation) -> list[tuple[str, str]]:
    """(name, value) of the figures that come first, for people."""
    from fastsd_lib.vit import report

    return report.headline(evaluation)


def _measured(
    model: VitModel,
    folder: ImageFolder,
    split: Split,
    out: str | Path | None,
    runner: RunnerConfig | None,
    report: Report,
) -> Evaluation:
    from fastsd_lib.vit.evaluate import evaluate as measure

    parts = {"train": folder.train, "validation": folder.validation, "test": folder.test}
    taken = ("test" if folder.test else "validation") if split == "held_out" else split
    samples = [one for part in parts.values() for one in part] if split == "all" else list(parts[taken])
    if not samples:
        raise UserError(f"{folder.path} holds no {taken} pictures.", fix="choose another split, such as all.")
    made = measure(
        model,
        samples,
        runner or RunnerConfig(),
        fit_on=folder.validation if taken == "test" and folder.validation else None,
        classes=folder.classes,
        split=taken,
        on_progress=report,
    )
    if out:
        from fastsd_lib.vit.report import write_report

        write_report(made, expanded(out), {"pictures": str(folder.path)})
    return made
