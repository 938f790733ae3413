"""ViT models and indexes of the library, opened when they are first asked for: what the tab ViT works with.

Models are named, never given by a path: a visitor names what lies in models/ViT of the library, the embedded model, or
one of the Hub.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.vit.config import CONFIG, RunnerConfig
from fastsd_lib.vit.model_files import ALIASES, EMBEDDED, EMBEDDED_FOLDER, EXPORT

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.vit.image_search import Neighbour
    from fastsd_lib.vit.inside import Inside
    from fastsd_lib.vit.model import VitModel
    from fastsd_lib.vit.predictions import Prediction

INDEX = "index.json"
KEPT = 2  # models in memory
DEPTH = 3  # of folders below models/ViT: a model, its exports/, one of them
_OF_THE_HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


@dataclass
class Opened:
    """A model that answers, one question at a time."""

    name: str
    place: Path | str  # what `Classifier` opens
    runner_config: RunnerConfig
    lock: threading.RLock

    @cached_property
    def classifier(self) -> Any:
        from fastsd_lib.vit.classify import Classifier  # torch

        return Classifier(self.place, self.runner_config)

    @property
    def model(self) -> VitModel:
        return self.classifier.model

    @cached_property
    def inside(self) -> Inside:
        from fastsd_lib.vit.inside import Inside

        return Inside.of(self.model)

    def close(self) -> None:
        with self.lock:
            if "classifier" in vars(self):
                self.classifier.close()


class VitLooks:
    """One per page; safe in threads."""

    def __init__(self, folders: Sequence[Path], runner_config: RunnerConfig | None = None) -> None:
        self._folders, self._config = tuple(folders), runner_config or RunnerConfig()
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._searches: OrderedDict[str, tuple[Any, Opened]] = OrderedDict()
        self._lock, self._searching = threading.Lock(), threading.Lock()

    def models(self) -> list[str]:
        """The embedded one first, then those of the library, exports of them too."""
        embedded = [EMBEDDED] if (EMBEDDED_FOLDER / CONFIG).is_file() else []
        return embedded + sorted(self._found(lambda files: CONFIG in files or EXPORT in files))

    def indexes(self) -> list[str]:
        return sorted(self._found(lambda files: INDEX in files))

    def opened(self, name: str) -> Opened:
        """The model of that name, which is loaded when it is asked something. UserError for one that is not there."""
        place = self._place(name)
        with self._lock:
            if name not in self._opened:
                self._opened[name] = Opened(name, place, self._config, threading.RLock())
            self._opened.move_to_end(name)
            gone = [self._opened.popitem(last=False)[1] for _ in range(len(self._opened) - KEPT)]
        for one in gone:
            one.close()
        return self._opened.get(name) or self.opened(name)

    def labels(self, name: str, picture: bytes, what: str = "picture") -> Prediction:
        """What the model tells of a picture. UserError for what is none."""
        require("transformers", group="vit")
        opened = self.opened(name)
        with opened.lock:
            (found,) = opened.classifier.classify(picture)
        if found.error:
            raise UserError(f"{what}: {found.error}", fix="drop another picture.")
        return found

    def ways(self, name: str) -> tuple[str, ...]:
        """The ways in which this model can be looked into."""
        from fastsd_lib.vit.inside_pictures import ways_for

        return ways_for(self.opened(name).model)

    def inside(
        self, name: str, picture: bytes, ways: Sequence[str], target: str | None = None
    ) -> dict[str, Image]:
        """Pictures of what goes on inside, by way. `target`: the class to explain; None = the first answer."""
        from fastsd_lib.vit.inside_pictures import explain

        opened = self.opened(name)
        with opened.lock:
            return explain(opened.inside, picture, ways, target)

    def neighbours(self, name: str, index: str, picture: bytes, count: int) -> list[Neighbour]:
        """The nearest pictures of an index. The model that made it searches, if it is here; else UserError."""
        if index not in self.indexes():
            raise UserError(f"There is no index {index[:100]!r} here.", fix="choose one of the list.")
        search, opened = self._search(name, index)
        with opened.lock:
            return search.search(picture, count)

    def _search(self, name: str, index: str) -> tuple[Any, Opened]:
        """Kept until two others were asked for, or the index was written again."""
        from fastsd_lib.vit.index import Index

        folder = self._folder(index)
        key = f"{index} {(folder / INDEX).stat().st_mtime_ns}"
        with self._searching:
            if key not in self._searches:
                self._searches[key] = self._search_by_its_maker(name, Index.open(folder))
                while len(self._searches) > KEPT:
                    self._searches.popitem(last=False)[1][0].close()
            return self._searches[key]

    def _search_by_its_maker(self, name: str, index: Any) -> tuple[Any, Opened]:
        from fastsd_lib.vit.image_search import ImageSearch

        maker = index.maker.model
        namesakes = [one for one in self.models() if maker in (one, Path(one).name)]
        for one in namesakes:
            opened = self.opened(one)
            with suppress(UserError):  # only a namesake: its weights are others
                return ImageSearch(index, opened.model, self._config), opened
        opened = self.opened(name)
        return ImageSearch(index, opened.model, self._config), opened

    # ------------------------------------------------------------------ where things lie

    def _place(self, name: str) -> Path | str:
        name = (name or "").strip()
        if name == EMBEDDED or name in ALIASES:
            return name
        if name in self.models():
            return self._folder(name)
        if _OF_THE_HUB.fullmatch(name) and ".." not in name and not Path(name).exists():
            return name
        raise UserError(
            f"There is no ViT {name[:100]!r} here.",
            fix="choose one of the list, put its folder into models/ViT of the library, or name one of the Hub: "
            "google/vit-base-patch16-224.",
        )

    def _folder(self, name: str) -> Path:
        return next(folder / name for folder in self._folders if (folder / name).is_dir())

    def _found(self, holds: Callable[[list[str]], bool]) -> Iterator[str]:
        for folder in self._folders:
            for place, below, files in os.walk(folder):
                name = Path(place).relative_to(folder)
                below[:] = (
                    [one for one in below if not one.startswith(".")] if len(name.parts) < DEPTH else []
                )
                if name.parts and holds(files):
                    with suppress(UnicodeEncodeError):
                        name.as_posix().encode()  # a name that cannot be shown cannot be chosen
                        yield name.as_posix()
