"""Which photos teach the subject well? A classifier of subject against class says, and plain looking.

    found = curation.curate(session)                  # a verdict for each photo; nothing is moved or deleted
    setting_aside.set_aside(session, found.advised)   # only if you agree; bring_back() undoes it

Class pictures drawn by a model teach the classifier, too, how drawn pictures look: photographs of the class
(`class_images=folder`) make its scores of photographs mean more.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fastsd_lib.core.config import load_config
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, plain_disk_errors, write_text
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.text import escaped
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows.subject_pictures import (
    class_pictures,
    judge_of,
    photo_crops,
    session_photos,
    twin_groups,
)

if TYPE_CHECKING:
    from PIL.Image import Image

Verdict = Literal["keep", "look", "drop"]
BLURRED = 0.6  # of images.sharpness.blur: a photo of 512 px behind a Gaussian of 3 px
ENLARGED = 1.5  # how much training would have to blow a crop up before it is called too small
UNLIKE = 0.5  # a score below it: more like the class than like the other photos
TRUSTED = 0.8  # separation from which the scores are worth a verdict


@dataclass(frozen=True)
class PhotoVerdict:
    """What there is to say of one photo."""

    name: str
    verdict: Verdict
    score: float  # likelihood that it shows the subject, judged without this photo and its twins
    blur: float  # 0 sharp, 1 nothing but blur
    enlargement: float  # by which training blows its crop up; at most 1 is sharp
    twin_of: str = ""  # a photo that is nearly the same, and better
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curation:
    """A verdict for each photo of a session, and how far the scores can be trusted."""

    session: Session
    rows: tuple[PhotoVerdict, ...]
    separation: (
        float  # how well subject and class are told apart, each picture judged without itself; 0.5 = chance
    )
    way: str  # what the pictures were compared by
    compared: dict[str, float]
    class_images: int
    notes: tuple[str, ...] = ()

    @property
    def advised(self) -> tuple[str, ...]:
        """The photos that training would do better without."""
        return tuple(row.name for row in self.rows if row.verdict == "drop")

    def lines(self) -> list[str]:
        """A table, worst first within each verdict, then what it rests on."""
        wide = max((len(escaped(row.name)) for row in self.rows), default=5)
        said = [f"{'photo':<{wide}}  advice  score  blur  enlarged  why"]
        for row in sorted(
            self.rows, key=lambda one: (("drop", "look", "keep").index(one.verdict), one.score)
        ):
            said.append(
                f"{escaped(row.name):<{wide}}  {row.verdict:<6}  {row.score:5.2f}  {row.blur:4.2f}  "
                f"{row.enlargement:7.2f}x  {'; '.join(row.reasons)}".rstrip()
            )
        return [*said, *self._basis(), *self.notes]

    def _basis(self) -> list[str]:
        others = ", ".join(f"{way} {value:.2f}" for way, value in self.compared.items() if way != self.way)
        return [
            f"Subject and {self.class_images} class pictures are told apart at {self.separation:.2f} "
            f"(1 = always, 0.5 = by chance; each picture judged without itself) by {self.way}"
            + (f"; by {others}." if others else ".")
        ]


def curate(
    session: Session,
    class_images: str | Path | Iterable[Path] | None = None,
    model: str | Path | None = None,
    report: Report = silent,
) -> Curation:
    """A verdict for each photo of the session; nothing is changed on disk.

    `class_images`: a folder or files that show other members of the class (default: the session's class_images).
    `model`: a ViT to compare by, besides colours and edges (default: the embedded one, where it is there); what
    separates better is used. UserError without photos or class pictures.
    """
    paths = session_photos(session)
    crops = photo_crops(session, paths, report)
    twins = twin_groups(crops)
    others = class_pictures(session, class_images, report)
    with judge_of(crops, others, twins, model) as judge:
        scores = [float(score) for score in judge.own]
    facts = _facts(session, paths, crops, twins)
    trusted = judge.separation >= TRUSTED and len(set(twins)) > 2
    rows = tuple(
        _verdict(path.name, score, *facts[number], trusted)
        for number, (path, score) in enumerate(zip(paths, scores, strict=True))
    )
    notes = (
        ()
        if trusted
        else ("The scores say little here: add photos, photographs of the class, or name a larger ViT.",)
    )
    return Curation(session, rows, judge.separation, judge.way, dict(judge.compared), len(others), notes)


def curation_sheet(found: Curation, cell_px: int = 192) -> Image:
    """The photos as training sees them, best first, each with its advice, score and reason."""
    from fastsd_lib.images.grid import contact_sheet

    order = ("keep", "look", "drop")
    rows = sorted(found.rows, key=lambda row: (order.index(row.verdict), -row.score))
    crops = photo_crops(found.session, [found.session.instance_images / row.name for row in rows], silent)
    return contact_sheet(
        crops,
        labels=[
            f"{row.verdict} {row.score:.2f} {'; '.join(row.reasons) or Path(row.name).stem}" for row in rows
        ],
        cell_px=cell_px,
        title=f"{found.session.name}: which photos teach the subject",
        subtitle=f"score: how likely it shows the subject, judged without this photo (told apart at {found.separation:.2f})",
    )


def save(found: Curation) -> tuple[Path, Path]:
    """samples/curation.png and logs/curation.csv in the session."""
    sheet = found.session.samples / "curation.png"
    table = found.session.logs / "curation.csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", "advice", "score", "blur", "enlargement", "twin_of", "reasons"])
    for row in found.rows:
        figures = [f"{value:.4f}" for value in (row.score, row.blur, row.enlargement)]
        writer.writerow([row.name, row.verdict, *figures, row.twin_of, "; ".join(row.reasons)])
    with plain_disk_errors("write the curation"):
        with atomic_path(sheet) as scratch:
            curation_sheet(found).save(scratch)
        write_text(table, text.getvalue())
    return sheet, table


# What can be said of each photo


def _facts(
    session: Session, paths: Sequence[Path], crops: Sequence[Image], twins: Sequence[int]
) -> list[tuple[float, float, str]]:
    """(blur, enlargement, name of the better twin or "") of each photo."""
    from fastsd_lib.images.sharpness import blur

    side_px = _resolution_px(session)
    blurs = [blur(crop) for crop in crops]
    enlarged = [side_px / _side_px(session, path) for path in paths]
    best: dict[int, int] = {}
    for number, group in enumerate(twins):
        rival = best.setdefault(group, number)
        if (max(1.0, enlarged[number]), blurs[number]) < (max(1.0, enlarged[rival]), blurs[rival]):
            best[group] = number
    return [
        (blurs[number], enlarged[number], "" if best[group] == number else paths[best[group]].name)
        for number, group in enumerate(twins)
    ]


def _side_px(session: Session, path: Path) -> int:
    from PIL import Image

    from fastsd_lib.images.crop import load_crops

    box = load_crops(session.crops_file, [path]).get(path.name)
    if box:
        return box.side_px
    with Image.open(path) as picture:
        return min(picture.size)


def _resolution_px(session: Session) -> int:
    if session.recipe.is_file():
        try:
            return load_config(DreamBoothConfig, session.recipe).resolution_px
        except UserError:  # a recipe that is not filled in yet
            pass
    return DreamBoothConfig.resolution_px


def _verdict(
    name: str, score: float, blurred: float, enlarged: float, twin_of: str, trusted: bool
) -> PhotoVerdict:
    drop, look = [], []
    if twin_of:
        drop.append(f"nearly the same as {escaped(twin_of)}, which is better")
    if blurred > BLURRED:
        drop.append("blurred")
    if enlarged > ENLARGED:
        drop.append(f"too small: training would enlarge it {enlarged:.1f} times")
    if trusted and score < UNLIKE:
        look.append("looks more like the class than like the other photos")
    verdict: Verdict = "drop" if drop else "look" if look else "keep"
    return PhotoVerdict(name, verdict, score, blurred, enlarged, twin_of, (*drop, *look))
