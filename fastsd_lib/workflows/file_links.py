"""Models and LoRA files by whatever names them: a name, a session, a path, a Hugging Face or a Google Drive link."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fastsd_lib.core.archives import path_danger
from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.progress import silent
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.environment.tokens import hub_token
from fastsd_lib.generation.library import find_files
from fastsd_lib.models import registry
from fastsd_lib.workflows import drive_links, hub

MODELS = (".safetensors", ".ckpt")
_FILE_OF_HUB = re.compile(r"/(?:blob|resolve|raw)/([^/]+)/(.+)")
WORKS = (
    "a Hugging Face link such as https://huggingface.co/org/name/blob/main/file.safetensors, a Google Drive link "
    "that everyone may open, or the path of a file that you downloaded"
)


def find_model(text: str | Path, root: Path | None = None, checkpoints: Path | None = None) -> ModelFiles:
    """The model behind a name, a trained session of `root`, a file in `checkpoints`, a path, a Hub id or a link.

    Downloads when it must. UserError with what works instead for anything else.
    """
    name = str(text).strip() or registry.EMBEDDED
    if is_link(name):
        linked = hub.repository_of(name)
        if linked is None or _FILE_OF_HUB.search(urlsplit(name).path):
            return registry.base_model(fetch(name))
        name = linked[0]
    elif name != registry.EMBEDDED and not Path(name).expanduser().exists():
        here = _of_session(name, root) or _of_folder(name, checkpoints)
        name = str(here or name)
    return registry.base_model(name, token=lambda: hub_token(root))


def is_link(text: str) -> bool:
    return bool(re.match(r"[a-z][a-z0-9+.-]*://", text.strip(), re.IGNORECASE))


def split_links(text: str) -> list[str]:
    """Several in one field, between spaces, commas or lines."""
    return [one for one in re.split(r"[\s,]+", text) if one]


def add_to_library(links: Iterable[str], folder: Path) -> list[Path]:
    """Have each file, a link or a path, lie in `folder`; one that is there by its name is not fetched again.

    Only .safetensors: UserError for anything else, before it is put anywhere.
    """
    added = []
    for link in links:
        name = _name_of(link)
        final = folder / name
        if not (name.endswith(".safetensors") and final.is_file()):
            found = fetch(link) if is_link(link) else Path(link).expanduser()
            if not found.is_file():
                raise UserError(f"There is no file {escaped(link)}.", fix=f"give {WORKS}.")
            _check_safetensors(found)
            final = folder / found.with_suffix(".safetensors").name
            with atomic_path(final) as scratch:
                shutil.copyfile(found, scratch)
        added.append(final)
    return added


def fetch(link: str) -> Path:
    """The file behind a link, kept in the cache of downloads. UserError for what cannot be fetched."""
    if hub.repository_of(link) is not None:
        return _from_hub(link)
    if drive_links.is_drive(link):
        return _from_drive(link)
    host = urlsplit(link).hostname or link[:40]
    raise UserError(f"Files behind {escaped(host)} are not fetched here.", fix=f"give {WORKS}.")


def _from_hub(link: str) -> Path:
    (repository, kind), found = hub.repository_of(link) or ("", ""), _FILE_OF_HUB.search(urlsplit(link).path)
    if found is None:
        raise UserError(f"This link names {repository}, but no file of it.", fix=f"give {WORKS}.")
    revision, name = unquote(found[1]), unquote(found[2])
    if reason := path_danger(name):
        raise UserError(f"This link cannot be followed: {reason}.", fix=f"give {WORKS}.")
    require("huggingface_hub", group="core")
    from huggingface_hub import hf_hub_download

    token = hub_token(None)
    try:
        return Path(
            hf_hub_download(repository, name, repo_type=kind, revision=revision, token=token or False)
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.filename:
            raise
        raise hub.plain_error(error, repository, token) from None


def _from_drive(link: str) -> Path:
    """Drive tells no name: the file is called by the link's id, and must be safetensors."""
    if "/folders/" in link:
        raise UserError(
            "This Google Drive link is of a folder.",
            fix="give the link of one file in it, or its path on Drive.",
        )
    final = _drive_cache() / _name_of(link)
    if final.is_file():
        return final
    with tempfile.TemporaryDirectory() as scratch:
        fetched = drive_links.fetch(link, Path(scratch), silent)
        assert isinstance(fetched, Path)  # a folder was refused above
        _check_safetensors(fetched, "behind this link")
        with atomic_path(final) as place:
            shutil.move(fetched, place)
    return final


def _check_safetensors(file: Path, what: str = "") -> None:
    """By what is in it: names lie, and a pickled file runs what its maker wants."""
    try:
        read_tensor_file(file)
    except UserError:
        raise UserError(
            f"The file {what or escaped(file.name)} is no .safetensors file.",
            fix="take the .safetensors version of it: pickled files are not opened.",
        ) from None


def _drive_cache() -> Path:
    return Path.home() / ".cache" / "fastsd" / "drive"


def _name_of(link: str) -> str:
    """What the file behind a link or path is called here."""
    if is_link(link) and drive_links.is_drive(link):
        found = re.search(r"[-\w]{20,}", link)
        return f"drive-{found[0] if found else 'file'}.safetensors"
    return PurePosixPath(unquote(urlsplit(link).path) if is_link(link) else link.replace("\\", "/")).name


def _of_session(name: str, root: Path | None) -> Path | None:
    """The model of the session called so, if it is trained."""
    from fastsd_lib.sessions.session import list_sessions

    sessions = list_sessions(root) if root is not None else []
    return next((one.model_file for one in sessions if one.name == name and one.model_file.is_file()), None)


def _of_folder(name: str, folder: Path | None) -> Path | None:
    found = find_files((folder,), MODELS) if folder is not None else {}
    return next((one.path for one in found.values() if name in (one.name, one.path.name)), None)
