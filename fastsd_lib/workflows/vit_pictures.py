"""Pictures for an experiment, whatever they come as: sample data, a folder, a zip, uploads, a data set of the hub."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from fastsd_lib.core import archives
from fastsd_lib.core.errors import UserError, require
from fastsd_lib.core.file_kinds import is_junk
from fastsd_lib.core.files import atomic_path
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped, name_problem
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.workflows.vit_experiment import Experiment, use_pictures

SAMPLES = ("digits", "faces", "scenes")
KINDS = f"{', '.join(SAMPLES)}, a folder with one folder for each class, a zip of it, or org/name"
_DATASET = re.compile(r"[\w.-]+/[\w.-]+")


def take_pictures(experiment: Experiment, source: str | Path) -> Path:
    """Choose what the experiment is about; the folder that holds one folder of pictures for each class.

    `source`: "digits", "faces" or "scenes" (real sample data), a folder (used where it is), a zip of folders
    (unpacked into the experiment), or a Hugging Face data set "org/name" (written as pictures). What was taken
    before is found again. UserError for anything else.
    """
    text = str(source).strip()
    if text in SAMPLES:
        folder = _once(experiment, text, lambda into: sample_data(text, into))
    elif text.lower().endswith(".zip") and (path := expanded(text)).is_file():
        folder = _once(experiment, path.stem, lambda into: unpack_pictures(path, into))
    elif _DATASET.fullmatch(text) or (text and expanded(text).exists()):
        require("transformers", group="vit")
        from fastsd_lib.vit.training_sets import open_training_data

        aside = experiment.path / "pictures" / text.strip("/.~").replace("/", "--")
        folder = open_training_data(VitTrainConfig(data=text, validation=0.0), aside).path.absolute()
    else:
        near = difflib.get_close_matches(text, SAMPLES, 1)
        raise UserError(
            f"There are no pictures at {escaped(text)!r}.",
            fix=f"did you mean {near[0]}?" if near else f"type {KINDS}.",
        )
    use_pictures(experiment, folder)
    return folder


def sample_data(kind: str, folder: str | Path) -> Path:
    """Write real sample pictures as one folder for each class. UserError for a kind that there is not."""
    if kind not in SAMPLES:
        raise UserError(f"There is no sample data {escaped(kind)!r}.", fix=f"one of: {', '.join(SAMPLES)}")
    require("sklearn", group="vit")
    from fastsd_lib.vit import sample_data as samples

    folder = expanded(folder)
    {"digits": samples.write_digits, "faces": samples.write_faces, "scenes": samples.write_scenes}[kind](
        folder
    )
    return folder


def save_uploads(experiment: Experiment, uploads: Iterable[tuple[str, bytes]], label: str) -> Path:
    """Uploaded pictures as those of the class `label`; a zip brings its own folders. The folder of all classes."""
    folder = experiment.path / "pictures" / "uploaded"
    for name, content in uploads:
        plain = PurePosixPath(name.replace("\\", "/")).name
        if problem := name_problem(plain):
            raise UserError(f"{escaped(plain[:60])!r} cannot be stored: {problem}.", fix="rename it.")
        if plain.lower().endswith(".zip"):
            with TemporaryDirectory() as scratch:
                packed = Path(scratch, plain)
                packed.write_bytes(content)
                unpack_pictures(packed, folder)
        elif problem := name_problem(label):
            raise UserError(
                f"The uploads' class cannot be called {escaped(label[:60])!r}: {problem}.",
                fix="type what is seen on them.",
            )
        else:
            with atomic_path(folder / label / plain) as picture:
                picture.write_bytes(content)
    use_pictures(experiment, folder)
    return folder


def unpack_pictures(archive: Path, into: Path) -> None:
    """The files of a zip, in the folders they have there. UserError for a zip that is not to be trusted."""
    with archives.open_zip(archive) as opened:
        budget = archives.Budget(archive.name, archive.stat().st_size)
        for member in archives.zip_members(opened, budget):
            parts = PurePosixPath(member.name).parts
            if any(is_junk(part) for part in parts):
                continue
            with atomic_path(into.joinpath(*parts)) as scratch, scratch.open("wb") as plain:
                for block in member.blocks():
                    plain.write(block)


def _once(experiment: Experiment, name: str, write: Callable[[Path], object]) -> Path:
    """A folder of pictures that is complete: it is written aside first, and found again the next time."""
    folder = experiment.path / "pictures" / name
    if not folder.is_dir():
        aside = folder.with_name(f".{name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        aside.rename(folder)
    return folder
