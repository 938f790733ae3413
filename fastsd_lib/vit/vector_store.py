"""Vectors of pictures on disk: one row of numbers for each picture, and beside them what they belong to.

store.json              what made them, which files; sealed (sealed_files.py)
vectors-<state>.npy     (N, D) float32 or float16, mapped into memory when it is read
rows-<state>.jsonl      a line for each picture: key, where it lies, its stamp, or why it has no vector
parts/                  while `embed` runs: what is done so far (store_parts.py)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import atomic_path, fingerprint, plain_disk_errors, read_json
from fastsd_lib.vit.config import Features
from fastsd_lib.vit.sealed_files import (
    NpyWriter,
    facts_of,
    open_array,
    remove_others,
    seal,
    sealed_path,
    unseal,
)

MANIFEST = "store.json"
MADE_BY = "fastsd vectors"
WHAT = "store of vectors"
DTYPES = ("float32", "float16")
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Maker:
    """What made the vectors: only vectors of one maker can be compared."""

    model: str  # its name
    weights: str  # 16 hex digits over its files: tells a model that was trained further from what it was
    features: Features = field(default_factory=Features)
    fit: str = "model"
    runner: str = ""  # "openvino bf16"

    @classmethod
    def of(cls, said: Any) -> Maker:
        return cls(**{**said, "features": Features(**said["features"])})


@dataclass(frozen=True, slots=True)
class Row:
    """One picture that was to be embedded."""

    key: str
    source: str = ""  # the file, when it has one and `key` is not its path
    size: int = -1  # bytes and nanoseconds of the file when it was read; -1 = no file
    mtime_ns: int = -1
    sha256: str = ""  # of its bytes; "" = not known
    error: str = ""  # why there is no vector

    def told(self) -> list[Any]:
        """As a line of the file: Row(*told) is the row again."""
        return [self.key, self.source, self.size, self.mtime_ns, self.sha256, self.error]


class VectorStore:
    """Vectors and what they belong to; open it with `VectorStore.open`.

    vectors: (N, D) memory map. keys: N names, in the order of the rows. errors: name -> why it has no vector.
    """

    def __init__(
        self, path: Path, maker: Maker, vectors: np.ndarray, rows: Sequence[Row], state: str
    ) -> None:
        self.path, self.maker, self.vectors, self.all_rows, self.state = path, maker, vectors, rows, state
        self.rows = [row for row in rows if not row.error]
        self.keys = [row.key for row in self.rows]
        self.sources = [row.source for row in self.rows]
        self.errors = {row.key: row.error for row in rows if row.error}

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> VectorStore:
        """A store that `embed` or `write_store` made. UserError unless each of its files is as it was written.

        `verify` False looks at sizes only: a second less for each two gigabytes.
        """
        path = Path(path)
        said = unseal(
            path, MANIFEST, MADE_BY, WHAT, verify=verify, made_with="python3 -m fastsd_lib vit embed PICTURES"
        )
        try:
            vectors = open_array(sealed_path(path, said, said["vectors"]))
            rows = list(read_rows(sealed_path(path, said, said["rows"])))
            store = cls(path, Maker.of(said["maker"]), vectors, rows, said["state"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is not a {WHAT} that this fastsd can read: {error}.", fix="embed the pictures again."
            ) from None
        if vectors.ndim != 2 or len(store.rows) != len(vectors):
            raise UserError(
                f"{path} has {len(store.rows)} keys for {len(vectors)} vectors.",
                fix="embed the pictures again.",
            )
        return store

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]

    @property
    def vectors_file(self) -> Path:
        return self.path / f"vectors-{self.state}.npy"

    @cached_property
    def row_of(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    def place(self, row: int) -> Path | None:
        """The file that a vector was made of, if it is one that is still there."""
        path = Path(self.rows[row].source or self.rows[row].key)
        return path if path.is_file() else None

    def need_vectors(self, purpose: str, least: int = 1) -> None:
        """UserError unless there are `least` vectors, for `purpose` ("search")."""
        if len(self) >= least:
            return
        failed = f" ({len(self.errors)} pictures could not be read)" if self.errors else ""
        raise UserError(
            f"{self.path} holds {len(self)} vectors{failed}: too few to {purpose}.",
            fix=f"embed at least {least} pictures.",
        )


def write_store(
    path: Path,
    maker: Maker,
    rows: Sequence[Row],
    blocks: Iterable[np.ndarray],
    dimension: int,
    dtype: str = "float32",
) -> VectorStore:
    """A store of these rows; `blocks` bring the vectors of those without an error, in order, some at a time.

    What stood in `path` before is replaced in one step at the end. UserError for numbers that are none.
    """
    check_dtype(dtype)
    count = sum(not row.error for row in rows)
    path = Path(path)
    with plain_disk_errors("write the vectors"):
        path.mkdir(parents=True, exist_ok=True)
        state = fingerprint([asdict(maker), dtype, dimension, digest_of(rows)])
        names = {"vectors": f"vectors-{state}.npy", "rows": f"rows-{state}.jsonl"}
        files = {}
        with atomic_path(path / names["rows"]) as scratch, atomic_path(path / names["vectors"]) as numbers:
            write_rows(scratch, rows)
            files[names["rows"]] = facts_of(scratch)
            with NpyWriter(numbers, (count, dimension), dtype) as writer:
                for block in blocks:
                    writer.write(checked(block, dtype))
                files[names["vectors"]] = writer.close()
        facts = {"maker": asdict(maker), "state": state, "dimension": dimension, "dtype": dtype, **names}
        seal(path, MANIFEST, MADE_BY, facts, files)
        remove_others(path, ("vectors-", "rows-"), files)
    return VectorStore(path, maker, open_array(path / names["vectors"]), rows, state)


def write_vectors(
    path: Path, keys: Sequence[str], vectors: np.ndarray, model: str = "made elsewhere"
) -> VectorStore:
    """A store of vectors (N, D) that something else made; keys are names or paths of files."""
    if vectors.ndim != 2 or len(keys) != len(vectors):
        raise UserError(
            f"{len(keys)} keys do not fit vectors of shape {vectors.shape}.",
            fix="give one key for each row of (N, D).",
        )
    check_keys(keys)
    dtype = "float16" if vectors.dtype == np.float16 else "float32"
    maker = Maker(model, fingerprint([model, vectors.shape[1]]))
    blocks = (vectors[begin : begin + _BLOCK_ROWS] for begin in range(0, len(vectors), _BLOCK_ROWS))
    return write_store(path, maker, [Row(str(key)) for key in keys], blocks, vectors.shape[1], dtype)


def saved_identity(path: Path) -> dict[str, Any] | None:
    """What store.json says of an existing store, without looking at its files; None where none is."""
    return read_json(path / MANIFEST) if (path / MANIFEST).is_file() else None


def check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"Vectors cannot be kept as {dtype}.", fix=f"choose {' or '.join(DTYPES)}.")


def check_keys(keys: Sequence[str]) -> None:
    """UserError for a key that stands twice: neighbours are told by their key."""
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise UserError(f"The key {key!r} stands twice.", fix="give each vector a key of its own.")
        seen.add(key)


def checked(vectors: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """The same numbers as `dtype`; UserError for NaN, infinities and what does not fit."""
    with np.errstate(over="ignore"):
        cast = np.asarray(vectors).astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        row = int(np.flatnonzero(~np.isfinite(cast).all(axis=-1))[0]) if cast.ndim > 1 else 0
        if np.isfinite(np.asarray(vectors)).all():
            raise UserError(
                f"Vector {row} has numbers too large for {dtype}.", fix="keep the vectors as float32."
            )
        raise UserError(
            f"Vector {row} holds numbers that are none (NaN or infinite).", fix="look at what made it."
        )
    return cast


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as handle:
        handle.writelines(map(_line, rows))


def digest_of(rows: Iterable[Row]) -> str:
    """SHA-256 over all that is known of these rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_line(row).encode())
    return digest.hexdigest()


def _line(row: Row) -> str:
    """In ASCII: the name of a file need not be Unicode."""
    return json.dumps(row.told(), separators=(",", ":")) + "\n"


def read_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            yield Row(*json.loads(line))
