"""Drawing inside a notebook, without any server: models, LoRA, styles, and the service that draws in its own thread.

studio = open_studio(StudioConfig(model="embedded"))
job = studio.order(StudioChoices("a photo of a red star"))
studio.wait(job)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.model_files import FAMILY_NAMES
from fastsd_lib.core.paths import expanded
from fastsd_lib.environment.hosts import default_root
from fastsd_lib.generation.styles import Style, read_styles
from fastsd_lib.models import registry
from fastsd_lib.workflows import file_links
from fastsd_lib.workflows.drawing import library_folders
from fastsd_lib.workflows.studio_choices import StudioChoices

if TYPE_CHECKING:
    from fastsd_lib.generation.history import History
    from fastsd_lib.generation.jobs import Job
    from fastsd_lib.generation.networks import LoraInfo
    from fastsd_lib.generation.service import Service
    from fastsd_lib.sessions.session import Session

PICTURE_ENDINGS = (".png", ".preview.png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class StudioConfig:
    """What the studio opens with."""

    model: str = registry.EMBEDDED  # a name, a session, a path, a Hugging Face id or a link
    library_folder: str = ""  # models/Stable-diffusion, models/Lora ... below it; "" = where sessions live
    outputs_folder: str = ""  # "" = studio/ where sessions live
    device: str = "auto"
    dtype: str = "auto"


@dataclass(frozen=True)
class Card:
    """A LoRA or learned word, to be put into the prompt."""

    name: str
    tag: str  # what goes into the prompt
    hint: str  # its maker's words, and for which family of models it is
    picture: Path | None  # beside the file, as A1111's users put it


class Studio:
    """An open studio. Every method answers at once; pictures are drawn in the service's thread."""

    def __init__(
        self, service: Service, root: Path, outputs: Path, history: History | None, notes: list[str]
    ) -> None:
        self.service, self.root, self.outputs, self.history = service, root, outputs, history
        self.notes = notes  # what had to be done without
        self._saving = threading.Lock()
        self._saved: dict[str, list[Path]] = {}  # job -> its files so far

    # --- what there is

    def models(self) -> list[str]:
        """Names of the models: of the library, of sessions that are trained, and the embedded one."""
        for session in _trained(self.root):
            self._add(session.model_file)
        return [model.name for model in self.service.shelf.models()]

    def use_model(self, text: str) -> str:
        """Take a model by name, session, path, Hugging Face id or link; the name that it has here.

        Downloads when it must, which takes its time. UserError for what is not there or cannot be opened.
        """
        text = text.strip()
        try:
            return self.service.shelf.find(text).name
        except UserError:
            files = file_links.find_model(text, self.root, self.root / "models" / "Stable-diffusion")
            return self.service.shelf.add_model(files)

    def load(self, model: str) -> Future[Any]:
        """Read a model into memory before it is asked for."""
        return self.service.load(model)

    def cards(self) -> list[Card]:
        """LoRA files and learned words of the library, by name."""
        library = self.service.shelf.library.networks
        loras = [
            Card(one.name, f"<lora:{one.name}:1>", _hint(one), _beside(one.path)) for one in library.loras()
        ]
        words = [Card(one.name, one.name, "learned word", _beside(one.path)) for one in library.embeddings()]
        return loras + words

    def styles(self) -> dict[str, Style]:
        """By name, those of earlier files hiding later ones. UserError for a file that is no table."""
        found: dict[str, Style] = {}
        for file in self.service.shelf.folders.styles:
            found = read_styles(file) | found
        return found

    def upscalers(self) -> list[str]:
        """Names of the enlarging networks in the library."""
        from fastsd_lib.generation.upscale import upscalers

        return [name for name, one in upscalers(self.service.shelf.folders.upscalers).items() if one.path]

    def sessions(self) -> list[str]:
        from fastsd_lib.sessions.session import list_sessions

        return [session.name for session in list_sessions(self.root)]

    # --- drawing

    def order(
        self, choices: StudioChoices, styles: Mapping[str, Style] | None = None
    ) -> tuple[Job, list[str]]:
        """Queue what the form asks for; the job, and what had to be left out. UserError for a wrong value."""
        from fastsd_lib.generation.service import Order

        request, notes = choices.request(self.styles() if styles is None else styles)
        kind = "inpaint" if request.inpaint else "img2img" if request.init else "txt2img"
        return self.service.submit(Order(request, choices.model, owner="studio", at_once=1, kind=kind)), notes

    def wait(self, job: Job, patience_s: float | None = None) -> list[Any]:
        """The pictures of a job once it is over; raises what ended it."""
        return job.future.result(patience_s)

    # --- keeping

    def folder_for(self, session: str = "") -> Path:
        """Where pictures are saved: a session's `samples`, else the studio's folder of today."""
        if session:
            from fastsd_lib.workflows import dreambooth

            return dreambooth.open_session(session, self.root, create_if_missing=False).samples
        return self.outputs / time.strftime("%Y-%m-%d")

    def save(self, job: Job, session: str = "") -> list[Path]:
        """Write the job's finished pictures that are not written yet, with how they were made; all its files."""
        from fastsd_lib.generation.infotext import save_picture

        with self._saving:
            written = self._saved.setdefault(job.id, [])
            folder = self.folder_for(session)
            for number, picture in enumerate(job.pictures[len(written) :], len(written)):
                name = f"studio-{time.strftime('%H%M%S')}-{job.id[:4]}-{number:03d}-{picture.seed}.png"
                folder.mkdir(parents=True, exist_ok=True)
                written.append(save_picture(picture, folder / name))
            if self.history is not None and written:
                self.history.set_files(job.id, written)
            return list(written)

    def past(self, text: str = "", most: int = 60) -> list[dict[str, Any]]:
        """Earlier orders that drew something, the newest first; `text` is looked for in how they were made."""
        if self.history is None:
            return []
        return [entry for entry in self.history.search(text, most=most) if entry["infotexts"]]

    def close(self) -> None:
        """End what is being drawn and free the memory; a second call does nothing."""
        self.service.close()
        self.service.shelf.unload()
        if self.history is not None:
            self.history.close()
            self.history = None

    def _add(self, file: Path) -> None:
        try:
            self.service.shelf.add_model(registry.base_model(file))
        except UserError as error:  # a session's file that is no model
            if (note := error.message) not in self.notes:
                self.notes.append(note)


