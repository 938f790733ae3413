"""What a classifier of subject against class is made from: a session's photos as training sees them, and the class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.sessions.photos import photos
from fastsd_lib.sessions.session import Session

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.vit.subject import SubjectJudge

MOST_CLASS_IMAGES = 400
FIGURE_PX = 512  # pictures are judged at this size at most
SAME_BITS = 6  # of 64 bits of the perceptual hash that nearly equal photos differ in, at most


@contextmanager
def judge_of(
    crops: Sequence[Image], others: Sequence[Image], twins: Sequence[int], model: str | Path | None
) -> Iterator[SubjectJudge]:
    from fastsd_lib.vit import subject
    from fastsd_lib.vit.model import EMBEDDED, open_model

    try:
        vit = open_model(model or EMBEDDED, classifier=False)
    except UserError:
        if model:
            raise
        vit = None  # this copy has no embedded ViT: colours and edges do
    if vit is None:
        yield subject.train_judge(crops, others, {"colours and edges": subject.look}, twins)
        return
    with subject.vit_describer(vit) as described:
        ways = {"colours and edges": subject.look, f"ViT {vit.name}": described}
        yield subject.train_judge(crops, others, ways, twins)


def session_photos(session: Session) -> list[Path]:
    found = photos(session)
    if not found:
        raise UserError(
            f"Session {session.name!r} has no photos.",
            fix=f"python3 -m fastsd_lib session add-images {session.name} FOLDER",
        )
    return found


def photo_crops(session: Session, paths: Sequence[Path], report: Report) -> list[Image]:
    """The photos as training sees them. Boxes are looked up or found, not stored: a session may be read-only."""
    from fastsd_lib.images.crop import crop_to, find_crop, load_crops
    from fastsd_lib.images.load import open_photo

    boxes = load_crops(session.crops_file, paths)
    crops = []
    for number, path in enumerate(paths):
        report(ProgressEvent("photos", number, len(paths)))
        photo = open_photo(path)
        box = boxes.get(path.name) or find_crop(photo)
        crops.append(crop_to(photo, box, min(FIGURE_PX, box.side_px)))
    report(ProgressEvent("photos", len(paths), len(paths)))
    return crops


def class_pictures(
    session: Session, given: str | Path | Iterable[Path] | None, report: Report
) -> list[Image]:
    paths = listed(given) if given is not None else list_photos(session.class_images)
    if not paths:
        raise UserError(
            f"There are no pictures of the class to compare {session.name} with.",
            fix="name a folder of photographs of other members of the class, or train with a class_prompt first.",
        )
    step = max(1, -(-len(paths) // MOST_CLASS_IMAGES))
    return opened(paths[::step], report, "class pictures")


def listed(given: str | Path | Iterable[Path]) -> list[Path]:
    if isinstance(given, (str, Path)):
        folder = expanded(given)
        if not folder.exists():
            raise UserError(f"There is no folder {folder}.", fix="check the path.")
        return list_photos(folder) if folder.is_dir() else [folder]
    return [Path(one) for one in given]


def opened(paths: Sequence[Path], report: Report, what: str) -> list[Image]:
    """The middle square of each picture, `FIGURE_PX` at most; small ones (64 px) are taken as they are."""
    from fastsd_lib.images.crop import crop_to, find_crop
    from fastsd_lib.images.load import PhotoLimits, read_photo

    opened = []
    for number, path in enumerate(paths):
        report(ProgressEvent(what, number, len(paths)))
        picture = read_photo(path, limits=PhotoLimits(min_side_px=16)).image
        box = find_crop(picture, ways=())
        opened.append(crop_to(picture, box, min(FIGURE_PX, box.side_px)))
    report(ProgressEvent(what, len(paths), len(paths)))
    return opened


def twin_groups(crops: Sequence[Image]) -> list[int]:
    """A number for each picture, the same for those that look nearly the same (perceptual hash), in chains too."""
    from fastsd_lib.vit.duplicates import phash

    hashes = [phash(crop) for crop in crops]
    group = list(range(len(crops)))
    for one in range(len(crops)):
        for other in range(one):
            if (hashes[one] ^ hashes[other]).bit_count() <= SAME_BITS:
                kept, gone = sorted((group[one], group[other]))
                group = [kept if number == gone else number for number in group]
    return group
