"""What `embed` has done so far: a part for each few hundred pictures, sealed, named after what it was made of.

The name is a hash over the maker and the stamps of the pictures, so a part is found again after whatever ended the
program, two programs that make the same part write the same bytes, and a changed picture makes it another part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, fingerprint, sha256_file
from fastsd_lib.vit.sealed_files import NpyWriter, open_array, seal, unseal
from fastsd_lib.vit.vector_store import Maker, Row, digest_of

FOLDER = "parts"
_MADE_BY = "fastsd part"


@dataclass(frozen=True)
class Done:
    """One part: vectors (n, D) of those of `rows` that have no error, in their order."""

    rows: list[Row]
    vectors: np.ndarray


def part_name(maker: Maker, dtype: str, rows: Sequence[Row]) -> str:
    return fingerprint([asdict(maker), dtype, digest_of(rows)])


def read_part(store: Path, name: str) -> Done | None:
    """A part that was finished; None where there is none that is whole."""
    folder = store / FOLDER
    try:
        said = unseal(folder, f"{name}.json", _MADE_BY, "part")
        done = Done([Row(*row) for row in said["rows"]], open_array(folder / f"{name}.npy"))
    except (UserError, KeyError, TypeError, ValueError, OSError):
        return None
    return done if len(done.vectors) == sum(not row.error for row in done.rows) else None


def write_part(store: Path, name: str, done: Done) -> None:
    """The vectors first, then the manifest that makes them count."""
    folder = store / FOLDER
    with (
        atomic_path(folder / f"{name}.npy") as scratch,
        NpyWriter(scratch, done.vectors.shape, done.vectors.dtype) as file,
    ):
        file.write(done.vectors)
        facts = file.close()
    rows = [row.told() for row in done.rows]
    seal(folder, f"{name}.json", _MADE_BY, {"rows": rows}, {f"{name}.npy": facts})


def stamp(key: str, source: Any) -> Row:
    """What tells this picture from an earlier one of the same name, found without decoding it.

    A file: its size and time. Bytes, PIL picture or array: its hash. An address: itself, it is taken to stay.
    """
    if isinstance(source, Path):
        place = str(source.absolute())  # the next program may begin elsewhere
        shown = "" if place == key else place
        try:
            found = source.stat()
        except OSError:  # reading it will say what is wrong
            return Row(key, shown)
        return Row(key, shown, found.st_size, found.st_mtime_ns)
    if isinstance(source, str):
        return Row(key, "" if source == key else source)
    try:
        return Row(key, sha256=_hash_of(source))
    except Exception:  # a PIL picture whose file is damaged: decoders raise nearly anything
        return Row(key)


def with_hash(row: Row, source: Any) -> Row:
    """The row with the hash of its file, unless the file changed since it was stamped: then it is not known."""
    if not isinstance(source, Path) or row.sha256 or row.size < 0:
        return row
    try:
        sha256 = sha256_file(source)
    except OSError:
        return row
    return replace(row, sha256=sha256) if stamp(row.key, source) == replace(row, sha256="") else row


def is_same(row: Row, earlier: Row, source: Any) -> bool:
    """Is this still the picture that `earlier` was made of? A file that was only touched is told by its hash."""
    if earlier.error:
        return False  # tried again: a disk or an address may be back
    if row.size < 0 or earlier.size < 0:
        known = bool(row.sha256) or isinstance(source, str)
        return known and (row.size, row.source, row.sha256) == (earlier.size, earlier.source, earlier.sha256)
    if (row.size, row.mtime_ns) == (earlier.size, earlier.mtime_ns):
        return True
    return (
        row.size == earlier.size and bool(earlier.sha256) and with_hash(row, source).sha256 == earlier.sha256
    )


def _hash_of(source: Any) -> str:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return hashlib.sha256(source).hexdigest()
    if isinstance(source, Image.Image):
        turned = source.getexif().get(0x0112, 1)
        head = f"{source.mode} {source.size} {turned} {source.getpalette()}".encode()
        return hashlib.sha256(head + source.tobytes()).hexdigest()
    array = np.ascontiguousarray(source)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
