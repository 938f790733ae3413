"""One ViT experiment on disk: its pictures, what was trained on them, and what came of it.

Every step of the notebook reads its inputs here and leaves its outputs here, so that any cell can run again on
another day:

| path below `<root>/vit/<name>/` | content |
|---|---|
| `experiment.json` | which folder the pictures are in |
| `pictures/` | sample data, uploads, unpacked zips, data sets: one folder for each class |
| `model/`, `report/`, `checkpoints/`, `recipe.yaml` | the training: `--model <root>/vit/<name>` takes the whole folder |
| `predictions.csv`, `inside/` | what new pictures are, and how the model sees one |
| `embeddings/`, `index/` | vectors of all pictures, and the index that finds neighbours |
| `compressed/`, `exports/` | the table of compressed models; models for other programs |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors, read_json, write_json
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped, name_problem
from fastsd_lib.environment.hosts import default_root


@dataclass(frozen=True)
class Experiment:
    """A folder of one experiment; made by `open_experiment`."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def record(self) -> Path:
        return self.path / "experiment.json"

    @property
    def pictures(self) -> Path:
        """The folder with one folder of pictures for each class. UserError before one is chosen."""
        chosen = _read(self).get("pictures")
        if not chosen:
            raise UserError(
                f"The experiment {self.name!r} has no pictures yet.", fix="choose some in step 3 · Pictures."
            )
        return Path(chosen) if Path(chosen).is_absolute() else self.path / chosen

    @property
    def model(self) -> Path:
        """What the steps after training use. UserError before there is a model."""
        if not (self.path / "model" / "config.json").is_file():
            raise UserError(f"The experiment {self.name!r} has no model yet.", fix="run step 5 · Train.")
        return self.path

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def inside(self) -> Path:
        return self.path / "inside"

    @property
    def embeddings(self) -> Path:
        return self.path / "embeddings"

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def compressed(self) -> Path:
        return self.path / "compressed"

    @property
    def exports(self) -> Path:
        return self.path / "exports"


def experiments_dir(root: Path) -> Path:
    return expanded(root) / "vit"


def open_experiment(name: str, root: Path | None = None) -> Experiment:
    """The experiment of this name below `root`, made when it is new. UserError for a name that no folder can have."""
    if problem := name_problem(name):
        raise UserError(
            f"An experiment cannot be called '{escaped(name[:60])}': {problem}.",
            fix="type a name such as digits.",
        )
    made = Experiment(experiments_dir(root or default_root()) / name)
    with plain_disk_errors(f"create the experiment {name!r}"):
        made.path.mkdir(parents=True, exist_ok=True)
    return made


def remember(experiment: Experiment, **facts: Any) -> None:
    """Put facts into `experiment.json`, keeping those that are there."""
    write_json(experiment.record, {**_read(experiment), **facts})


def use_pictures(experiment: Experiment, folder: Path) -> None:
    """Remember a folder of classes as the experiment's; below the experiment as a relative path: Drives are moved."""
    inside = folder.is_relative_to(experiment.path)
    remember(experiment, pictures=(folder.relative_to(experiment.path).as_posix() if inside else str(folder)))


def _read(experiment: Experiment) -> dict[str, Any]:
    return read_json(experiment.record) if experiment.record.is_file() else {}
