"""What lies in a folder, as rows of a table: every model file, told from its header; no weight is loaded."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import is_junk
from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped

if TYPE_CHECKING:
    from fastsd_lib.models.identify import Description

ENDINGS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
STAGING = ".downloads"  # below models/: what is on its way
LORA_FOLDERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_UNFINISHED = re.compile(r"\.part$|^\..*\.partial(\.\w+)?$")
#: Kinds whose variant is the base model's: inpainting, dev ...
_MODELS = ("checkpoint", "unet", "transformer")
#: Where models lie below a root: A1111's folders, those of the older notebooks on Drive, and what training made.
PLACES = ("models", "embeddings", "sd/stable-diffusion-webui/models", "sd/stable-diffusion-webui/embeddings")
SESSIONS = "Fast-Dreambooth/Sessions"
#: Of a session: states that training resumes, and pictures.
NOT_MODELS = {"checkpoints", "instance_images", "class_images", "captions", "samples", "logs"}
MOST_ENTRIES = 200_000  # names looked at in all; a Drive with more is told about, and not walked to its end
DEEPEST = 12
QUICK_S = 0.5  # work that takes less is not worth a bar


@dataclass(frozen=True)
class ModelRow:
    """One model file or folder. Empty texts: not known."""

    path: Path
    kind: str = ""  # "checkpoint", "lora", "vae" ...
    family: str = ""  # sd1, sdxl ...: the base that it is, or needs
    variant: str = ""  # "inpainting", "LoCon" ...
    naming: str = ""  # whose tensor names: original, diffusers, kohya, peft
    dtype: str = ""  # of most of its bytes, "F16"
    prediction: str = ""
    ema: bool = False
    tensors: int = 0
    size_bytes: int = 0
    title: str = ""
    fits: tuple[str, ...] = ()  # all families that it can be used with
    needs: str = ""  # what must come from elsewhere before it can draw, in words
    trigger_words: tuple[str, ...] = ()
    problem: str = ""  # why it cannot be used; "" when nothing is seen
    fix: str = ""

    @property
    def sort(self) -> str:
        """What it is, in words: "checkpoint", "LoCon", "upscaler ESRGAN"."""
        if self.kind == "lora":
            return self.variant or "LoRA"
        return f"{self.kind} {self.variant}".strip() if self.kind not in _MODELS else self.kind

    @property
    def base(self) -> str:
        """The base model that it is or fits, in words: "SD 1.x", "SDXL inpainting"; "" where it needs none."""
        if not self.family:
            return ", ".join(map(base_words, self.fits)) or ("not told" if self.needs else "")
        words = base_words(self.family, self.variant if self.kind in _MODELS else "")
        return f"{words}, v-prediction" if self.prediction == "v_prediction" else words

    @property
    def size(self) -> str:
        return size_words(self.size_bytes) if self.size_bytes else ""

    @property
    def complaint(self) -> str:
        """The problem as a sentence of its own."""
        return f"{escaped(str(self.path))} {self.problem}"


def base_words(family: str, variant: str = "") -> str:
    """ "SDXL inpainting", "SD 3.5 medium"."""
    if family == "sd3" and variant:  # its variants begin with the version
        return f"SD {variant}"
    return f"{FAMILY_NAMES.get(family, family)} {variant}".strip()


def size_words(size_bytes: int) -> str:
    """ "2.1 GB", "340 kB": what shops and download pages say, 1 GB = 10^9 bytes."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes >= limit:
            return f"{size_bytes / limit:.3g} {unit}"
    return f"{size_bytes} bytes"


def is_model(names: Collection[str]) -> bool:
    """Whether a folder with these names in it is one model: a Diffusers pipeline, a part of one, or a LoRA of peft's."""
    part = "config.json" in names and any(name.endswith(".safetensors") for name in names)
    return "model_index.json" in names or part or not {*LORA_FOLDERS}.isdisjoint(names)


def row_of(path: Path) -> ModelRow:
    """One file or model folder; whatever is wrong with it is its `problem`, never an exception."""
    from fastsd_lib.models.identify import describe

    size = _size(path)
    try:
        found = describe(path)
    except UserError as error:
        return ModelRow(path, size_bytes=size, problem=_without_path(error.message, path), fix=error.fix)
    except OSError as error:
        return ModelRow(path, size_bytes=size, problem=f"cannot be read: {error.strerror or error}")
    kind = found.kind
    return ModelRow(
        path,
        kind.kind,
        kind.family,
        kind.variant,
        kind.naming,
        next(iter(found.dtypes), ""),
        prediction_of(found),
        kind.ema,
        found.tensors,
        found.size_bytes,
        found.title,
        kind.fits,
        found.needs,
        found.trigger_words,
    )