def open_studio(
    config: StudioConfig = StudioConfig(), root: Path | None = None, say: Callable[[str], None] = print
) -> Studio:
    """Open the studio on the sessions and the library below `root`; the model is read in the background.

    UserError for a model, a library or a folder that cannot be had.
    """
    require("diffusers", group="webui")
    root = expanded(root or default_root())
    library = expanded(config.library_folder) if config.library_folder.strip() else None
    folders = library_folders(library or root)
    model = file_links.find_model(config.model, root, (library or root) / "models" / "Stable-diffusion")
    outputs = expanded(config.outputs_folder) if config.outputs_folder.strip() else root / "studio"
    try:
        outputs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{outputs} cannot be made: {error.strerror}.", fix="name another outputs_folder."
        ) from None
    from fastsd_lib.generation.history import History
    from fastsd_lib.generation.resources import Library
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf

    notes: list[str] = []
    history = None
    try:
        history = History(outputs / "history.sqlite")
    except UserError as error:  # a disk that locks no files, such as some mounts of Drive
        notes.append(f"Without a history: {error.message}")
    shelf = Shelf(Library.of(folders), model, config.device, config.dtype, hashes=outputs / "hashes.json")
    studio = Studio(Service(shelf, history), root, outputs, history, notes)
    studio.load(shelf.current)
    for note in notes:
        say(note)
    return studio


def _trained(root: Path) -> list[Session]:
    from fastsd_lib.sessions.session import list_sessions

    return [session for session in list_sessions(root) if session.model_file.is_file()]


def _hint(lora: LoraInfo) -> str:
    title = lora.metadata.get("modelspec.title") or lora.alias
    known = title != lora.name and title
    return ", ".join(part for part in (known, FAMILY_NAMES.get(lora.family, lora.family)) if part)[:80]


def _beside(file: Path) -> Path | None:
    return next((one for end in PICTURE_ENDINGS if (one := file.with_name(file.stem + end)).is_file()), None)
