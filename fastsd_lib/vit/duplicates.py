"""Pictures that stand twice in a collection: the same bytes, the same look, or the same to a model.

Also across the parts of a data set: a test picture that is in the training set too makes every figure a lie.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.images.load import PhotoError, PhotoLimits, read_photo
from fastsd_lib.vit.exact_search import Vectors, nearest
from fastsd_lib.vit.index import Index
from fastsd_lib.vit.vector_store import VectorStore

WAYS = ("bytes", "phash", "embedding")
# Measured on the 20 photographs of sample_data.py: copies at a third of the size and JPEG quality 30 differ by 0 to 4 bits,
# cut by 5 % on each side mostly by 8 to 18, two different photographs by 20 or more (mean 32).
PHASH_BITS = 4
CONFIRM_BITS = 18
COSINE = 0.99  # about the mean of the collection
_NEIGHBOURS = 16  # of each picture that are looked at by embedding
_ANY = PhotoLimits(min_side_px=1, max_aspect=1e9, max_pixels=400_000_000)
_HASH_PX = 32
_BLOCK = 2048


@dataclass(frozen=True)
class Pair:
    """Two rows that are nearly the same, and how that was seen."""

    first: int
    second: int
    way: str  # of WAYS
    score: float  # 1 for the same bytes; bits that differ; cosine


@dataclass(frozen=True)
class Group:
    """Pictures that hang together by pairs. `keys` in the order of the store."""

    rows: tuple[int, ...]
    keys: tuple[str, ...]
    places: tuple[Path | None, ...]
    pairs: tuple[Pair, ...]

    @property
    def ways(self) -> tuple[str, ...]:
        return tuple(way for way in WAYS if any(pair.way == way for pair in self.pairs))


def near_duplicates(
    store: VectorStore,
    ways: Sequence[str] = WAYS,
    *,
    cosine: float = COSINE,
    phash_bits: int = PHASH_BITS,
    across: tuple[str, str] | None = None,
    index: Index | None = None,
    on_progress: Report = silent,
) -> list[Group]:
    """Groups of pictures that are nearly the same, largest first.

    bytes: equal SHA-256. phash: at most `phash_bits` of 64 bits differ (perceptual hash of the files that are still
    there). embedding: a cosine of at least `cosine` between vectors less the collection's mean, and, where the files are
    there, at most CONFIRM_BITS of the perceptual hash: what a model thinks alike need not be the same picture. `index`
    (of this store) finds them faster in a large one. `across` ("train/", "test/") tells only of pairs between these two
    beginnings of keys: what leaks from one part into the other.
    """
    for way in ways:
        if way not in WAYS:
            raise UserError(
                f"There is no way to find duplicates called {way!r}.", fix=f"choose among {', '.join(WAYS)}."
            )
    if index is not None and list(index.keys) != store.keys:
        raise UserError("The index is not one of this store.", fix="build it again from the store.")
    pairs: list[Pair] = []
    if "bytes" in ways:
        pairs += _same_bytes(store)
    hashes = _hashes(store, on_progress) if {"phash", "embedding"} & set(ways) else {}
    if "phash" in ways:
        pairs += _same_look(hashes, phash_bits)
    if "embedding" in ways:
        pairs += (pair for pair in _same_to_the_model(store, cosine, index) if _confirmed(pair, hashes))
    if across:
        pairs = [pair for pair in pairs if _crosses(store, pair, across)]
    return _groups(store, pairs)


def phash(picture: Image.Image) -> int:
    """64 bits of the lowest frequencies: which are above their median (Zauner 2010, as ImageHash computes it).

    Small changes of size, compression and brightness change few bits; a crop, a turn or a mirror changes many.
    """
    grey = np.asarray(picture.convert("L").resize((_HASH_PX, _HASH_PX), Image.Resampling.LANCZOS), np.float64)
    low = (_COSINES @ grey @ _COSINES.T)[:8, :8].ravel()
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def _cosines() -> np.ndarray:
    """(8, 32): rows of the discrete cosine transform II."""
    place = (2 * np.arange(_HASH_PX) + 1) * np.pi / (2 * _HASH_PX)
    return np.cos(np.arange(8)[:, None] * place)


_COSINES = _cosines()


def _same_bytes(store: VectorStore) -> Iterator[Pair]:
    seen: dict[str, int] = {}
    for row, one in enumerate(store.rows):
        if one.sha256:
            first = seen.setdefault(one.sha256, row)
            if first != row:
                yield Pair(first, row, "bytes", 1.0)


def _hashes(store: VectorStore, on_progress: Report) -> dict[int, int | None]:
    """Row -> perceptual hash of its file; rows without a file are not in it."""
    places = {row: place for row in range(len(store)) if (place := store.place(row))}
    found: dict[int, int | None] = {}
    on_progress(ProgressEvent("perceptual hashes", 0, len(places)))
    with ThreadPoolExecutor(2, thread_name_prefix="vit-phash") as readers:
        for row, code in zip(places, readers.map(_phash_of, places.values()), strict=True):
            found[row] = code
            on_progress(ProgressEvent("perceptual hashes", len(found), len(places)))
    return found


def _same_look(hashes: dict[int, int | None], most: int) -> Iterator[Pair]:
    rows = [row for row, code in hashes.items() if code is not None]
    codes = np.array([hashes[row] for row in rows], np.uint64)
    for begin in range(0, len(codes), _BLOCK):
        differing = np.bitwise_count(codes[begin : begin + _BLOCK, None] ^ codes[None, begin:])
        for one, other in np.argwhere(differing <= most):
            if other > one:
                yield Pair(rows[begin + one], rows[begin + other], "phash", float(differing[one, other]))


def _confirmed(pair: Pair, hashes: dict[int, int | None]) -> bool:
    if pair.first not in hashes or pair.second not in hashes:
        return True  # no file to look at
    one, other = hashes[pair.first], hashes[pair.second]
    return one is not None and other is not None and (one ^ other).bit_count() <= CONFIRM_BITS


def _phash_of(place: Path) -> int | None:
    """None for a picture that cannot be read, and for one without any content: all blank pages look the same."""
    try:
        picture = read_photo(place, limits=_ANY, max_side_px=256).image
    except PhotoError:
        return None
    low, high = picture.convert("L").getextrema()
    return phash(picture) if high - low >= 8 else None


def _same_to_the_model(store: VectorStore, cosine: float, index: Index | None) -> Iterator[Pair]:
    """Neighbours are found by the plain cosine, and judged less the mean, which all pictures of a model share."""
    if len(store) < 3:
        return
    vectors = Vectors([store.vectors], "cosine")
    mean = np.asarray(store.vectors.mean(axis=0, dtype=np.float64), np.float32)
    for begin in range(0, len(store), _BLOCK):
        rows = np.arange(begin, min(begin + _BLOCK, len(store)))
        block = vectors.take(rows)
        found = (
            index.search(block, _NEIGHBOURS)[1]
            if index
            else nearest(vectors, vectors.prepared(block), _NEIGHBOURS)[1]
        )
        one = _unit(block - mean)
        for column in range(found.shape[1]):
            other = _unit(vectors.take(found[:, column]) - mean)
            alike = np.einsum("nd,nd->n", one, other)
            for place in np.flatnonzero((alike >= cosine) & (found[:, column] != rows)):
                first, second = sorted((int(rows[place]), int(found[place, column])))
                yield Pair(first, second, "embedding", float(alike[place]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _crosses(store: VectorStore, pair: Pair, across: tuple[str, str]) -> bool:
    one, other = store.keys[pair.first], store.keys[pair.second]
    left, right = across
    return (one.startswith(left) and other.startswith(right)) or (
        one.startswith(right) and other.startswith(left)
    )


def _groups(store: VectorStore, pairs: Iterable[Pair]) -> list[Group]:
    """What hangs together, by union and find."""
    unique = {(pair.first, pair.second, pair.way): pair for pair in pairs}
    leader: dict[int, int] = {}

    def find(row: int) -> int:
        while leader.setdefault(row, row) != row:
            leader[row] = leader[leader[row]]
            row = leader[row]
        return row

    for pair in unique.values():
        one, other = sorted((find(pair.first), find(pair.second)))
        leader[other] = one
    members: dict[int, list[int]] = defaultdict(list)
    linked: dict[int, list[Pair]] = defaultdict(list)
    for row in sorted(leader):
        members[find(row)].append(row)
    for pair in unique.values():
        linked[find(pair.first)].append(pair)
    groups = [
        Group(
            tuple(rows),
            tuple(store.keys[row] for row in rows),
            tuple(store.place(row) for row in rows),
            tuple(linked[first]),
        )
        for first, rows in members.items()
    ]
    return sorted(groups, key=lambda group: (-len(group.rows), group.rows))
