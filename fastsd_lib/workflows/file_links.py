"""Models and LoRA files by whatever names them: a name, a session, a path, or a link to a file or a repository."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import Report, silent
from fastsd_lib.core.tensor_file import read_tensor_file
from fastsd_lib.core.text import escaped
from fastsd_lib.environment.tokens import hub_token
from fastsd_lib.generation.library import find_files
from fastsd_lib.models import registry
from fastsd_lib.models.kind import KIND_WORDS
from fastsd_lib.workflows import hub
from fastsd_lib.workflows.model_downloads import STAGING, Shelf, bring
from fastsd_lib.workflows.model_sources import WORKS, Hosts, is_file_of_hub, is_link

MODELS = (".safetensors", ".ckpt")


def find_model(
    text: str | Path, root: Path | None = None, checkpoints: Path | None = None, report: Report = silent
) -> ModelFiles:
    """The model behind a name, a trained session of `root`, a file in `checkpoints`, a path, a Hub id or a link.

    Downloads when it must. UserError with what works instead for anything else.
    """
    name = str(text).strip() or registry.EMBEDDED
    if is_link(name):
        linked = hub.repository_of(name)
        if linked is None or is_file_of_hub(name):
            return registry.base_model(fetch(name, root, report))
        name = linked[0]
    elif name != registry.EMBEDDED and not expanded(name).exists():
        if is_file_of_hub(name):
            return registry.base_model(fetch(name, root, report))
        here = _of_session(name, root) or _of_folder(name, checkpoints)
        name = str(here or name)
    return registry.base_model(name, token=lambda: hub_token(root), root=root, report=report)


def split_links(text: str) -> list[str]:
    """Several in one field, between spaces, commas or lines."""
    return [one for one in re.split(r"[\s,]+", text) if one]


def add_to_library(
    links: Iterable[str], folder: Path, report: Report = silent, sites: Hosts | None = None
) -> list[Path]:
    """Have each file, a link or a path, lie in `folder`; one that is there by its name is not fetched again.

    Only .safetensors: UserError for anything else, before it is put there.
    """
    shelf = Shelf(dict.fromkeys(KIND_WORDS, folder), folder / STAGING, None, _check_safetensors)
    added = []
    for link in links:
        named = folder / PurePosixPath(unquote(urlsplit(link).path) if is_link(link) else link).name
        if named.suffix == ".safetensors" and named.is_file():
            added.append(named)
        elif is_link(link) or is_file_of_hub(link) or expanded(link).is_file():
            added.append(bring(_of_a_file(link), shelf, report=report, sites=sites).path)
        else:
            raise UserError(f"There is no file {escaped(link)}.", fix=f"give {WORKS}.")
    return added


def fetch(link: str, root: Path | None = None, report: Report = silent) -> Path:
    """The file behind a link, kept in the cache of downloads. UserError for what cannot be fetched or is no model."""
    cache = Path.home() / ".cache" / "fastsd" / "links"
    shelf = Shelf(dict.fromkeys(KIND_WORDS, cache), cache / STAGING, root)
    return bring(_of_a_file(link), shelf, report=report).path


def _of_a_file(link: str) -> str:
    if is_link(link) and not is_file_of_hub(link) and (linked := hub.repository_of(link)):
        raise UserError(f"This link names {linked[0]}, but no file of it.", fix=f"give {WORKS}.")
    return link


def _check_safetensors(file: Path) -> None:
    """By what is in it: names lie, and a pickled file runs what its maker wants."""
    try:
        read_tensor_file(file)
    except UserError:
        raise UserError(
            f"{escaped(file.name)} is no .safetensors file.",
            fix="take the .safetensors version of it: pickled files are not opened.",
        ) from None


def _of_session(name: str, root: Path | None) -> Path | None:
    """The model of the session called so, if it is trained."""
    from fastsd_lib.sessions.session import list_sessions

    sessions = list_sessions(root) if root is not None else []
    return next((one.model_file for one in sessions if one.name == name and one.model_file.is_file()), None)


def _of_folder(name: str, folder: Path | None) -> Path | None:
    found = find_files((folder,), MODELS) if folder is not None else {}
    return next((one.path for one in found.values() if name in (one.name, one.path.name)), None)
