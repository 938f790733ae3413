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
# Measured on the 20 photographs of sample_data.py: copies at a third of the size, or at JPEG quality 30, differ by 0 to 4
# bits and correlate by 0.987 or more; cut by 5 % on each side mostly by 8 to 18 bits; two different photographs differ
# by 20 or more (mean 32) and correlate by 0.57 at most. Small simple pictures (digits) share hashes, not correlation.
PHASH_BITS = 4
CORRELATION = 0.97
CONFIRM_BITS = 18
COSINE = 0.99  # about the mean of the collection
_NEIGHBOURS = 16  # of each picture that are looked at by embedding
_USUAL = 10  # the neighbour that shows how near pictures of this collection usually are
_MUCH_NEARER = 0.5
_ANY = PhotoLimits(min_side_px=1, max_aspect=1e9, max_pixels=400_000_000)
_HASH_PX, _SMALL_PX = 32, 16
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

    bytes: equal SHA-256. phash: at most `phash_bits` of 64 bits of the perceptual hash differ, and 16x16 pixels of both
    correlate (files that are still there). embedding: a cosine of at least `cosine` between vectors less the collection's
    mean, much nearer than usual here, and, where the files are there, at most CONFIRM_BITS of the perceptual hash: what a
    model takes for alike need not be the same picture. `index` (of this store) finds them faster in a large one. `across`
    ("train/", "test/") tells only of pairs between these two beginnings of keys: what leaks from one part into the other.
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
    looks = _looks(store, on_progress) if {"phash", "embedding"} & set(ways) else {}
    if "phash" in ways:
        pairs += _same_look(looks, phash_bits)
    if "embedding" in ways:
        pairs += (pair for pair in _same_to_the_model(store, cosine, index) if _confirmed(pair, looks))
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


@dataclass(frozen=True)
class _Look:
    code: int  # perceptual hash
    small: np.ndarray  # (256,) float16: 16x16 grey pixels less their mean, of length 1


def _looks(store: VectorStore, on_progress: Report) -> dict[int, _Look | None]:
    """Row -> how its file looks; rows without a file are not in it."""
    places = {row: place for row in range(len(store)) if (place := store.place(row))}
    found: dict[int, _Look | None] = {}
    on_progress(ProgressEvent("perceptual hashes", 0, len(places)))
    with ThreadPoolExecutor(2, thread_name_prefix="vit-phash") as readers:
        for row, look in zip(places, readers.map(_look_of, places.values()), strict=True):
            found[row] = look
            on_progress(ProgressEvent("perceptual hashes", len(found), len(places)))
    return found


def _look_of(place: Path) -> _Look | None:
    """None for a picture that cannot be read, and for one without any content: all blank pages look the same."""
    try:
        picture = read_photo(place, limits=_ANY, max_side_px=256).image.convert("L")
    except PhotoError:
        return None
    low, high = picture.getextrema()
    if high - low < 8:
        return None
    small = np.asarray(picture.resize((_SMALL_PX, _SMALL_PX), Image.Resampling.LANCZOS), np.float32).ravel()
    small = small - small.mean()
    return _Look(phash(picture), (small / max(float(np.linalg.norm(small)), 1e-6)).astype(np.float16))


def _same_look(looks: dict[int, _Look | None], most: int) -> Iterator[Pair]:
    seen = [(row, look) for row, look in looks.items() if look is not None]
    codes = np.array([look.code for _, look in seen], np.uint64)
    for begin in range(0, len(codes), _BLOCK):
        differing = np.bitwise_count(codes[begin : begin + _BLOCK, None] ^ codes[None, begin:])
        for one, other in np.argwhere(differing <= most):
            if other <= one:
                continue
            (first, left), (second, right) = seen[begin + one], seen[begin + other]
            if float(left.small.astype(np.float32) @ right.small.astype(np.float32)) >= CORRELATION:
                yield Pair(first, second, "phash", float(differing[one, other]))


def _confirmed(pair: Pair, looks: dict[int, _Look | None]) -> bool:
    if pair.first not in looks or pair.second not in looks:
        return True  # no file to look at
    one, other = looks[pair.first], looks[pair.second]
    return one is not None and other is not None and (one.code ^ other.code).bit_count() <= CONFIRM_BITS


def _same_to_the_model(store: VectorStore, cosine: float, index: Index | None) -> Iterator[Pair]:
    """Neighbours are found by the plain cosine, and judged less the mean, which all pictures of a model share.

    A classifier's last layer brings whole classes together. So a pair must also be much nearer than pictures here
    usually are: half of the middle distance to the tenth neighbour.
    """
    if len(store) < 3:
        return
    vectors = Vectors([store.vectors], "cosine")
    mean = np.asarray(store.vectors.mean(axis=0, dtype=np.float64), np.float32)
    rows, alike = _neighbours(vectors, mean, index)
    usual = np.median(alike[:, min(_USUAL, alike.shape[1] - 1)])
    least = max(
        cosine, 1 - _MUCH_NEARER**2 * (1 - usual)
    )  # the squared distance of unit vectors is 2 - 2 cos
    for first, column in zip(*np.nonzero(alike >= least), strict=True):
        second = int(rows[first, column])
        if second != first:
            yield Pair(
                min(int(first), second), max(int(first), second), "embedding", float(alike[first, column])
            )


def _neighbours(vectors: Vectors, mean: np.ndarray, index: Index | None) -> tuple[np.ndarray, np.ndarray]:
    """((N, k) rows, (N, k) cosines about the mean) of each row's neighbours, itself among them."""
    rows, alike = [], []
    for begin, block in vectors.blocks(_BLOCK):
        if index is not None:
            found = index.search(block, _NEIGHBOURS)[1]
        else:
            squares = vectors.squares[begin : begin + len(block)]
            found = nearest(vectors, vectors.prepared(block, squares), _NEIGHBOURS)[1]
        own = _unit(block - mean)
        others = [_unit(vectors.take(column) - mean) for column in found.T]
        alike.append(np.stack([np.einsum("nd,nd->n", own, other) for other in others], axis=1))
        rows.append(found)
    return np.concatenate(rows), np.concatenate(alike)


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
