"""What is still to be embedded, and how the pieces become one store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.core.text import escaped
from fastsd_lib.vit.sources import Item, count_of, items_of
from fastsd_lib.vit.store_parts import FOLDER, is_same, part_name, read_part, stamp
from fastsd_lib.vit.vector_store import Maker, Row, VectorStore, saved_identity, write_store

PART_ROWS = 256  # what is lost at most when the program is killed
_PART_BYTES = 128 << 20  # of pictures that come as bytes (out of a zip)
_BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Part:
    """Some pictures that are embedded together. `rows` are their stamps, taken before they were read."""

    name: str
    items: list[Item]
    rows: list[Row]


class Plan:
    """Which pictures have a vector already, in the store or in a part, and which are still to be made."""

    def __init__(
        self, out: Path, maker: Maker, dtype: str, what: Any, part_rows: int, on_progress: Report
    ) -> None:
        self.out, self.maker, self.dtype = out, maker, dtype
        self._what, self._part_rows, self._report = what, max(1, part_rows), on_progress
        self._earlier = _earlier(out, maker, dtype)
        self._rows: list[Row] = []
        self._places: list[
            tuple[int, int]
        ] = []  # of each row: (-1, row in the earlier store) or (part, row in it)
        self._parts: list[str] = []  # names
        self._told, self._total = 0, 0

    def missing(self) -> Iterator[Part]:
        """The parts that are not there yet, one after the other while the pictures are listed."""
        held: list[tuple[Item, Row]] = []
        heavy = 0
        self._total = count_of(self._what) or 0
        self.tell(0)
        for item, row in _stamped(self._what):
            before = self._earlier.row_of.get(row.key) if self._earlier else None
            if before is not None and is_same(row, self._earlier.rows[before], item.source):
                sha256 = self._earlier.rows[before].sha256
                self._rows.append(replace(row, sha256=row.sha256 or sha256))
                self._places.append((-1, before))
                self.tell(1)
                continue
            self._places.append((len(self._parts), len(held)))
            self._rows.append(row)
            held.append((item, row))
            heavy += _bytes_of(item)
            if len(held) == self._part_rows or heavy > _PART_BYTES:
                yield from self._planned(held)
                held, heavy = [], 0
        if held:
            yield from self._planned(held)

    def tell(self, count: int) -> None:
        self._told += count
        self._report(ProgressEvent("embed", self._told, max(self._total, self._told)))

    def finish(self) -> VectorStore:
        """One store of all that was made. Readers of the earlier one keep what they have open."""
        sizes = self._take_rows()
        nothing_new = all(
            part < 0 or row.error for row, (part, _) in zip(self._rows, self._places, strict=True)
        )
        if self._earlier and nothing_new and self._rows == list(self._earlier.all_rows):
            shutil.rmtree(self.out / FOLDER, ignore_errors=True)  # left by a run that was killed
            return self._earlier
        dimension = max([size[1] for size in sizes], default=0) or (
            self._earlier.dimension if self._earlier else 0
        )
        store = write_store(self.out, self.maker, self._rows, self._blocks(dimension), dimension, self.dtype)
        shutil.rmtree(self.out / FOLDER, ignore_errors=True)
        return store

    def _planned(self, held: list[tuple[Item, Row]]) -> Iterator[Part]:
        items, rows = [item for item, _ in held], [row for _, row in held]
        name = part_name(self.maker, self.dtype, rows)
        self._parts.append(name)
        if read_part(self.out, name) is None:
            yield Part(name, items, rows)
        else:
            self.tell(len(rows))

    def _take_rows(self) -> list[tuple[int, int]]:
        """The rows as they came out, hashes and errors in them; the shapes of the parts' vectors."""
        sizes, outcomes = [], []
        for name in self._parts:
            done = read_part(self.out, name)
            if done is None:
                raise UserError(
                    f"A part of {self.out} is gone: another program works in this folder.",
                    fix="run this again.",
                )
            sizes.append(done.vectors.shape)
            outcomes.append(done.rows)
        self._rows = [
            row if part < 0 else outcomes[part][place]
            for row, (part, place) in zip(self._rows, self._places, strict=True)
        ]
        return sizes

    def _blocks(self, dimension: int) -> Iterator[np.ndarray]:
        """The vectors in the order of the rows, some thousand at a time; one part is open at a time."""
        opened, vectors, begun = -1, np.zeros((0, dimension)), 0
        block = np.empty((_BLOCK_ROWS, dimension), self.dtype)
        filled = 0
        for row, (part, place) in zip(self._rows, self._places, strict=True):
            if row.error:
                continue
            if part >= 0 and part != opened:
                opened, begun, done = part, 0, read_part(self.out, self._parts[part])
                vectors = done.vectors if done else vectors[:0]
            block[filled] = self._earlier.vectors[place] if part < 0 else vectors[begun]
            begun += part >= 0
            filled += 1
            if filled == len(block):
                yield block
                filled = 0
        yield block[:filled]


def _earlier(out: Path, maker: Maker, dtype: str) -> VectorStore | None:
    """The store of an earlier run, if it was made in the same way; UserError if in another."""
    said = saved_identity(out)
    if said is None:
        return None
    store = VectorStore.open(out)
    wanted, found = (
        asdict(maker) | {"dtype": dtype},
        asdict(store.maker) | {"dtype": str(store.vectors.dtype)},
    )
    if differing := [name for name in wanted if wanted[name] != found[name]]:
        told = ", ".join(f"{name} {_shown(found[name])}, now {_shown(wanted[name])}" for name in differing)
        raise UserError(
            f"{out} holds vectors that were made in another way: {told}.",
            fix="choose the same, or another folder for these vectors, or delete that one.",
        )
    return store


def _shown(value: Any) -> str:
    return " ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, dict) else str(value)


def _stamped(what: Any) -> Iterator[tuple[Item, Row]]:
    """Each picture with its stamp. In a folder names begin at that folder, so that it can be moved.

    A name that came before gets a number, because rows are found by their key.
    """
    folder = expanded(what) if isinstance(what, (str, Path)) and expanded(what).is_dir() else None
    seen: dict[str, int] = {}
    for item in items_of(what):
        key = item.key
        if folder and isinstance(item.source, Path):
            key = escaped(item.source.relative_to(folder).as_posix())
        seen[key] = seen.get(key, 0) + 1
        yield item, stamp(key if seen[key] == 1 else f"{key}#{seen[key]}", item.source)


def _bytes_of(item: Item) -> int:
    """What an item keeps in memory until its part is done."""
    return len(item.source) if isinstance(item.source, bytes) else getattr(item.source, "nbytes", 0)
