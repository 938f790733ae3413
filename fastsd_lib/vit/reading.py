"""Pictures from wherever they are, read and decoded ahead of the model by threads, in order, in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.fetching import fetch
from fastsd_lib.core.text import escaped
from fastsd_lib.vit.config import Augment
from fastsd_lib.vit.sources import MAX_FILE_BYTES, Item, items_of
from fastsd_lib.vit.transform import VIEWS, Transform

MAX_AHEAD_BYTES = 256 << 20  # of what is read and not yet asked for
REDIRECTS = 3


@dataclass
class ReadItem:
    """A picture as the model's views of it, or the reason why not."""

    index: int
    item: Item
    views: np.ndarray | None  # (V, 3, height, width) float32
    error: str = ""


def read_ahead(
    what: Any,
    transform: Transform,
    *,
    augment: Augment = "none",
    readers: int = 0,
    ahead: int = 64,
    recursive: bool = True,
) -> Iterator[ReadItem]:
    """Each picture of `what` (see `items_of`) read, in order; threads work up to `ahead` pictures in advance.

    A picture that cannot be read is an item with an error, and no end of the others. At most MAX_AHEAD_BYTES of
    views wait, whatever `ahead` says. Whoever stops asking ends the threads by closing the iterator.
    """
    threads = readers or usable_processors()
    view_bytes = VIEWS.get(augment, 1) * 3 * transform.size[0] * transform.size[1] * 4
    ahead = max(1, min(ahead, MAX_AHEAD_BYTES // view_bytes))
    waiting: deque[Future[ReadItem]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="vit-reader")
    held = _Held()
    try:
        for index, item in enumerate(items_of(what, recursive=recursive)):
            held.add(item)
            waiting.append(pool.submit(_read, index, item, transform, augment))
            while len(waiting) > ahead or held.too_much(len(waiting)):
                yield held.released(waiting.popleft().result())
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_item(item: Item, transform: Transform, augment: Augment = "none") -> np.ndarray:
    """The views (V, 3, height, width) float32 of one item. UserError for one that is no picture."""
    source = item.source
    if isinstance(source, str):
        source = fetch(source, MAX_FILE_BYTES, redirects=REDIRECTS)
    if isinstance(source, (Path, bytes)):
        image = transform.open(source, name=item.key, augment=augment)
    else:
        image = source if isinstance(source, Image.Image) else picture_of(source)
    return np.stack(transform.views(image, augment))


def picture_of(array: np.ndarray) -> Image.Image:
    """An array as a picture: (H, W, 3) or (H, W) uint8, or any of (H, W), (H, W, C), (C, H, W) float in [0, 1]."""
    shape = "x".join(str(side) for side in array.shape)
    pixels = array
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if (
        pixels.ndim not in (2, 3)
        or 0 in pixels.shape
        or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4))
    ):
        raise UserError(
            f"An array of {shape} is no picture.",
            fix="give (height, width, 3) or (height, width), or (3, height, width).",
        )
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(np.min(pixels)), float(np.max(pixels))
        if not (low >= 0 and high <= 1):  # NaN is neither
            raise UserError(
                f"A picture of floating-point numbers must lie in 0 to 1; this one has {low:.4g} to {high:.4g}.",
                fix="divide it by 255, or give whole numbers (uint8).",
            )
        pixels = (pixels * 255 + 0.5).astype(np.uint8)
    elif pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype != np.uint8:
        raise UserError(
            f"An array of {pixels.dtype} is no picture.", fix="give uint8, or floating point from 0 to 1."
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def usable_processors() -> int:
    """Those that this program may use; a container's may be fewer than the machine's."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def _read(index: int, item: Item, transform: Transform, augment: Augment) -> ReadItem:
    try:
        return ReadItem(index, item, read_item(item, transform, augment))
    except UserError as error:
        return ReadItem(index, item, None, error.message)
    except Exception as error:  # one picture's trouble is not the others'
        return ReadItem(index, item, None, f"{type(error).__name__}: {escaped(str(error))[:120]}")


class _Held:
    """How many bytes of packed pictures (from zips and lists) wait to be decoded."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, item: Item) -> None:
        self._bytes += _size(item)

    def released(self, read: ReadItem) -> ReadItem:
        self._bytes -= _size(read.item)
        return read

    def too_much(self, waiting: int) -> bool:
        return waiting > 1 and self._bytes > MAX_AHEAD_BYTES


def _size(item: Item) -> int:
    return len(item.source) if isinstance(item.source, bytes) else 0
