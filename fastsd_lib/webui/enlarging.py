"""Pictures of the Extras tab: enlarged one after the other, saved, watched and ended from any thread."""

from __future__ import annotations

import logging
import threading
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.text import safe_stem
from fastsd_lib.webui.a1111_answer import save_new
from fastsd_lib.webui.a1111_pictures import file_bytes
from fastsd_lib.webui.api_errors import one_line
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.extras_api import MOST_PICTURES, ExtrasBody, enlarged, patience

LOG = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()  # networks fill the memory; who comes second waits


class _Ended(Exception):
    """Raised inside the enlarging of a picture that nobody wants any more."""


@dataclass(frozen=True)
class Result:
    """One picture that was enlarged."""

    name: str  # of the file that was given
    before: Path
    file: Path  # where it was saved
    size: tuple[int, int]
    info: str  # A1111's words for what was done
    parameters: str  # the text in its file


@dataclass
class Enlarging:
    """One order of the tab. `run` works in the thread that calls it; all else may be read meanwhile."""

    body: ExtrasBody
    pictures: Sequence[tuple[str, Path]]  # (name, file)
    context: ApiContext
    folder: Path  # extras-images/<day>/ is made in it
    results: list[Result] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)  # (name, what is wrong and what to do)
    share: float = 0.0  # of the picture in work
    number: int = 0  # pictures that are over
    over: bool = False
    _wanted: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not self.pictures:
            raise UserError("There is no picture.", fix="drop one here, or several under Batch.")
        if len(self.pictures) > MOST_PICTURES:
            raise UserError(
                f"{len(self.pictures)} pictures are too many at once.", fix=f"take at most {MOST_PICTURES}."
            )
        if self.body.upscaler_1 == "None":
            raise UserError("Upscaler 1 is None: nothing would change.", fix="choose one, such as Lanczos.")

    @property
    def ended(self) -> bool:
        return self._wanted.is_set()

    def end(self) -> None:
        """Leave the picture in work, keep what is finished."""
        self._wanted.set()

    def run(self) -> None:
        """Each picture for itself: one that fails is named, and the next one is begun."""
        try:
            for name, path in self.pictures:
                if self.ended:
                    return
                self._one(name, path)
        except _Ended:
            return
        finally:
            self.over = True

    def _one(self, name: str, path: Path) -> None:
        try:
            while not _one_at_a_time.acquire(timeout=0.2):
                if self.ended:
                    raise _Ended
            try:
                self.results.append(self._result(name, path))
            finally:
                _one_at_a_time.release()
        except UserError as error:
            self.failures.append((name, one_line(error)))
        except OSError as error:
            self.failures.append((name, f"{error.strerror or error}. Try again when that is mended."))
        except _Ended:
            raise
        except Exception:  # one picture's trouble is not that of the others
            LOG.exception("A picture could not be enlarged")
            self.failures.append((name, "It could not be enlarged; the log of the server says why."))
        self.number, self.share = self.number + 1, 0.0

    def _result(self, name: str, path: Path) -> Result:
        limit = self.context.limits.picture_bytes
        if path.stat().st_size > limit:
            raise UserError(f"{name} is larger than {limit >> 20} MB.", fix="take a smaller file.")
        hurry = patience()

        def told(share: float) -> None:
            self.share = share
            if self.ended:
                raise _Ended
            hurry(share)

        after, info, parameters = enlarged(self.body, path.read_bytes(), name, self.context, told)
        settings = self.context.options.values()
        data, mark = file_bytes(after, settings, parameters), safe_stem(Path(name).stem)[:60]
        file = save_new(self.folder, "extras-images", f"-{mark}", data, settings["samples_format"])
        return Result(name, path, file, after.size, info, parameters)


def zip_of(files: Sequence[Path], folder: Path) -> Path:
    """All files in one archive in `folder`, unpacked: pictures do not shrink."""
    place = folder / time.strftime("enlarged-%Y%m%d-%H%M%S.zip")
    with atomic_path(place) as scratch, zipfile.ZipFile(scratch, "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            archive.write(file, file.name)
    return place