def prediction_of(found: Description) -> str:
    """What a model predicts: as its header says, or by the one small weight that tells SD 2.x models apart."""
    from fastsd_lib.models.identify import measured_prediction

    if (
        found.prediction
        or found.kind.family != "sd2"
        or found.layout != "single_file"
        or found.kind.kind not in _MODELS
    ):
        return found.prediction
    try:
        return measured_prediction(found.path)
    except (OSError, UserError):
        return ""


def lying_there(root: Path, report: Report = silent, *, everything: bool = False) -> list[ModelRow]:
    """Every model below the model folders and sessions of `root`, or with `everything` below `root` itself.

    Nothing but headers is read. Damaged files, unfinished downloads and links that lead out of `root` are rows with
    their problem. A root that has none of those folders is walked as it is.
    """
    if not root.is_dir():
        return []
    starts = [root / place for place in (*PLACES, SESSIONS) if (root / place).is_dir()]
    begun = time.monotonic()

    def tell(*event: Any) -> None:
        if time.monotonic() - begun > QUICK_S:
            report(ProgressEvent(*event))

    walk = _Walk(Path(os.path.realpath(root)), lambda names: tell("looking", 0, 1, {"": f"{names:,} names"}))
    found = list(walk.below([root] if everything or not starts else starts))
    tell("looking", 1, 1, {"": f"{walk.entries:,} names, {len(found):,} models"})
    rows = []
    for number, one in enumerate(found, 1):
        rows.append(one if isinstance(one, ModelRow) else row_of(one))
        tell("reading headers", number, len(found), {"file": escaped(rows[-1].path.name[-40:])})
    return rows


class _Walk:
    """Once through folders, each real place once; at most `MOST_ENTRIES` names, so that it ends on any Drive."""

    def __init__(self, root: Path, tell: Callable[[int], None]) -> None:
        """`tell` hears the number of names after each folder."""
        self.root = root
        self.entries = 0
        self._tell = tell
        self._seen: set[str] = set()

    def below(self, folders: list[Path]) -> Iterator[Path | ModelRow]:
        """Paths of models, and rows for what is no model to be opened but must be told."""
        waiting = [(folder, 0) for folder in reversed(folders)]
        while waiting:
            folder, depth = waiting.pop()
            if (real := os.path.realpath(folder)) in self._seen:
                continue
            self._seen.add(real)
            try:
                with os.scandir(folder) as listing:
                    few = itertools.islice(listing, MOST_ENTRIES + 1 - self.entries)
                    entries = sorted(few, key=lambda entry: entry.name)
            except OSError as error:
                yield ModelRow(folder, problem=f"this folder cannot be read: {error.strerror or error}")
                continue
            names = {entry.name for entry in entries}
            if is_model(names):
                yield folder
                continue
            below = []
            skipped = NOT_MODELS if {"session.json", "instance_images"} & names else set()
            for entry in entries:
                self.entries += 1
                if self.entries > MOST_ENTRIES:
                    yield ModelRow(folder, problem=f"more than {MOST_ENTRIES:,} names: the rest was not looked at",
                                   fix="ask for one of the folders below it.")  # fmt: skip
                    return
                if is_junk(entry.name) and entry.name != STAGING and not _UNFINISHED.search(entry.name):
                    continue
                match self._sort_of(entry):
                    case "folder" if entry.name not in skipped and depth < DEEPEST:
                        below.append((Path(entry.path), depth + 1))
                    case "model":
                        yield Path(entry.path)
                    case ModelRow() as row:
                        yield row
            waiting += reversed(below)
            self._tell(self.entries)

    def _sort_of(self, entry: os.DirEntry[str]) -> str | ModelRow:
        """ "folder", "model", "" for what concerns nobody here, or a row for what cannot be opened.

        Nothing that the listing itself does not tell is asked of files with other endings: on Drive each costs a request.
        """
        path, unfinished = Path(entry.path), bool(_UNFINISHED.search(entry.name))
        wanted = unfinished or path.suffix.lower() in ENDINGS
        try:
            if entry.is_symlink():
                return self._linked(path, wanted)
            if entry.is_dir():
                return "folder"
            if unfinished:
                return ModelRow(path, size_bytes=_size(path), problem="unfinished: a download or conversion was cut off",
                                fix="start it again.")  # fmt: skip
            if not wanted or entry.is_file():
                return "model" if wanted else ""
        except OSError as error:
            return ModelRow(path, problem=f"cannot be read: {error.strerror or error}") if wanted else ""
        return ModelRow(path, problem="is no ordinary file")

    def _linked(self, path: Path, wanted: bool) -> str | ModelRow:
        real = Path(os.path.realpath(path))
        if real.is_relative_to(self.root):
            if real.is_dir() or not wanted:
                return "folder" if real.is_dir() else ""
            return "model" if real.is_file() else ModelRow(path, problem="a link that leads nowhere")
        if wanted or real.is_dir():
            return ModelRow(path, problem="a link that leads out of this folder: it is not followed")
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _without_path(message: str, path: Path) -> str:
    return message.removeprefix(str(path)).strip()
