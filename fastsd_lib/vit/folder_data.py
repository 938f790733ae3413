"""A folder of pictures, one folder per class, as training, validation and test sets that share nothing.

The split is drawn class by class from the seed and the file names: the same folder is split the same way on every
machine. Copies of one picture, and pictures of one group, never end up on both sides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.file_kinds import is_junk
from fastsd_lib.core.files import fingerprint
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.text import escaped
from fastsd_lib.images.load import PhotoError, PhotoLimits, read_photo
from fastsd_lib.vit.folder_split import Sample, copies_among, groups_of, split

LIMITS = PhotoLimits(min_side_px=1, max_aspect=1000.0)
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_NO_PICTURES = {
    ".txt",
    ".json",
    ".jsonl",
    ".csv",
    ".md",
    ".html",
    ".xml",
    ".yaml",
    ".yml",
    ".parquet",
    ".arrow",
}
_SHOWN = 3  # names in one line


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds: three lists of pictures with the number of their class, and what was wrong with the rest."""

    path: Path
    classes: tuple[str, ...]  # sorted by name; the number of a class is its place here
    train: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    test: tuple[Sample, ...]
    bad: tuple[tuple[Path, str], ...] = ()  # files that are left out, and why
    notes: tuple[str, ...] = ()  # what the user should know: copies on both sides, one picture in two classes

    def counts(self, part: str = "train") -> dict[str, int]:
        """Pictures of each class."""
        found = Counter(label for _, label in getattr(self, part))
        return {name: found[number] for number, name in enumerate(self.classes)}

    @property
    def fingerprint(self) -> str:
        """Changes with any picture's name, size or place in the split: a run resumes only on the same data."""
        parts = {
            part: [
                [file.relative_to(self.path).as_posix(), file.stat().st_size, label]
                for file, label in getattr(self, part)
            ]
            for part in PARTS
        }
        return fingerprint({"classes": self.classes, **parts})


def open_image_folder(
    path: Path | str,
    *,
    validation: float = 0.15,
    test: float = 0.0,
    seed: int = 1337,
    group_by: str | None = None,
    check: bool = True,
) -> ImageFolder:
    """Class folders, or `train/`, `val/`, `test/` with class folders in them; what is given is not split again.

    `validation`, `test`: shares taken of each class where no such folder is given. `group_by`: a pattern looked for in
    each path below the class folder; pictures with the same match (its first group, if it has one) stay together.
    `check` decodes every picture once and leaves out those that cannot be read. UserError for a folder that is not
    there, holds no two classes, or has a class with too few pictures to be split.
    """
    path = expanded(path)
    given = _given_parts(path)
    found = {part: _class_files(folder) for part, folder in given.items()}
    classes = tuple(sorted({name for files in found.values() for name in files}))
    if len(classes) < 2:
        what = f"only pictures of {escaped(classes[0])!r}" if classes else "no folders with pictures"
        raise UserError(
            f"{path} holds {what}.",
            fix="put the pictures of each class into a folder named after it: data/cat/1.jpg, data/dog/1.jpg.",
        )
    bad: list[tuple[Path, str]] = []
    parts = {part: _samples(files, classes, check, bad) for part, files in found.items()}
    copies = copies_among([file for samples in parts.values() for file, _ in samples])
    notes = [_left_out(bad)] if bad else []
    notes += _two_labels(parts, copies, classes)
    train = parts["train"]
    groups = groups_of(train, path, group_by, copies)
    shares = {
        part: share
        for part, share in (("validation", validation), ("test", test))
        if part not in parts and share > 0
    }
    _check_counts(path, classes, train, parts, len(shares))
    drawn = split(train, groups, shares, seed)
    result = ImageFolder(
        path,
        classes,
        *(tuple(drawn.get(part, parts.get(part, []))) for part in PARTS),
        bad=tuple(bad),
        notes=(*notes, *_leaks(given, parts, copies)),
    )
    _check_split(result, shares)
    return result


# -- finding ----------------------------------------------------------------------------------------------------------


