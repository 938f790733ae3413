"""Where the user's files for drawing lie, by A1111's folder names; light, so that a form needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PRUNED = {".git", "__pycache__", ".ipynb_checkpoints"}


@dataclass(frozen=True)
class NamedFile:
    """A file that is asked for by name."""

    name: str  # the file's name without its ending
    path: Path


@dataclass(frozen=True)
class LibraryFolders:
    """Folders that are searched, in this order; those that do not exist hold nothing."""

    checkpoints: tuple[Path, ...] = ()
    vaes: tuple[Path, ...] = ()
    loras: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()
    controlnets: tuple[Path, ...] = ()
    upscalers: tuple[Path, ...] = ()
    captioners: tuple[Path, ...] = ()  # folders of BLIP, or folders of such folders
    vits: tuple[Path, ...] = ()  # folders of ViT models and of indexes of pictures
    wildcards: tuple[Path, ...] = ()
    styles: tuple[Path, ...] = ()  # files, such as styles.csv

    @classmethod
    def under(cls, root: Path) -> LibraryFolders:
        """The layout of an A1111 folder (`models/Stable-diffusion`, `models/Lora`, `embeddings` ...)."""
        models = root / "models"
        return cls(
            checkpoints=(models / "Stable-diffusion",),
            vaes=(models / "VAE",),
            loras=(models / "Lora", models / "LyCORIS"),
            embeddings=(root / "embeddings",),
            controlnets=(models / "ControlNet",),
            upscalers=(models / "ESRGAN", models / "RealESRGAN"),
            captioners=(models / "BLIP",),
            vits=(models / "ViT",),
            wildcards=(root / "wildcards", root / "extensions" / "sd-dynamic-prompts" / "wildcards"),
            styles=(root / "styles.csv",),
        )

    def and_then(self, other: LibraryFolders) -> LibraryFolders:
        """Both; what the first one holds hides what has the same name in the second one."""
        mine, theirs = vars(self), vars(other)
        return LibraryFolders(**{kind: (*mine[kind], *theirs[kind]) for kind in mine})


def find_files(folders: Iterable[Path], endings: tuple[str, ...]) -> dict[str, NamedFile]:
    """The files of these endings by name, subfolders included, in order; the first of a name counts."""
    found: dict[str, NamedFile] = {}
    for folder in folders:
        for path in _walk(folder):
            if path.suffix.lower() in endings and path.stem not in found:
                found[path.stem] = NamedFile(path.stem, path)
    return found


def _walk(folder: Path) -> Iterator[Path]:
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name not in PRUNED and not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(place) / name
