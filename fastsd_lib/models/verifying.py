"""Whether a model file is whole: its header, the places of its weights, every number in it, its hash.

All of it is read once, a mebibyte at a time; nothing is kept and no pickle is run.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import CHUNK_BYTES
from fastsd_lib.core.pickle_header import PickleHeader
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.tensor_file import BYTES_PER_VALUE, ByteRange, TensorFile
from fastsd_lib.core.text import escaped
from fastsd_lib.models.folders import weight_files
from fastsd_lib.models.identify import Description, describe, read_header

# Type -> (unsigned type of its width, the bits that are all set in infinity and NaN).
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000), "F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C), "F8_E4M3": ("u1", 0x7F),
}  # fmt: skip
_STATED_HASH = "modelspec.hash_sha256"  # over the data of all tensors


@dataclass(frozen=True)
class Verification:
    """What was found. `problems` is empty for a file that is as it should be."""

    path: Path
    description: Description | None  # None: it is none of the known kinds, or cannot be read at all
    sha256: str  # of the whole file; "" when no hash was asked for
    problems: tuple[str, ...]  # one line each, without the path

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_file(path: Path, sha256: str = "", report: Report = silent) -> Verification:
    """Read all of a model file, or of a Diffusers folder, and say what is wrong with it.

    `sha256`: the hash that the file must have, as 64 hexadecimal digits; a folder has none. Memory stays constant.
    UserError only for a `sha256` that is none, or one for a folder: whatever is wrong with the file is a problem.
    """
    wanted = _checked_hash(path, sha256)
    problems: list[str] = []
    description = None
    try:
        description = describe(path)
    except UserError as error:
        problems.append(_without_path(error.message, path))
    files = _files(path, problems)
    found = ""
    for file in files:
        before = f"{file.relative_to(path)}: " if path.is_dir() else ""
        said, found = _scan(file, bool(wanted), report)
        problems += [f"{before}{problem}" for problem in said if problem not in problems]
    if wanted and found and found != wanted:
        problems.append(f"has sha256 {found}, not {wanted}: it is another file, or was damaged on the way")
    return Verification(path, description, found, tuple(problems))


def _checked_hash(path: Path, sha256: str) -> str:
    wanted = sha256.strip().lower().removeprefix("0x").removeprefix("sha256:")
    if not wanted:
        return ""
    if len(wanted) != 64 or set(wanted) - set("0123456789abcdef"):
        raise UserError(
            f"{escaped(sha256[:80])!r} is no sha256.", fix="give the 64 hexadecimal digits, or none."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder, which has no sha256.", fix="name the file that the hash is of.")
    return wanted


def _files(path: Path, problems: list[str]) -> list[Path]:
    if not path.is_dir():
        return [path] if path.is_file() else []
    files: list[Path] = []
    for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        if any(folder.glob("*.safetensors*")):
            try:
                files += weight_files(folder)
            except UserError as error:
                if (said := _without_path(error.message, path)) not in problems:
                    problems.append(said)
    return files


def _scan(path: Path, hashed: bool, report: Report) -> tuple[list[str], str]:
    """The problems of one file, and its sha256 if that is asked for."""
    digest = hashlib.sha256() if hashed else None
    try:
        header = read_header(path)
        if isinstance(header, TensorFile):
            problems = _scan_tensors(header, digest, report)
        else:
            problems = _scan_pickled(header, report)
            for chunk in _whole(path) if digest else ():
                digest.update(chunk)
        return problems, digest.hexdigest() if digest else ""
    except UserError as error:
        said = [_without_path(error.message, path)]
    except OSError as error:
        return [f"cannot be read: {error.strerror or error}"], ""
    if hashed:
        whole = hashlib.sha256()
        for chunk in _whole(path):
            whole.update(chunk)
        return said, whole.hexdigest()
    return said, ""


def _scan_tensors(file: TensorFile, digest: Any, report: Report) -> list[str]:
    """Tensors lie in a row behind the header, so that one way through them serves the hashes and the numbers."""
    stated = file.metadata.get(_STATED_HASH, "").lower().removeprefix("0x")
    data = hashlib.sha256() if len(stated) == 64 else None
    size = file.path.stat().st_size
    start = min((one.start for one in file.tensors.values()), default=size)
    end = max((one.end for one in file.tensors.values()), default=size)
    takers = [one for one in (digest, data) if one]
    if digest:
        for chunk in ByteRange(file.path, 0, start).chunks():
            digest.update(chunk)
    broken = []
    for name, one in file.tensors.items():
        report(ProgressEvent(f"verifying {file.path.name}", one.start, size))
        if not _finite(_told(file.chunks(name), takers), one.dtype):
            broken.append(name)
    if digest:
        for chunk in ByteRange(file.path, end, size).chunks():
            digest.update(chunk)
    report(ProgressEvent(f"verifying {file.path.name}", size, size))
    problems = _no_numbers(broken)
    if end < size:
        problems.append(f"holds {size - end:,} bytes behind its tensors that belong to none of them")
    if data and data.hexdigest() != stated:
        problems.append(f"holds other weights than those that its own {_STATED_HASH} was taken of")
    return problems


def _scan_pickled(header: PickleHeader, report: Report) -> list[str]:
    task, size = f"verifying {header.path.name}", header.path.stat().st_size
    # Every storage is read once: for its checksum, and for the numbers of a tensor that fills it.
    fills = {(one.start, one.end): one.dtype for one in header.tensors.values() if one.end > one.start}
    broken_places, problems = set(), []
    for key, place in header.storages.items():
        report(ProgressEvent(task, min(place.start, size), size))
        crc = _Crc()
        chunks = _told(ByteRange(header.path, place.start, place.end).chunks(), [crc])
        if not _finite(chunks, fills.get((place.start, place.end), "")):
            broken_places.add((place.start, place.end))
        if place.crc and crc.value != place.crc:  # 0: PyTorch was told to leave it out
            problems.append(
                f"holds data ({escaped(key[:40])}) that does not fit its checksum: it was damaged"
            )
    filled = {(place.start, place.end) for place in header.storages.values()}
    broken = []
    for name, one in header.tensors.items():
        place = (one.start, one.end)
        if place in broken_places or (place not in filled and not _finite(header.chunks(name), one.dtype)):
            broken.append(name)
    report(ProgressEvent(task, size, size))
    return [*problems, *_no_numbers(broken)]


class _Crc:
    """zlib's checksum with the face of a hash."""

    value = 0

    def update(self, chunk: bytes) -> None:
        self.value = zlib.crc32(chunk, self.value)


def _told(chunks: Iterable[bytes], takers: list[Any]) -> Iterator[bytes]:
    for chunk in chunks:
        for one in takers:
            one.update(chunk)
        yield chunk


def _finite(chunks: Iterable[bytes], dtype: str) -> bool:
    """Whether all numbers are finite; every chunk is read in any case. Types without NaN always are."""
    import numpy as np

    unsigned, exponent = _EXPONENTS.get(dtype, ("", 0))
    finite = True
    rest = b""
    for chunk in chunks:
        if not unsigned or not finite:
            continue
        chunk = rest + chunk if rest else chunk
        whole = len(chunk) - len(chunk) % BYTES_PER_VALUE[dtype]
        rest = chunk[whole:]
        values = np.frombuffer(chunk, unsigned, whole // BYTES_PER_VALUE[dtype])
        bits = values.dtype.type(exponent)
        finite = not bool(((values & bits) == bits).any())
    return finite


def _no_numbers(names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return [f"holds values that are no numbers (NaN or infinity), in {escaped(names[0][:120])}{more}"]


def _whole(path: Path) -> Iterator[bytes]:
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            yield chunk


def _without_path(message: str, path: Path) -> str:
    return message.removeprefix(str(path)).strip().removesuffix(".")
