"""Graphs that a library has made of a model once, kept in the user's cache: tracing takes seconds, reading them does not."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint, sha256_file, write_json
from fastsd_lib.vit.config import CONFIG
from fastsd_lib.vit.exports import source_sha256
from fastsd_lib.vit.model import VitModel
from fastsd_lib.vit.whole_folder import whole_folder

FORMAT = 1  # raise it when the way of tracing changes
KEPT = 8  # of each library; the ones used last
WHOLE = "made_of.json"
_making = threading.Lock()


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastsd" / "vit"


def cached_graph(
    model: VitModel, output: Any, library: str, version: str, make: Callable[[Path], None]
) -> Path:
    """The folder that `make` once filled for these weights, this output and these versions of the libraries.

    Made now if it is not there: `make(folder)` writes files into it. The oldest of more than KEPT are deleted.
    """
    made_of = {
        "format": FORMAT,
        "weights": source_sha256(model),
        "config": sha256_file(model.path / CONFIG),
        "output": asdict(output) if is_dataclass(output) else output,
        "versions": [version, metadata.version("torch"), metadata.version("transformers")],
    }
    shelf = cache_folder() / library
    folder = shelf / fingerprint(made_of)
    with _making:  # two threads that want the same graph make it once
        if not _is_whole(folder):
            _make(model, library, folder, made_of, make)
    with suppress(OSError):  # a read-only cache serves as well
        os.utime(folder)
    return folder


def _make(
    model: VitModel, library: str, folder: Path, made_of: dict[str, Any], make: Callable[[Path], None]
) -> None:
    try:
        with whole_folder(folder, ours=lambda _: True) as scratch:
            make(scratch)
            write_json(scratch / WHOLE, made_of)
        _forget_oldest(folder.parent)
    except OSError as error:
        raise UserError(
            f"The {library} graph of {model.name} cannot be kept in {folder.parent}: {error.strerror or error}.",
            fix="free some space there, or set XDG_CACHE_HOME to a folder that you may write to.",
        ) from None


def _is_whole(folder: Path) -> bool:
    return (folder / WHOLE).is_file()


def _forget_oldest(shelf: Path) -> None:
    """A program that has such a folder open keeps reading it: its files are mapped."""
    folders = sorted(filter(_is_whole, shelf.iterdir()), key=lambda path: path.stat().st_mtime)
    for folder in folders[:-KEPT]:
        with suppress(OSError):
            shutil.rmtree(folder)
