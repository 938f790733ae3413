"""Many pictures drawn over with the same choices, one after the other: saved under their own names, ended at will."""

from __future__ import annotations

import base64
import random
import shutil
import threading
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.text import safe_stem
from fastsd_lib.generation.jobs import QueueFull
from fastsd_lib.generation.request import MAX_SEED
from fastsd_lib.webui.a1111_checks import GRAIN_PX
from fastsd_lib.webui.a1111_models import Img2ImgBody
from fastsd_lib.webui.a1111_pictures import FIX, open_picture
from fastsd_lib.webui.api_errors import Refused, one_line
from fastsd_lib.webui.page_tasks import Outcome, PageTasks, Task

MOST_FILES = 1000
PATIENCE_S = 2.0  # before a full queue is asked again


@dataclass(frozen=True)
class Given:
    """One picture of a batch."""

    name: str  # as the user calls the file
    path: Path
    mask: Path | None = None
    control: Path | None = None  # for those ControlNet units that have no picture of their own


@dataclass
class Batch:
    """One order. `run` works in the thread that calls it; all else may be read meanwhile."""

    tasks: PageTasks
    body: Img2ImgBody  # what holds for all of them
    pictures: Sequence[Given]
    owner: str = ""
    scale: float | None = None  # each is drawn at this multiple of its own size; None = at the body's
    results: list[Path] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)  # (name, what is wrong and what to do)
    number: int = 0  # pictures that are over
    task: Task | None = None  # of the picture in work
    over: bool = False
    started: float = field(default_factory=time.time)
    seconds: float = 0.0  # that it took
    _wanted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not self.pictures:
            raise UserError(
                "There are no pictures in the batch.", fix="drop several into the field Pictures."
            )
        if len(self.pictures) > MOST_FILES:
            raise UserError(f"{len(self.pictures)} pictures are too many.", fix=f"take at most {MOST_FILES}.")
        most = MAX_SEED - self.body.n_iter * self.body.batch_size
        seed = random.randint(0, most) if self.body.seed == -1 else self.body.seed
        self.body = self.body.model_copy(update={"seed": seed, "save_images": False})  # one seed for all
        context = self.tasks.context
        day = time.strftime("%Y-%m-%d-%H%M%S", time.localtime(self.started))
        self.folder = (context.pictures_dir or self.tasks.scratch) / "img2img-batch" / day

    @property
    def ended(self) -> bool:
        return self._wanted.is_set()

    def end(self) -> None:
        """Leave the picture in work, keep what is finished."""
        self._wanted.set()
        if self.task is not None:
            self.tasks.interrupt(self.task.id, self.owner)

    def skip(self) -> None:
        """Leave the picture in work as it stands and go on with the next one."""
        if self.task is not None:
            self.tasks.skip(self.task.id, self.owner)

    def run(self) -> None:
        """Each picture for itself: one that fails is named, and the next one is begun."""
        try:
            for given in self.pictures:
                if self.ended:
                    return
                try:
                    self._draw(given)
                except UserError as error:
                    self.failures.append((given.name, one_line(error)))
                except OSError as error:
                    self.failures.append(
                        (given.name, f"{error.strerror or error}. Try again when that is mended.")
                    )
                self.number += 1
        finally:
            self.seconds = time.time() - self.started
            self.over, self.task = True, None

    def _draw(self, given: Given) -> None:
        body = self._body(given)
        self.task = None
        while self.task is None:
            try:
                self.task = self.tasks.submit(body, self.owner)
            except QueueFull:  # others wait, too
                if self._wanted.wait(PATIENCE_S):
                    return
        if self.ended:  # asked for while it was ordered
            self.end()
        self.task.done.wait()
        outcome = self.task.outcome or Outcome()
        if outcome.error is not None:
            raise outcome.error
        if not outcome.stopped:
            self._keep(given, outcome)

    def _body(self, given: Given) -> Img2ImgBody:
        limits = self.tasks.context.limits
        if given.path.stat().st_size > limits.picture_bytes:
            raise UserError(
                f"{given.name} is larger than {limits.picture_bytes >> 20} MB.", fix="take a smaller file."
            )
        try:
            picture = open_picture(given.path.read_bytes(), given.name, limits)
        except Refused as error:  # in words for people who send files, not base64
            said = error.message.removeprefix("Invalid encoded image: ")
            raise UserError(
                said, fix="take a PNG, JPEG or WEBP." if error.fix == FIX else error.fix
            ) from None
        changed: dict[str, Any] = {"init_images": [_in_base64(given.path)]}
        if given.mask is not None:
            changed["mask"] = _in_base64(given.mask)
        if self.scale is not None:
            from fastsd_lib.generation.canvas import upright

            changed["width"], changed["height"] = scaled(upright(picture).size, self.scale)
        if given.control is not None:
            changed["alwayson_scripts"] = _with_picture(self.body.alwayson_scripts, _in_base64(given.control))
        return self.body.model_copy(update=changed)

    def _keep(self, given: Given, outcome: Outcome) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stem = safe_stem(Path(given.name).stem) or "picture"
        kept = []
        for number, made in enumerate(outcome.pictures):
            name = stem if len(outcome.pictures) == 1 else f"{stem}-{number + 1}"
            place = _free(self.folder / f"{name}{made.suffix}")
            with atomic_path(place) as scratch:
                shutil.copyfile(made, scratch)
            made.unlink(missing_ok=True)
            kept.append(place)
        self.results += kept
        history = self.tasks.context.service.history
        if history is not None and len(self.task.jobs) == 1:
            history.set_files(self.task.jobs[0].id, kept)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """The size to draw at, in whole grains as the API takes them."""
    sides = [max(int(side * scale) // GRAIN_PX * GRAIN_PX, GRAIN_PX) for side in size]
    return sides[0], sides[1]


def matched(
    pictures: Sequence[tuple[str, Path]],
    masks: Sequence[tuple[str, Path]] = (),
    controls: Sequence[tuple[str, Path]] = (),
) -> list[Given]:
    """Pictures (name, file) with the mask and the ControlNet picture of the same name; a single one is for all.

    UserError when there are several and a picture has none.
    """
    return [
        Given(name, path, _of("mask", masks, name), _of("ControlNet picture", controls, name))
        for name, path in pictures
    ]


def _of(what: str, files: Sequence[tuple[str, Path]], name: str) -> Path | None:
    if not files:
        return None
    if len(files) == 1:
        return files[0][1]
    stem = Path(name).stem.casefold()
    found = next((path for other, path in files if Path(other).stem.casefold() == stem), None)
    if found is None:
        raise UserError(
            f"There are {len(files)} {what}s, but none is called {Path(name).stem}.",
            fix=f"give one {what} for all, or each the name of its picture.",
        )
    return found


def _with_picture(scripts: dict[str, Any], picture: str) -> dict[str, Any]:
    """The ControlNet units with this picture, where they have none."""
    script = scripts.get("ControlNet")
    if not script:
        return scripts
    args = [unit if unit.get("image") else unit | {"image": picture} for unit in script["args"]]
    return {**scripts, "ControlNet": {"args": args}}


def _in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")


def _free(path: Path) -> Path:
    """The path, or the next one with a number, that no file has."""
    free, number = path, 2
    while free.exists():
        free, number = path.with_name(f"{path.stem} ({number}){path.suffix}"), number + 1
    return free


def zip_of(batch: Batch) -> Path:
    """All its results in one archive beside them, unpacked: pictures do not shrink."""
    place = batch.folder / "pictures.zip"
    with atomic_path(place) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
        for file in batch.results:
            if file.is_file():  # not thrown away since
                archive.write(file, file.name)
    return place
