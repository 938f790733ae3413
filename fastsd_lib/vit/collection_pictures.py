"""What a collection looks like: clusters, a map of all pictures, duplicates, outliers, a ROC curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastsd_lib.core.errors import UserError
from fastsd_lib.images.grid import FRAME, INK, PAPER, SOFT_INK
from fastsd_lib.vit.clusters import Clusters, picture_map
from fastsd_lib.vit.duplicates import Group
from fastsd_lib.vit.neighbours_picture import sheet, short, thumbnail
from fastsd_lib.vit.outliers import Outlier, Roc
from fastsd_lib.vit.vector_store import VectorStore

#: P. Tol's colour-blind safe "muted" set; more clusters than these begin again with another shape.
_COLOURS = (
    (51, 34, 136), (136, 204, 238), (68, 170, 153), (17, 119, 51), (153, 153, 51),
    (221, 204, 119), (204, 102, 119), (136, 34, 85), (170, 68, 153),
)  # fmt: skip
_NONE = (187, 187, 187)
_SHARP = 3  # drawn so many times larger, then made smaller: smooth edges


def clusters_picture(
    store: VectorStore,
    found: Clusters,
    *,
    columns: int = 8,
    most: int = 20,
    cell_px: int = 96,
    title: str = "",
) -> Image.Image:
    """A row for each of the `most` largest clusters: the pictures nearest to its centre. RGB page."""
    shown = found.representatives[:most]
    pictures, labels = [], []
    for rows in shown:
        for column in range(columns):
            row = rows[column] if column < len(rows) else None
            pictures.append(None if row is None else thumbnail(store.place(row) or store.keys[row], cell_px))
            labels.append("" if row is None else short(store.keys[row]))
    sizes = found.sizes
    names = [f"cluster {number}\n{sizes[number]:,} pictures" for number in range(len(shown))]
    notes = [f"{found.way}, {len(store):,} pictures"]
    if np.isfinite(found.silhouette):
        notes.append(f"silhouette {found.silhouette:.2f}")
    if lonely := int((found.labels < 0).sum()):
        notes.append(f"{lonely:,} in no cluster")
    if len(found) > len(shown):
        notes.append(f"{len(found) - len(shown)} smaller clusters are not shown")
    if not shown:
        raise UserError(
            "No clusters were found to show.", fix="ask for k-means, or fewer pictures in a cluster."
        )
    title = title or ("1 cluster" if len(found) == 1 else f"{len(found)} clusters")
    return sheet(pictures, labels, columns, cell_px, title, "; ".join(notes), names)


def map_picture(
    store: VectorStore,
    labels: np.ndarray | None = None,
    names: Sequence[str] = (),
    *,
    side_px: int = 900,
    title: str = "",
) -> Image.Image:
    """All pictures as dots on the two main axes of their vectors, coloured by `labels` (N,); `names` of the colours."""
    places, share = picture_map(store)
    labels = np.zeros(len(store), int) if labels is None else np.asarray(labels)
    low, high = places.min(axis=0), places.max(axis=0)
    inner, left, top = side_px - 60, 30, 100
    scale = (inner - 20) / max(float((high - low).max()), 1e-12)
    offset = (inner - (high - low) * scale) / 2
    dots = Image.new("RGB", (inner * _SHARP, inner * _SHARP), (255, 255, 255))
    draw = ImageDraw.Draw(dots)
    radius = _SHARP * (2 if len(store) > 20_000 else 3 if len(store) > 2_000 else 4)
    for row in np.random.default_rng(0).permutation(len(store)):  # no colour lies on top of all others
        x, y = ((places[row] - low) * scale + offset) * _SHARP
        _dot(draw, x, inner * _SHARP - y, radius, int(labels[row]))
    numbers = [int(number) for number in np.unique(labels)] if labels.any() or len(names) else []
    legend_px = 0 if len(numbers) < 2 else 190
    page = Image.new("RGB", (side_px + legend_px, top + inner + 30), PAPER)
    page.paste(dots.resize((inner, inner), Image.Resampling.LANCZOS), (left, top))
    draw = ImageDraw.Draw(page)
    draw.rectangle((left - 1, top - 1, left + inner, top + inner), outline=FRAME)
    draw.text((left, 24), title or f"{len(store):,} pictures", INK, ImageFont.load_default(28))
    note = f"two main axes of their vectors: {share:.0%} of the variance"
    draw.text((left, 64), note, SOFT_INK, ImageFont.load_default(18))
    if legend_px:
        _legend(draw, page.height, side_px, top, numbers, labels, names)
    return page


def duplicates_picture(
    store: VectorStore,
    groups: Sequence[Group],
    *,
    columns: int = 6,
    most: int = 20,
    cell_px: int = 112,
    title: str = "",
) -> Image.Image:
    """A row for each of the first `most` groups. UserError when there are none."""
    if not groups:
        raise UserError("There are no duplicates to show.", fix="nothing to do: no picture stands twice.")
    pictures, labels, names = [], [], []
    columns = min(columns, max(len(group.rows) for group in groups[:most]))
    for number, group in enumerate(groups[:most]):
        for column in range(columns):
            there = column < len(group.rows)
            pictures.append(thumbnail(group.places[column] or group.keys[column], cell_px) if there else None)
            labels.append(short(group.keys[column]) if there else "")
        more = f", {len(group.rows) - columns} more" if len(group.rows) > columns else ""
        names.append(f"{number + 1}: {len(group.rows)} pictures{more}\n{' + '.join(group.ways)}")
    count = sum(len(group.rows) for group in groups)
    note = f"{count} pictures in {len(groups)} groups, of {len(store):,}"
    return sheet(pictures, labels, columns, cell_px, title or "Near duplicates", note, names)


def outliers_picture(
    found: Sequence[Outlier], *, columns: int = 6, cell_px: int = 112, title: str = ""
) -> Image.Image:
    """The oddest first, with how many spreads each is beyond the middle."""
    if not found:
        raise UserError("There are no outliers to show.", fix="ask for one or more.")
    pictures = [thumbnail(one.place or one.key, cell_px) for one in found]
    labels = [f"{one.beyond:+.1f} {short(one.key)}" for one in found]
    note = "spreads beyond the middle of all scores"
    return sheet(pictures, labels, min(columns, len(found)), cell_px, title or "Oddest pictures", note)


def roc_picture(curves: dict[str, Roc], *, side_px: int = 560, title: str = "ROC") -> Image.Image:
    """Found odd pictures against false alarms, one line for each name."""
    left, top, inner = 70, 70, side_px - 110
    page = Image.new("RGB", (side_px * _SHARP, (side_px + 30) * _SHARP), PAPER)
    draw = ImageDraw.Draw(page)

    def at(x: float, y: float) -> tuple[float, float]:
        return (_SHARP * (left + x * inner), _SHARP * (top + (1 - y) * inner))

    font, small = ImageFont.load_default(18 * _SHARP), ImageFont.load_default(15 * _SHARP)
    draw.text((left * _SHARP, 20 * _SHARP), title, INK, ImageFont.load_default(26 * _SHARP))
    draw.rectangle((*at(0, 1), *at(1, 0)), (255, 255, 255), FRAME, _SHARP)
    for part in (0.25, 0.5, 0.75):
        draw.line([at(part, 0), at(part, 1)], FRAME, _SHARP)
        draw.line([at(0, part), at(1, part)], FRAME, _SHARP)
    draw.line([at(0, 0), at(1, 1)], SOFT_INK, _SHARP)
    for part in (0, 0.5, 1):
        x, y = at(part, 0)
        draw.text((x, y + 6 * _SHARP), f"{part:g}", SOFT_INK, small, anchor="ma")
        x, y = at(0, part)
        draw.text((x - 8 * _SHARP, y), f"{part:g}", SOFT_INK, small, anchor="rm")
    x, y = at(0.5, 0)
    draw.text((x, y + 30 * _SHARP), "false alarms among normal pictures", SOFT_INK, small, anchor="ma")
    for number, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[(number * 3) % len(_COLOURS)]
        points = [at(float(x), float(y)) for x, y in zip(curve.false_alarms, curve.found, strict=True)]
        draw.line(points, colour, 3 * _SHARP, joint="curve")
        x, y = at(0.97, 0.06 + 0.07 * number)
        draw.text((x, y), f"{name}: area {curve.area:.3f}", colour, font, anchor="rs")
    return page.resize((side_px, side_px + 30), Image.Resampling.LANCZOS)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, number: int) -> None:
    colour = _NONE if number < 0 else _COLOURS[number % len(_COLOURS)]
    box = (x - radius, y - radius, x + radius, y + radius)
    if number < 0 or (number // len(_COLOURS)) % 3 == 0:
        draw.ellipse(box, colour)
    elif (number // len(_COLOURS)) % 3 == 1:
        draw.rectangle(box, colour)
    else:
        draw.polygon(
            [(x, y - 1.3 * radius), (x + 1.3 * radius, y + radius), (x - 1.3 * radius, y + radius)], colour
        )


def _legend(
    draw: ImageDraw.ImageDraw,
    height: int,
    left: int,
    top: int,
    numbers: list[int],
    labels: np.ndarray,
    names: Sequence[str],
) -> None:
    font = ImageFont.load_default(16)
    room = (height - top - 30) // 24
    for line, number in enumerate(numbers[:room]):
        y = top + 12 + 24 * line
        if line == room - 1 and len(numbers) > room:
            draw.text((left, y), f"and {len(numbers) - room + 1} more", SOFT_INK, font, anchor="lm")
            return
        _dot(draw, left + 6, y, 6, number)
        name = (
            names[number]
            if 0 <= number < len(names)
            else "in no cluster"
            if number < 0
            else f"cluster {number}"
        )
        draw.text((left + 20, y), f"{name[:14]}  {int((labels == number).sum()):,}", INK, font, anchor="lm")