def _given_parts(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder.", fix="name the folder that holds one folder per class.")
    folders = {one.name.casefold(): one for one in path.iterdir() if one.is_dir() and not is_junk(one.name)}
    given = {}
    for part, names in PARTS.items():
        folder = next((folders[name] for name in names if name in folders), None)
        if folder is not None and any(one.is_dir() for one in folder.iterdir()):
            given[part] = folder
    return given if "train" in given else {"train": path}


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Files below each class folder, sorted; junk, links out of the way and texts left aside."""
    found = {}
    for kind in sorted(one for one in folder.iterdir() if one.is_dir() and not is_junk(one.name)):
        files = [
            file
            for file in sorted(kind.rglob("*"))
            if file.is_file()
            and not any(is_junk(part) for part in file.relative_to(folder).parts)
            and file.suffix.casefold() not in _NO_PICTURES
        ]
        if files:
            found[kind.name] = files
    return found


def _samples(
    files: dict[str, list[Path]], classes: Sequence[str], check: bool, bad: list[tuple[Path, str]]
) -> list[Sample]:
    samples = [(file, number) for number, name in enumerate(classes) for file in files.get(name, [])]
    if not check:
        return samples
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(_fault, (file for file, _ in samples)))
    bad += [(file, fault) for (file, _), fault in zip(samples, faults, strict=True) if fault]
    return [sample for sample, fault in zip(samples, faults, strict=True) if not fault]


def _fault(file: Path) -> str:
    try:
        read_photo(file, limits=LIMITS, max_side_px=64)
    except PhotoError as error:
        return error.message
    return ""


# -- saying -----------------------------------------------------------------------------------------------------------


def _check_counts(
    path: Path,
    classes: Sequence[str],
    train: Sequence[Sample],
    parts: dict[str, list[Sample]],
    splits: int,
) -> None:
    counts = Counter(label for _, label in train)
    least = 1 + splits
    few = [
        f"{escaped(name)} {counts[number]}" for number, name in enumerate(classes) if counts[number] < least
    ]
    if few:
        where = f"{path}" if len(parts) == 1 else f"{path}/train"
        raise UserError(
            f"{where} has too few pictures of {_listed(few)}; each class needs {least}.",
            fix="add pictures to these classes, or take their folders out.",
        )


def _check_split(found: ImageFolder, shares: dict[str, float]) -> None:
    for part in ("train", *shares):
        empty = [name for name, count in found.counts(part).items() if not count]
        if empty:
            raise UserError(
                f"No picture of {_listed([escaped(one) for one in empty])} is left for {part}: "
                f"its pictures are copies of one another, or one group.",
                fix="add other pictures, change group_by, or give a folder val/ of your own.",
            )


def _left_out(bad: Sequence[tuple[Path, str]]) -> str:
    return f"{len(bad)} files are left out: {_listed([fault.rstrip('.') for _, fault in bad])}"


def _two_labels(parts: dict[str, list[Sample]], copies: dict[Path, str], classes: Sequence[str]) -> list[str]:
    labels = defaultdict(set)
    for samples in parts.values():
        for file, label in samples:
            if file in copies:
                labels[copies[file]].add(label)
    found = [sorted(classes[one] for one in held) for held in labels.values() if len(held) > 1]
    if not found:
        return []
    said = _listed(sorted({escaped(" and ".join(names)) for names in found}))
    return [f"{len(found)} pictures stand in several classes at once: {said}"]


def _leaks(given: dict[str, Path], parts: dict[str, list[Sample]], copies: dict[Path, str]) -> list[str]:
    """Copies in two folders that the user separated: our own split never makes any."""
    lines = []
    hashes = {part: {copies[file] for file, _ in found if file in copies} for part, found in parts.items()}
    for part in ("validation", "test"):
        leaked = hashes.get(part, set()) & hashes["train"]
        if leaked:
            names = [file.name for file, _ in parts[part] if copies.get(file) in leaked]
            lines.append(
                f"{len(names)} pictures of {given[part].name}/ are also in {given['train'].name}/, so its "
                f"figures are too good: {_listed([escaped(name) for name in names])}"
            )
    if len(given) == 1:
        same = Counter(copies.values())
        if same:
            extra = sum(same.values()) - len(same)
            lines.append(f"{extra} pictures are copies of others; copies stay on one side of the split")
    return lines


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
