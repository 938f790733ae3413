"""A planned model written to disk: whole and read back, or not at all, and not begun where it would not fit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, fsync_path, plain_disk_errors, remove_leftovers, write_text
from fastsd_lib.core.progress import Report
from fastsd_lib.core.tensor_file import NewTensor
from fastsd_lib.formats.folder_extras import EXTRAS_FILE
from fastsd_lib.formats.modelspec import HASH_KEY
from fastsd_lib.formats.weights import WEIGHT_NAMES
from fastsd_lib.formats.writing import write_and_verify

FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt")
STEMS = WEIGHT_NAMES | {"transformer": "diffusion_pytorch_model"}
SMALL_FILES = (".json", ".txt")
# Parts that diffusers does without when model_index.json says so; no single file holds them.
OPTIONAL_PARTS = ("safety_checker", "feature_extractor", "image_encoder")
HEADROOM = 1.01  # headers, configs, the disk's own books


def is_file_name(target: Path) -> bool:
    """Whether a model of this name is a single file; any other is a Diffusers folder."""
    return target.suffix.lower() in FILE_SUFFIXES


def write_file(
    target: Path,
    tensors: list[NewTensor],
    header: Mapping[str, str],
    report: Report,
    sha256: bool,
    yaml: str = "",
) -> None:
    """One .safetensors or .ckpt; a file of that name is replaced once the new one is whole.

    `sha256`: put the hash over all weights into its header. `yaml`: the text of the .yaml that has to stand beside it;
    one that is there stays as it is.
    """
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise UserError(
            f"{target.name} would hold two tensors of one name.", fix="download or copy the model again."
        )
    with plain_disk_errors(f"write {target.name}"):
        require_space(target.parent, tensors)
        with _yaml_first(target, yaml), atomic_path(target) as scratch:
            write_and_verify(scratch, target, tensors, header, report, hash_key=HASH_KEY if sha256 else "")


@contextmanager
def _yaml_first(target: Path, text: str) -> Iterator[None]:
    """The .yaml is written before the model, which a kill between the two would leave to be drawn as noise.

    It is removed again when the block fails, unless it was there before.
    """
    beside = target.with_suffix(".yaml")
    if not text or beside.exists():
        yield
        return
    write_text(beside, text)
    try:
        yield
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_folder(
    target: Path,
    configs: Mapping[str, str],
    parts: Mapping[str, list[NewTensor]],
    extras: list[NewTensor],
    report: Report,
    copies: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """A Diffusers folder; it appears under its name when all of it is written. UserError when the name is taken.

    `configs`: path in the folder -> text. `extras`: what only single files hold, kept in a file of their own.
    `copies`: path in the folder -> a small file that is no text.
    """
    with new_folder(target, [*extras, *(tensor for one in parts.values() for tensor in one)]) as scratch:
        _write_configs(scratch, configs, parts)
        for name, place in copies.items():
            with atomic_path(scratch / name) as file:
                shutil.copyfile(place, file)
        files = {f"{part}/{STEMS.get(part, 'model')}.safetensors": one for part, one in parts.items()}
        for name, tensors in (files | ({EXTRAS_FILE: extras} if extras else {})).items():
            with atomic_path(scratch / name) as file:
                write_and_verify(file, target / name, tensors, {"format": "pt"}, report)


@contextmanager
def new_folder(target: Path, tensors: Iterable[NewTensor]) -> Iterator[Path]:
    """A scratch folder for what `tensors` need, which becomes `target` only if the block succeeds.

    UserError when `target` holds something, or the disk has not enough room.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is there already.", fix="name a new folder, or remove the old one first.")
    with plain_disk_errors(f"write {target.name}"):
        require_space(target.parent, tensors)
        remove_leftovers(target)
        scratch = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
        _remove(scratch)
        try:
            yield scratch
            if target.exists():
                target.rmdir()  # empty: checked above
            os.replace(scratch, target)
            fsync_path(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _remove(scratch: Path) -> None:
    """Remove what another process with this process's number has left: containers count from 1 again and again."""
    if scratch.is_dir() and not scratch.is_symlink():
        shutil.rmtree(scratch)
    else:
        scratch.unlink(missing_ok=True)


def require_space(folder: Path, tensors: Iterable[NewTensor]) -> None:
    """UserError when the disk of `folder`, which need not be there yet, has not enough room."""
    needed = int(sum(tensor.size_bytes for tensor in tensors) * HEADROOM)
    place = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"The model needs {needed / 1e9:.1f} GB in {folder}; {free / 1e9:.1f} GB are free.",
            fix="free some space there, write to another disk, or choose --dtype fp16 if it is fp32 now.",
        )


def _write_configs(
    folder: Path, configs: Mapping[str, str], parts: Sequence[str] | Mapping[str, object]
) -> None:
    for name, text in configs.items():
        place = PurePosixPath(name)
        if (
            len(place.parts) > 2
            or place.is_absolute()
            or ".." in place.parts
            or place.suffix not in SMALL_FILES
        ):
            raise ValueError(f"{name} is no place in a Diffusers folder")
        write_text(
            folder / name, _without_lost_parts(text, configs, parts) if name == "model_index.json" else text
        )


def _without_lost_parts(
    text: str, configs: Mapping[str, str], parts: Sequence[str] | Mapping[str, object]
) -> str:
    """model_index.json, optional parts crossed out that the folder does not hold."""
    index = json.loads(text)
    for part in OPTIONAL_PARTS:
        held = part in parts or any(name.startswith(f"{part}/") for name in configs)
        if part in index and index.get("depth_estimator") is None and not held:
            index[part] = [None, None]
    return json.dumps(index, indent=2) + "\n"
