"""The steps of notebooks/vit.ipynb: each reads an experiment's folder, does one thing, and leaves it there."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.files import fingerprint
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit.config import ClassifyConfig, Features
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.workflows import vit
from fastsd_lib.workflows.vit_experiment import Experiment

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.vit.exports import Export
    from fastsd_lib.vit.image_search import Neighbour
    from fastsd_lib.vit.index import Index
    from fastsd_lib.vit.predictions import Prediction
    from fastsd_lib.vit.trainer import TrainedVit
    from fastsd_lib.vit.vector_store import VectorStore
    from fastsd_lib.workflows.curation import Curation

HASHED_PX = (
    64  # perceptual hashes look at 32 pixels: of icons that small, all with one outline would be the same
)
SHOWN = 12  # held-out pictures that are tried, groups that are shown


def train(
    experiment: Experiment, config: VitTrainConfig, report: Report = silent, *, resume: bool = True
) -> TrainedVit:
    """Learn the experiment's pictures, or go on where an unfinished run of these choices stopped."""
    asked = dataclasses.replace(config, data=str(experiment.pictures))
    return vit.train(asked, experiment.path, _with_loss(report, experiment.path), restart=not resume)


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


def embed(experiment: Experiment, features: Features | None = None, report: Report = silent) -> VectorStore:
    """Vectors of all pictures of the experiment; those of an earlier model, or of other features, are replaced."""
    from fastsd_lib.vit.embed import weights_of

    features = features or Features()
    model = vit.open_model(experiment.model)
    mark = fingerprint([weights_of(model), dataclasses.asdict(features)])[:12]
    for other in experiment.embeddings.glob("*"):
        if other.name != mark:
            shutil.rmtree(other, ignore_errors=True)
    return vit.embed(experiment.pictures, experiment.embeddings / mark, model, features, report=report)


def build_index(experiment: Experiment, features: Features | None = None, report: Report = silent) -> Index:
    """An index over all pictures, in index/."""
    return vit.index(embed(experiment, features, report), experiment.index, report=report)


def search(experiment: Experiment, picture: str = "", k: int = 11) -> tuple[Path | str, list[Neighbour]]:
    """(the picture that was asked for, its neighbours); "" asks for one that was held out."""
    asked = picture.strip() or held_out(experiment, 1)[0]
    found = vit.search(asked, experiment.index, k + 1, experiment.model)
    others = [one for one in found if one.place is None or not _same(one.place, asked)]
    return asked, others[:k]


def duplicates(experiment: Experiment, report: Report = silent) -> dict[str, list[str]]:
    """Pictures that are nearly the same, by group, the largest first."""
    store = _vectors(experiment)
    ways = ("bytes", "phash", "embedding") if _side_px(store) >= HASHED_PX else ("bytes", "embedding")
    groups = vit.duplicates(store, ways, report)[:SHOWN]
    return {
        f"{number} · alike by {', '.join(group.ways)}": _files(group.places, group.keys)
        for number, group in enumerate(groups, 1)
    }


def outliers(experiment: Experiment, count: int = SHOWN) -> dict[str, list[str]]:
    """The oddest pictures first."""
    found = vit.outliers(_vectors(experiment), count=count)
    return {"The oddest first": _files([one.place for one in found], [one.key for one in found])}


def clusters(experiment: Experiment, count: int = 0, report: Report = silent) -> dict[str, list[str]]:
    """The pictures nearest to each cluster's middle, the largest cluster first."""
    store, found = vit.clusters(_vectors(experiment), count=count, report=report)
    return {
        f"{number} · {size} pictures": _files(
            [store.place(row) for row in rows], [store.keys[row] for row in rows]
        )
        for number, (size, rows) in enumerate(zip(found.sizes, found.representatives, strict=True), 1)
    }


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


def _vectors(experiment: Experiment) -> VectorStore:
    """Those that step 9 made."""
    from fastsd_lib.vit.vector_store import VectorStore

    made = sorted(path for path in experiment.embeddings.glob("*") if path.is_dir())
    return VectorStore.open(made[0]) if made else embed(experiment)


def _side_px(store: VectorStore) -> int:
    """The shorter side of a picture of the collection; 0 where none can be read."""
    from PIL import Image

    for row in range(min(len(store), SHOWN)):
        if place := store.place(row):
            with suppress(OSError), Image.open(place) as picture:
                return min(picture.size)
    return 0


def _files(places: Sequence[Path | None], keys: Sequence[str]) -> list[str]:
    return [str(place or key) for place, key in zip(places, keys, strict=True)]


def _is_newer(one: Path, other: Path) -> bool:
    return one.is_file() and one.stat().st_mtime >= other.stat().st_mtime


def _same(one: Path, other: Path | str) -> bool:
    return "://" not in str(other) and one.resolve() == Path(other).expanduser().resolve()


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
