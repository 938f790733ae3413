"""Does the trained model draw the subject? Scores of its pictures by the classifier that curation uses.

judged = judging.judge_samples(session, draw=8)
print(*judged.lines(), sep="\n")
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.config import load_config
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import dreambooth
from fastsd_lib.workflows.curation import UNLIKE
from fastsd_lib.workflows.subject_pictures import (
    class_pictures,
    judge_of,
    listed,
    opened,
    photo_crops,
    session_photos,
    twin_groups,
)

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Series:
    """Pictures that belong together and their subject scores."""

    name: str  # "photos", "class pictures", "before: a photo of sks cat", "step 500"
    scores: tuple[float, ...]
    pictures: tuple[Any, ...] = ()  # PIL; empty for the two that the judge was made from

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def share(self) -> float:
        """Of pictures in which the subject is likelier than not."""
        return sum(score > UNLIKE for score in self.scores) / len(self.scores)


@dataclass(frozen=True)
class Judged:
    """Scores of pictures that models made, beside those of the photos and the class."""

    session: Session
    series: tuple[Series, ...]
    separation: float
    way: str
    gained: (
        float | None
    )  # the chance that a picture after training scores above one before; None without both

    def lines(self) -> list[str]:
        wide = max(len(one.name) for one in self.series)
        said = [f"{'pictures':<{wide}}  count  mean score  shows the subject"]
        said += [
            f"{one.name:<{wide}}  {len(one.scores):5d}  {one.mean:10.2f}  {one.share:17.0%}"
            for one in self.series
        ]
        if self.gained is not None:
            said.append(
                f"A picture after training scores above one before in {self.gained:.0%} of pairs (50% = by chance)."
            )
        said.append(
            f"The judge tells photos and class apart at {self.separation:.2f}, each judged without itself, by {self.way}."
        )
        return said


def judge_samples(
    session: Session,
    pictures: str | Path | Iterable[Path] | None = None,
    *,
    draw: int = 0,
    class_images: str | Path | Iterable[Path] | None = None,
    model: str | Path | None = None,
    report: Report = silent,
) -> Judged:
    """How much of the subject is in what the trained model makes.

    `pictures`: files or a folder; default: those that training drew into samples/, step by step. With `draw` also
    this many pictures each by base and trained model, of the same seeds: the instance prompt before and after, and
    the class prompt after, which should not have become the subject. UserError when there is nothing to judge.
    """
    paths = session_photos(session)
    crops = photo_crops(session, paths, report)
    others = class_pictures(session, class_images, report)
    asked = _given_pictures(session, pictures)
    drawn = _drawn(session, draw, report) if draw else {}
    if not asked and not drawn:
        raise UserError(
            f"There are no pictures to judge in {session.name}.",
            fix="train first, name a folder of pictures, or draw some with --draw 8.",
        )
    with judge_of(crops, others, twin_groups(crops), model) as judge:
        series = [
            Series("your photos", tuple(map(float, judge.own))),
            Series("class pictures", tuple(map(float, judge.others))),
        ]
        for name, made in {**asked, **drawn}.items():
            series.append(Series(name, tuple(map(float, judge.score(made))), tuple(made)))
    return Judged(session, tuple(series), judge.separation, judge.way, _gained(series))


def judged_sheet(judged: Judged, cell_px: int = 128, most: int = 8) -> Image:
    """One row for each series of pictures, best first, the score under each."""
    from fastsd_lib.images.grid import contact_sheet

    rows = [one for one in judged.series if one.pictures]
    columns = min(most, max(len(one.pictures) for one in rows))
    cells: list[Any] = []
    labels: list[str] = []
    for one in rows:
        best = sorted(zip(one.scores, one.pictures, strict=True), key=lambda pair: -pair[0])[:columns]
        cells += [picture for _, picture in best] + [None] * (columns - len(best))
        labels += [f"{score:.2f}" for score, _ in best] + [""] * (columns - len(best))
    return contact_sheet(
        cells,
        labels=labels,
        columns=columns,
        cell_px=cell_px,
        row_labels=[f"{one.name}\nmean {one.mean:.2f}" for one in rows],
        title=f"{judged.session.name}: is the subject in it?",
        subtitle="score: how likely each picture shows the subject rather than another of its class",
    )


def _given_pictures(session: Session, given: str | Path | Iterable[Path] | None) -> dict[str, list[Image]]:
    if given is not None:
        found = listed(given)
        if not found:
            raise UserError(f"There are no pictures in {given}.", fix="name a folder with pictures.")
        return {"these pictures": opened(found, silent, "pictures")}
    by_step: dict[int, list[Path]] = {}
    for path in list_photos(session.samples):
        if named := re.fullmatch(r"step_(\d+)_\d+\.png", path.name):
            by_step.setdefault(int(named[1]), []).append(path)
    return {f"step {step}": opened(by_step[step], silent, "samples") for step in sorted(by_step)}


def _drawn(session: Session, count: int, report: Report) -> dict[str, list[Image]]:
    from fastsd_lib.core.model_files import ModelFiles
    from fastsd_lib.models.identify import identify
    from fastsd_lib.sessions.session import read_manifest

    base_name = read_manifest(session).get("base_model")
    if not session.model_file.is_file() or not base_name:
        raise UserError(
            f"{session.name} has no trained model yet.", fix=f"python3 -m fastsd_lib train {session.name}"
        )
    trained: ModelFiles = identify(session.model_file).model_files
    recipe = load_config(DreamBoothConfig, session.recipe)
    seeds = range(1000, 1000 + count)
    asked = [
        (f"before: {recipe.instance_prompt}", dreambooth.base_model(base_name), recipe.instance_prompt),
        (f"after: {recipe.instance_prompt}", trained, recipe.instance_prompt),
    ]
    if recipe.class_prompt:
        asked.append((f"after: {recipe.class_prompt}", trained, recipe.class_prompt))
    made = {}
    for number, (name, files, prompt) in enumerate(asked):
        report(ProgressEvent("drawn", number, len(asked), {"": name}))
        made[name] = dreambooth.draw(files, prompt, seeds)
    report(ProgressEvent("drawn", len(asked), len(asked)))
    return made


def _gained(series: Sequence[Series]) -> float | None:
    """By rank, so that it needs no threshold: before and after of the instance prompt, else first and last step."""
    import numpy as np

    from fastsd_lib.vit.subject import separation

    before = next((one for one in series if one.name.startswith("before: ")), None)
    after = next((one for one in series if one.name.startswith("after: ")), None)
    if before is None or after is None:
        return None
    return separation(np.array(after.scores), np.array(before.scores))
