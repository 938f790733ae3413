"""Smart crop: the square of a photo that keeps its subject.

The largest square that fits is slid along the longer side to where it holds most of what matters: faces
when there are any, else what stands out (saliency) and has detail (corners, entropy), else the centre.
Nothing is cut from the stored photo: the box lies in `crops.json` and is applied when training reads it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import read_json, sha256_file, write_json
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.text import escaped
from fastsd_lib.images.load import open_photo

BY_HAND = "by hand"
SCHEMA = 1
_MAP_PX = 80  # short side on which importance is judged: a subject is more than a pixel of it
_FACE_PX = 320  # long side on which faces are looked for; they are at least 24 px there


@dataclass(frozen=True)
class CropBox:
    """A square in source pixels, always inside its photo; right and bottom are exclusive."""

    left: int
    top: int
    right: int
    bottom: int
    reason: str  # "face", "saliency", "detail", "centre" or "by hand"

    @property
    def side_px(self) -> int:
        return self.right - self.left

    @property
    def edges(self) -> tuple[int, int, int, int]:
        return (self.left, self.top, self.right, self.bottom)


@dataclass(frozen=True)
class Face:
    """A square around a face, in source pixels."""

    left: int
    top: int
    right: int
    bottom: int


def find_crop(image: Image.Image, ways: Iterable[str] = ("face", "saliency", "detail")) -> CropBox:
    """The largest square of an RGB `image` that keeps its subject; the same picture yields the same box.

    `ways` are tried in turn; with none of them, or when none finds anything, it is the centre. A chosen face
    is inside whole: the biggest one first, then as many others as fit.
    """
    side = min(image.size)
    if image.width == image.height:
        return CropBox(0, 0, side, side, "centre")
    for way in ways:
        try:
            start = _WAYS[way](image)
        except KeyError:
            raise UserError(f"{way!r} is no way to crop.", fix=f"choose among {', '.join(_WAYS)}.") from None
        if start is not None:
            return _box(image.size, start, way)
    return _box(image.size, (max(image.size) - side) // 2, "centre")


def crop_to(image: Image.Image, box: CropBox, size_px: int) -> Image.Image:
    """The part of `image` inside `box` as a square of exactly `size_px`; see `enlargement` for blow-ups.

    Raises UserError when the box is not inside the picture.
    """
    if not (0 <= box.left < box.right <= image.width and 0 <= box.top < box.bottom <= image.height):
        raise UserError(
            f"The crop {box.edges} is not inside the picture of {image.width}x{image.height} pixels.",
            fix="crop this photo again.",
        )
    # No reducing_gap here: it would trade exactness for a speed that one training crop does not need.
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS, box=box.edges)


def enlargement(box: CropBox, size_px: int) -> float:
    """How much `crop_to` blows the box up: 1.5 means half as large again, at most 1 is sharp."""
    return size_px / box.side_px


def crop_by_hand(size: tuple[int, int], left: int, top: int, side_px: int) -> CropBox:
    """A box as the user dragged it, brought inside a picture of `size` (width, height)."""
    side_px = max(1, min(side_px, *size))
    left = max(0, min(left, size[0] - side_px))
    top = max(0, min(top, size[1] - side_px))
    return CropBox(left, top, left + side_px, top + side_px, BY_HAND)


# crops.json


def load_crops(file: Path, photos: Iterable[Path]) -> dict[str, CropBox]:
    """Photo name -> box, for those `photos` whose content is still what was cropped."""
    stored = _read(file)
    return {
        photo.name: _stored_box(file, photo.name, stored[photo.name])
        for photo in photos
        if photo.name in stored and stored[photo.name].get("fingerprint") == _fingerprint(photo)
    }


def save_crops(file: Path, crops: Mapping[Path, CropBox], overrule: bool = False) -> None:
    """Add boxes by photo. A box set by hand gives way only to another one, while its photo is the same.

    `overrule`: the user asked for these, so that a box found anew takes the place of one set by hand.
    """
    stored = _read(file)
    for photo, box in crops.items():
        fingerprint = _fingerprint(photo)
        before = stored.get(photo.name, {})
        by_hand = before.get("reason") == BY_HAND and before.get("fingerprint") == fingerprint
        if not by_hand or box.reason == BY_HAND or overrule:
            stored[photo.name] = {"fingerprint": fingerprint, "box": list(box.edges), "reason": box.reason}
    write_json(file, {"schema": SCHEMA, "photos": dict(sorted(stored.items()))})


def crop_photos(
    file: Path, photos: Iterable[Path], report: Report = silent, again: bool = False
) -> dict[str, CropBox]:
    """Photo name -> box for all `photos`: known ones come from `file`, the others are found and stored there.

    With `again`, all but those set by hand are found anew.
    """
    photos = list(photos)
    known = load_crops(file, photos)
    kept = {name: box for name, box in known.items() if not again or box.reason == BY_HAND}
    fresh: dict[Path, CropBox] = {}
    for done, photo in enumerate(photos):
        report(ProgressEvent("crop", done, len(photos), {"photo": escaped(photo.name)}))
        if photo.name not in kept:
            fresh[photo] = find_crop(open_photo(photo))
            if len(fresh) % 20 == 0:  # an interrupted run goes on from here
                save_crops(file, fresh)
    if fresh:
        save_crops(file, fresh)
    report(ProgressEvent("crop", len(photos), len(photos)))
    found = kept | {photo.name: box for photo, box in fresh.items()}
    return {photo.name: found[photo.name] for photo in photos}


def _read(file: Path) -> dict[str, dict]:
    if not file.exists():
        return {}
    stored = read_json(file)
    photos = stored.get("photos") if isinstance(stored, dict) else None
    if not isinstance(photos, dict) or not all(isinstance(entry, dict) for entry in photos.values()):
        raise UserError(f"{file} is not a crops file.", fix="delete it and crop again.")
    if stored.get("schema") != SCHEMA:
        raise UserError(
            f"{file} was written by another version of fastsd.",
            fix="update fastsd, or delete it and crop again.",
        )
    return photos


def _stored_box(file: Path, name: str, entry: dict) -> CropBox:
    edges = entry.get("box")
    whole = isinstance(edges, list) and len(edges) == 4 and all(type(edge) is int for edge in edges)
    if not whole or not (
        0 <= edges[0] < edges[2] and edges[2] - edges[0] == edges[3] - edges[1] and edges[1] >= 0
    ):
        raise UserError(
            f"{file} holds no square for {escaped(name)}: {edges}.",
            fix='write "box": [left, top, right, bottom] in pixels, or delete the entry and crop again.',
        )
    return CropBox(*edges, reason=str(entry.get("reason", "centre")))


def _fingerprint(photo: Path) -> str:
    return sha256_file(photo)[:16]


# Each way answers where the square starts along the longer side, or None when it sees nothing.


def _start_by_face(image: Image.Image) -> int | None:
    """The biggest face goes to the middle of the square, a little above it in a tall photo."""
    faces = find_faces(image)
    if not faces:
        return None
    side, length = min(image.size), max(image.size)
    tall = image.height > image.width
    spans = [(face.top, face.bottom) if tall else (face.left, face.right) for face in faces]
    middle = sum(spans[0]) / 2
    low, high = 0, length - side
    # Each face narrows where the square may start, as long as something is left.
    for first, last in spans:
        if max(low, last - side) <= min(high, first):
            low, high = max(low, last - side), min(high, first)
    return int(min(max(round(middle - side * (0.42 if tall else 0.5)), low), high))


def find_faces(image: Image.Image) -> list[Face]:
    """Upright frontal faces, the biggest first; empty where scikit-image is not installed.

    Multi-block LBP cascade (Liao et al., 2007), trained by OpenCV and shipped with scikit-image.
    """
    if importlib.util.find_spec("skimage") is None:
        return []
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    small = _thumbnail(image, _FACE_PX)
    scale = image.width / small.width
    found = Cascade(lbp_frontal_face_cascade_filename()).detect_multi_scale(
        img=np.asarray(small.convert("RGB")),
        scale_factor=1.15,
        step_ratio=1,
        min_size=(24, 24),
        max_size=(min(small.size), min(small.size)),
        min_neighbor_number=6,  # lone hits are leaves and folds of cloth
    )
    faces = [
        Face(
            left=max(0, int(hit["c"] * scale)),
            top=max(0, int(hit["r"] * scale)),
            right=min(image.width, int(np.ceil((hit["c"] + hit["width"]) * scale))),
            bottom=min(image.height, int(np.ceil((hit["r"] + hit["height"]) * scale))),
        )
        for hit in found
    ]
    return _distinct(sorted(faces, key=lambda face: (face.left - face.right, face.left, face.top)))


def _distinct(faces: list[Face]) -> list[Face]:
    """Without second hits on one face, and without specks beside a large face, which are seldom faces."""
    kept: list[Face] = []
    for face in faces:
        middle_x, middle_y = (face.left + face.right) / 2, (face.top + face.bottom) / 2
        twice = any(one.left <= middle_x <= one.right and one.top <= middle_y <= one.bottom for one in kept)
        speck = kept and (face.right - face.left) < 0.5 * (kept[0].right - kept[0].left)
        if not (twice or speck):
            kept.append(face)
    return kept


def _start_by_saliency(image: Image.Image) -> int | None:
    """What stands out, with half a voice for detail; None for a picture without anything."""
    small = _thumbnail(image, round(_MAP_PX * max(image.size) / min(image.size)))
    salient = saliency_map(small)
    if salient is None:
        return None
    detail = detail_map(small)
    return _best_start(image.size, salient if detail is None else salient + 0.5 * detail)


def _start_by_detail(image: Image.Image) -> int | None:
    detail = detail_map(_thumbnail(image, round(_MAP_PX * max(image.size) / min(image.size))))
    return None if detail is None else _best_start(image.size, detail)


_WAYS: dict[str, Callable[[Image.Image], int | None]] = {
    "face": _start_by_face,
    "saliency": _start_by_saliency,
    "detail": _start_by_detail,
}


def _best_start(size: tuple[int, int], importance: np.ndarray) -> int:
    """Where along the longer side the square holds most importance, the middle of it counting most.

    The taper is what centres a small subject: any window around it would hold all of it.
    """
    length, side = max(size), min(size)
    profile = importance.sum(axis=0 if size[0] > size[1] else 1)  # along the longer side
    step = length / len(profile)
    window = max(1, min(len(profile), round(side / step)))
    at = (np.arange(window) + 0.5) / window * 2 - 1  # (-1, 1) across the square
    votes = np.correlate(profile, 1 - 0.6 * at**2, mode="valid")
    # Among equals the one nearest to the centre.
    best = np.flatnonzero(votes >= votes.max() * (1 - 1e-9))
    last = len(votes) - 1
    start = best[np.argmin(np.abs(best - last / 2))]
    return round(int(start) * (length - side) / max(last, 1))


def saliency_map(image: Image.Image) -> np.ndarray | None:
    """(H, W) >= 0: colours unlike the rest, and spots that break the pattern; None for a flat picture.

    Frequency-tuned saliency (Achanta et al., 2009) joined by the spectral residual (Hou and Zhang, 2007).
    """
    opponent = _opponent_colours(image)
    blurred = _opponent_colours(image.filter(ImageFilter.GaussianBlur(max(image.size) / 64)))
    border = np.concatenate([blurred[0], blurred[-1], blurred[:, 0], blurred[:, -1]])
    # The subject seldom fills the border: its median is a better background than the mean of all.
    tuned = np.linalg.norm(blurred - np.median(border, axis=0), axis=2) + np.linalg.norm(
        blurred - opponent.mean(axis=(0, 1)), axis=2
    )
    if tuned.max() < 0.02:
        return None
    residual = sum(_spectral_residual(opponent[..., channel]) for channel in range(3))
    return _normalised(tuned**2) + _normalised(residual)


def detail_map(image: Image.Image) -> np.ndarray | None:
    """(H, W) >= 0: corners (Shi and Tomasi, 1994) and local entropy; None for a picture without edges."""
    grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
    if min(grey.shape) < 2:
        return None
    down, across = np.gradient(grey)
    if np.hypot(down, across).max() < 0.02:
        return None
    xx, yy, xy = (_box_blur(product, 2) for product in (across * across, down * down, across * down))
    corners = np.maximum((xx + yy) / 2 - np.sqrt(((xx - yy) / 2) ** 2 + xy**2), 0)
    levels = np.minimum((grey * 8).astype(int), 7)
    shares = np.stack([_box_blur((levels == level).astype(np.float64), 4) for level in range(8)])
    entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=0)
    return _normalised(np.sqrt(corners)) + 0.5 * _normalised(entropy**2)


def _opponent_colours(image: Image.Image) -> np.ndarray:
    """(H, W, 3): lightness, red-green, yellow-blue, in [-1, 1]; near enough to Lab for contrasts."""
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), dtype=np.float64) / 255, 2, 0)
    return np.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], axis=2)


def _spectral_residual(channel: np.ndarray) -> np.ndarray:
    """(H, W) >= 0: what is left of a picture when its smooth log spectrum is taken away."""
    if np.ptp(channel) < 0.02:
        return np.zeros_like(channel)
    spectrum = np.fft.fft2(channel)
    log_amplitude = np.log(np.abs(spectrum) + 1e-6)
    residual = log_amplitude - _box_blur(log_amplitude, 1, wrap=True)
    spots = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    return _box_blur(spots, 3)


def _box_blur(values: np.ndarray, radius: int, wrap: bool = False) -> np.ndarray:
    """The mean of each (2r + 1)-square; edges repeat, or wrap around for a spectrum."""
    size = 2 * radius + 1
    for axis in (0, 1):
        widths = [(radius + 1, radius) if axis == side else (0, 0) for side in (0, 1)]
        total = np.cumsum(np.pad(values, widths, mode="wrap" if wrap else "edge"), axis=axis)
        upper = np.take(total, range(size, total.shape[axis]), axis=axis)
        values = (upper - np.take(total, range(total.shape[axis] - size), axis=axis)) / size
    return values


def _normalised(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return values / total if total > 0 else values


def _thumbnail(image: Image.Image, long_side_px: int) -> Image.Image:
    scale = min(1.0, long_side_px / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BOX, reducing_gap=2.0)


def _box(size: tuple[int, int], start: int, reason: str) -> CropBox:
    side = min(size)
    left, top = (start, 0) if size[0] > size[1] else (0, start)
    return CropBox(left, top, left + side, top + side, reason)
