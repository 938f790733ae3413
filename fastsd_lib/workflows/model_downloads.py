"""Any model from anywhere, fetched, told apart by its content and put into the folder of its kind."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, fingerprint, fsync_path, read_json, sha256_file, write_json
from fastsd_lib.core.https_client import shown_url
from fastsd_lib.core.paths import expanded, is_there
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped
from fastsd_lib.environment import hosts as machine
from fastsd_lib.environment.tokens import hub_token
from fastsd_lib.models import registry
from fastsd_lib.models.download_names import PICKLED, free_place
from fastsd_lib.models.identify import Description, describe
from fastsd_lib.models.kind import KIND_WORDS
from fastsd_lib.models.known_models import EMBEDDED, HUB_ID, find_known, replaced
from fastsd_lib.workflows import hub
from fastsd_lib.workflows.model_kinds import check_kind, refuse_told
from fastsd_lib.workflows.model_sources import WORKS, Hosts, fetch_link, is_file_of_hub, is_link
from fastsd_lib.workflows.models import check_choice

STAGING = ".downloads"  # below models/: what is on its way, and a list of what came from where
_USUALLY_PICKLED = ("embedding", "upscaler")  # in the formats of their makers


@dataclass(frozen=True)
class Downloaded:
    """Where a model lies now, and what it is."""

    path: Path
    description: Description
    there_already: bool = False
    notes: tuple[str, ...] = ()  # warnings, and what the source tells: base model, trigger words


def model_folders(root: Path) -> dict[str, Path]:
    """The folder of each kind of file below `root`, by A1111's names (Forge's where A1111 has none)."""
    models = root / "models"
    whole, control = models / "Stable-diffusion", models / "ControlNet"
    return {
        "checkpoint": whole, "unet": whole, "transformer": whole,
        "vae": models / "VAE", "text-encoder": models / "text_encoder", "image-encoder": models / "clip_vision",
        "lora": models / "Lora", "embedding": root / "embeddings", "upscaler": models / "ESRGAN",
        "controlnet": control, "control-lora": control, "t2i-adapter": control, "ip-adapter": control,
        "redux": models / "style_models", "motion-module": models / "animatediff",
    }  # fmt: skip


def download(
    text: str,
    root: Path | None = None,
    kind: str = "",
    folders: Mapping[str, Path] | None = None,
    report: Report = silent,
    *,
    sites: Hosts | None = None,
) -> Downloaded:
    """Fetch what `text` names: a known model, a Hugging Face, CivitAI or Drive link, an https address, a path.

    A file goes into the folder of its kind below `root` (or as `folders` says): its content tells the kind, and no
    file is written over. A whole repository stays in the Hub's cache. `kind`: what it must be. UserError, with
    nothing left, for what cannot be fetched or is no model.
    """
    root = root or machine.default_root()
    shelf = Shelf({**model_folders(root)} if folders is None else folders, root / "models" / STAGING, root)
    return bring(text, shelf, kind, report, sites)


def bring(
    text: str, shelf: Shelf, kind: str = "", report: Report = silent, sites: Hosts | None = None
) -> Downloaded:
    """`download`, onto a shelf of any shape."""
    text = text.strip()
    if not text:
        raise UserError("Nothing is named that could be fetched.", fix=f"give {WORKS}.")
    check_choice("kind", kind, ["", *KIND_WORDS])
    path = expanded(text)
    if not is_link(text) and is_there(path):
        return shelf.take_local(path, kind)
    if is_file_of_hub(text) or (is_link(text) and not _is_repository(text)):
        there = shelf.known(text)
        if there is not None:
            check_kind(there.path.name, there.description.kind, kind)
        return there or shelf.fetch(text, sites or Hosts(), report, kind)
    return _of_registry(text, shelf, report, kind)


def _of_registry(name: str, shelf: Shelf, report: Report, kind: str) -> Downloaded:
    """A model known by its name, or a whole repository of the Hub."""
    if is_link(name):
        name = (hub.repository_of(name) or (name, ""))[0]

    def token() -> str | None:
        return hub_token(shelf.root)

    model = find_known(name, root=shelf.root)
    if model is not None or HUB_ID.fullmatch(name):  # a repository is taken for a whole model only
        refuse_told(name, model.kind if model else "checkpoint", kind)
    if model is not None and model.name != EMBEDDED:  # also one that is not opened here
        if told := replaced(name, model):
            report(ProgressEvent("model", 1, 1, {"": told}))
        path = registry.fetch_known(model, token, report=report)
    else:
        path = registry.base_model(name, token=token, root=shelf.root, report=report).path
    done = shelf.take_local(path, kind)
    return replace(done, there_already=False) if path.is_dir() else done


def anything(file: Path) -> None:
    """The check of a shelf that takes every model."""


@dataclass(frozen=True)
class Shelf:
    """Folders that models are put into, each into that of its kind."""

    folders: Mapping[str, Path]
    staging: Path  # what is on its way; on the disk of the folders it costs a rename
    root: Path | None  # where tokens and the user's list of models lie; None = the usual place
    check: Callable[[Path], None] = anything  # raises UserError for what this shelf does not take

    def fetch(self, link: str, sites: Hosts, report: Report, kind: str = "") -> Downloaded:
        staging = self.staging / fingerprint(link)
        try:
            fetched = fetch_link(link, staging, self.root, sites, report, kind)
            try:
                self.check(fetched.path)
                description = describe(fetched.path)
            except UserError as error:
                fetched.path.unlink()
                raise _no_model(link, fetched.path, error) from None
            try:
                check_kind(fetched.path.name, description.kind, kind)
            except UserError:
                fetched.path.unlink()
                raise
            done = self._place(fetched.path, description, move=True)
        finally:
            for folder in (staging, self.staging):  # they stay when something in them can be gone on with
                with suppress(OSError):
                    folder.rmdir()
        self._remember(link, done.path)
        return replace(done, notes=(*fetched.notes, *done.notes))

    def take_local(self, path: Path, kind: str = "") -> Downloaded:
        """A file or folder of this machine: a file is copied into its folder, unless it lies there."""
        if path.is_dir():
            description = describe(path)
            check_kind(path.name, description.kind, kind)
            return Downloaded(path, description, there_already=True)
        self.check(path)
        description = describe(path)
        check_kind(path.name, description.kind, kind)
        folder = self._folder(description)
        if folder.is_dir() and path.resolve().is_relative_to(folder.resolve()):
            return Downloaded(path, description, there_already=True, notes=_warnings(path, description))
        return self._place(path, description, move=False)

    def known(self, link: str) -> Downloaded | None:
        """What this link gave before, if it still lies there as it was."""
        found = self._listed().get(fingerprint(link))
        try:
            path = Path(found["path"])
            status = path.stat()
            if [status.st_size, status.st_mtime_ns] != [found["size"], found["mtime_ns"]]:
                return None
            description = describe(path)
        except (TypeError, KeyError, ValueError, OSError, UserError):
            return None
        if self._folder(description).resolve() not in path.resolve().parents:
            return None
        return Downloaded(path, description, there_already=True, notes=_warnings(path, description))

    def _place(self, file: Path, description: Description, *, move: bool) -> Downloaded:
        """Into the folder of its kind; a file of that name with other content stays, and this one is called NAME-2."""
        folder, notes = self._folder(description), _warnings(file, description)
        folder.mkdir(parents=True, exist_ok=True)
        there = folder / file.name
        if (
            there.is_file()
            and there.stat().st_size == file.stat().st_size
            and sha256_file(there) == sha256_file(file)
        ):
            if move:
                file.unlink()
            return Downloaded(there, replace(description, path=there), there_already=True, notes=notes)
        final, renamed = free_place(folder, file.name), False
        if move:
            with suppress(OSError):  # the folder is on another disk
                os.rename(file, final)
                fsync_path(folder)
                renamed = True
        if not renamed:
            with atomic_path(final) as scratch:
                shutil.copyfile(file, scratch)
            if move:
                file.unlink()
        return Downloaded(final, replace(description, path=final), notes=notes)

    def _folder(self, description: Description) -> Path:
        return self.folders[description.kind.kind]

    @property
    def _list(self) -> Path:
        return self.staging / "fetched.json"

    def _listed(self) -> dict[str, dict[str, object]]:
        try:
            found = read_json(self._list)
        except (UserError, OSError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, link: str, path: Path) -> None:
        status = path.stat()
        row = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        with suppress(OSError):  # only spares a download
            write_json(self._list, {**self._listed(), fingerprint(link): row})


def _is_repository(link: str) -> bool:
    return hub.repository_of(link) is not None and not is_file_of_hub(link)


def _no_model(link: str, file: Path, error: UserError) -> UserError:
    told = error.message.replace(str(file), escaped(file.name))
    return UserError(f"'{shown_url(link)}' gave no model: {told}", fix=error.fix)


def _warnings(file: Path, description: Description) -> tuple[str, ...]:
    if file.suffix.lower() not in PICKLED or description.kind.kind in _USUALLY_PICKLED:
        return ()
    return (
        f"{escaped(file.name)} is a pickled file: its header was read without running it, and it is opened so that "
        "nothing in it runs. Other programs may be less careful: convert it to .safetensors.",
    )
