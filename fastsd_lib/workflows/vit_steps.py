"""The steps of notebooks/vit.ipynb: each reads an experiment's folder, does one thing, and leaves it there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit.config import ClassifyConfig
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.workflows import vit, vit_compress
from fastsd_lib.workflows.vit_experiment import Experiment

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.vit.exports import Export
    from fastsd_lib.vit.predictions import Prediction
    from fastsd_lib.vit.trainer import TrainedVit
    from fastsd_lib.workflows.curation import Curation

SHOWN = 12  # held-out pictures that are tried, groups that are shown


def train(
    experiment: Experiment,
    config: VitTrainConfig,
    report: Report = silent,
    should_stop: Callable[[], bool] | None = None,
    *,
    resume: bool = True,
) -> TrainedVit:
    """Learn the experiment's pictures, or go on where an unfinished run of these choices stopped."""
    asked = dataclasses.replace(config, data=str(experiment.pictures))
    loud = _with_loss(report, experiment.path)
    return vit.train(asked, experiment.path, loud, restart=not resume, should_stop=should_stop)


def told_of(trained: TrainedVit) -> dict[str, Any]:
    """What a user wants to know of a finished training."""
    images = trained.images
    facts = {
        "model": trained.model.path,
        "classes": len(images.classes),
        "learned from": f"{len(images.train)} pictures",
        **(
            {"right": f"{trained.metrics['accuracy']:.2%} of the held-out pictures"}
            if trained.metrics
            else {}
        ),
        "steps": trained.steps,
    }
    return {**facts, **{f"note {number}": note for number, note in enumerate(trained.notes, 1)}}


def evaluate(experiment: Experiment, split: str = "held_out", report: Report = silent) -> Path:
    """The folder of the report on a part of the experiment's pictures, split as they were for training."""
    out = experiment.report if split == "held_out" else experiment.path / f"report-{split}"
    if split == "held_out" and _is_newer(
        out / "report.json", experiment.path / "model" / "model.safetensors"
    ):
        return out  # training has written it; measured again, the temperature would be judged on what it was fitted to
    vit.evaluate(experiment.pictures, experiment.model, split, out, report=report, **_split_of(experiment))
    return out


def held_out(experiment: Experiment, count: int = SHOWN) -> list[Path]:
    """Pictures that training did not learn from, evenly over the classes."""
    from fastsd_lib.vit.folder_data import open_image_folder

    data = open_image_folder(experiment.pictures, check=False, **_split_of(experiment))
    paths = [path for path, _ in data.test or data.validation or data.train]
    return paths[:: max(1, len(paths) // count)][:count]


def classify(
    experiment: Experiment, what: str = "", config: ClassifyConfig | None = None, report: Report = silent
) -> list[Prediction]:
    """What is on pictures ("" = some that were held out); all answers are written to predictions.csv as well."""
    config = config or ClassifyConfig()
    found = list(vit.classify(what.strip() or held_out(experiment), experiment.model, config, report=report))
    vit.write_predictions(found, experiment.predictions, config.top_k)
    return found


def explain(
    experiment: Experiment, picture: str = "", ways: str = "", target: str = "", report: Report = silent
) -> dict[str, Image]:
    """How the model sees a picture ("" = the first that was held out), also written to inside/."""
    chosen = [way.strip() for way in ways.split(",") if way.strip()] or None
    asked = picture.strip() or held_out(experiment, 1)[0]
    return vit.explain(asked, experiment.model, chosen, target.strip() or None, experiment.inside, report)


def compress(experiment: Experiment, kinds: str = "", report: Report = silent) -> list[dict[str, Any]]:
    """The table of smaller models, a row for each kind; models and table are in compressed/."""
    chosen = [kind.strip() for kind in kinds.split(",") if kind.strip()] or list(vit_compress.KINDS)
    table = vit.quantize(
        experiment.pictures, experiment.model, chosen, experiment.compressed, report, seconds=0.3,
        **_split_of(experiment),
    )  # fmt: skip
    return [
        {
            "kind": row.kind, "written as": row.precision, "MiB": row.size_mib, "pictures/s": row.images_per_s_b1,
            "by 16": row.images_per_s_b16, "right": _percent(row.accuracy), "answers changed": _percent(row.flips),
            "logit error": row.max_abs_logit_error, "note": row.note or row.checked,
        }
        for row in table.rows
    ]  # fmt: skip


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def export(experiment: Experiment, format: str, precision: str, report: Report = silent) -> Export:
    """The model for other programs, in exports/FORMAT-PRECISION."""
    report(ProgressEvent(f"export to {format}", 0, 1))
    made = vit.export(experiment.model, format, precision, experiment.exports / f"{format}-{precision}")
    report(ProgressEvent(f"export to {format}", 1, 1))
    return made


def told_of_export(made: Export) -> dict[str, Any]:
    facts = {
        "open this": made.opens,
        "format": f"{made.format} {made.precision}",
        "size": f"{made.size_mib:.2f} MiB",
    }
    return {**facts, "checked": made.checked, **({"note": made.note} if made.note else {})}


def curate(root: Path, session_name: str, report: Report = silent) -> Curation | None:
    """What is to be said of the photos of a DreamBooth session; None where none is named."""
    if not session_name.strip():
        return None
    from fastsd_lib.workflows import curation, dreambooth

    session = dreambooth.open_session(session_name.strip(), root, create_if_missing=False)
    found = curation.curate(session, report=report)
    curation.save(found)
    return found


def _is_newer(one: Path, other: Path) -> bool:
    return one.is_file() and one.stat().st_mtime >= other.stat().st_mtime


def _split_of(experiment: Experiment) -> dict[str, Any]:
    """How the training split the pictures, so that nobody is asked what it was taught; the usual split before any."""
    from fastsd_lib.core.config import load_config

    recipe = experiment.path / "recipe.yaml"
    config = load_config(VitTrainConfig, recipe) if recipe.is_file() else VitTrainConfig()
    return {
        "validation": config.validation, "test": config.test, "seed": config.seed,
        "group_by": config.group_by or None,
    }  # fmt: skip


def _with_loss(report: Report, out: Path) -> Report:
    """Events of the training with the loss that it has written last, so that the panel can draw its curve."""
    log = out / "metrics.jsonl"

    def told(event: ProgressEvent) -> None:
        loss = _last_loss(log) if event.task == "train" else None
        facts: Mapping[str, float | str] = event.facts if loss is None else {**event.facts, "loss": loss}
        report(dataclasses.replace(event, facts=facts))

    return told


def _last_loss(log: Path) -> float | None:
    if not log.is_file():
        return None
    for line in reversed(log.read_text(encoding="utf-8").splitlines()[-4:]):
        try:
            if "loss" in (said := json.loads(line)):
                return float(said["loss"])
        except ValueError:  # a line that is being written
            continue
    return None
