"""Pictures of the class, drawn by the base model: what prior preservation rehearses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import list_photos
from fastsd_lib.core.files import fingerprint
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import model_folders

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.engine import Engine

BATCH = 16  # drawn at once, and lost at most when the runtime dies


def make(
    session: Session,
    base: ModelFiles,
    config: DreamBoothConfig,
    cache: Path,
    report: Report,
    should_stop: Callable[[], bool] | None = None,
) -> list[Path]:
    """The class images that training will use, those that were missing drawn; none without prior preservation.

    Pictures that the user put there count first. Ours carry the fingerprint of what made them in their names,
    so an interrupted call makes only what is missing and another prompt makes its own. UserError when
    `should_stop` ended it early; what was drawn stays. `cache`: a folder for a base model that must be unpacked.
    """
    if not config.prior_preservation:
        return []
    wanted = planned(session, base, config, cache)
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        drawn = _draw(session, base, config, missing, report, should_stop or (lambda: False))
        sessions.record(session, "class images made", count=drawn, prompt=config.class_prompt)
        if drawn < len(missing):
            there = len(wanted) - len(missing) + drawn
            raise UserError(
                f"Stopped with {there} of {len(wanted)} class images drawn; they are kept.",
                fix="run this again to go on from there.",
            )
    return wanted


def planned(session: Session, base: ModelFiles, config: DreamBoothConfig, cache: Path) -> list[Path]:
    """The user's own class images, then as many of ours as are still needed, whether they exist yet or not."""
    given = [path for path in list_photos(session.class_images) if not path.name.startswith("class-")]
    key = fingerprint(
        [
            model_folders.weights_fingerprint(model_folders.as_folder(base, cache)),
            config.class_prompt,
            config.resolution_px,
            config.seed,
        ]
    )[:8]
    needed = max(0, config.class_images - len(given))
    return given[: config.class_images] + [
        session.class_images / f"class-{key}-{number:04d}.png" for number in range(needed)
    ]


def _draw(
    session: Session,
    base: ModelFiles,
    config: DreamBoothConfig,
    missing: list[Path],
    report: Report,
    should_stop: Callable[[], bool],
) -> int:
    """How many of `missing` were drawn before `should_stop` said so."""
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.infotext import save_picture
    from fastsd_lib.generation.request import GenerationRequest

    engine = load_engine(base)
    report(ProgressEvent("class images", 0, len(missing)))
    for start in range(0, len(missing), BATCH):
        if should_stop():
            return start
        batch = missing[start : start + BATCH]
        # A picture's seed is its number, so that one that was lost is made again as it was.
        numbers = [int(path.stem.rsplit("-", 1)[1]) for path in batch]
        for run in consecutive(numbers):
            request = GenerationRequest(
                config.class_prompt,
                seed=(config.seed + 100_000 + run[0]) % 2**32,
                count=len(run),
                width_px=config.resolution_px,
                height_px=config.resolution_px,
            )
            for number, picture in zip(run, engine.generate(request), strict=True):
                save_picture(picture, batch[numbers.index(number)])
        report(ProgressEvent("class images", start + len(batch), len(missing)))
    return len(missing)


def draw_seeds(engine: Engine, prompt: str, seeds: list[int]) -> list[Image]:
    """Seeds in a row are drawn as one batch; each picture is the one its seed gives alone."""
    from fastsd_lib.generation.request import GenerationRequest

    requests = [GenerationRequest(prompt, seed=run[0], count=len(run)) for run in consecutive(seeds)]
    return [picture.image for request in requests for picture in engine.generate(request)]


def consecutive(numbers: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
