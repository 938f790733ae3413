"""Small pages for maps: a picture with heat on it, its title, and a legend that says what the colours mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastsd_lib.core.text import one_line
from fastsd_lib.images.grid import FRAME, INK, PAPER, SOFT_INK, contact_sheet
from fastsd_lib.vit.colours import unit, viridis

if TYPE_CHECKING:
    from fastsd_lib.vit.occlusion import Faithfulness

_MARGIN, _TITLE, _NOTE = 20, 22, 15
_STRENGTH = 0.62  # of the heat over the picture
#: Tol's bright set, told apart by the colour-blind; one for each curve.
_CURVES = ((68, 119, 170), (238, 102, 119), (34, 136, 51), (170, 51, 119))


def overlay(
    picture: Image.Image, heat: np.ndarray, limits: tuple[float | None, float | None] = (None, None)
) -> Image.Image:
    """`picture` in grey under the colours of `heat` (h, w), which is stretched over it from edge to edge."""
    grey = np.asarray(picture.convert("L").convert("RGB"), float)
    coloured = viridis(stretched(heat, picture.size, limits)).astype(float)
    return Image.fromarray(np.round(grey * (1 - _STRENGTH) + coloured * _STRENGTH).astype(np.uint8))


def stretched(
    heat: np.ndarray, size: tuple[int, int], limits: tuple[float | None, float | None] = (None, None)
) -> np.ndarray:
    """`heat` in [0, 1] at `size` (width, height); `limits` are the values of 0 and 1, None = the least, the most."""
    low = float(heat.min()) if limits[0] is None else limits[0]
    high = float(heat.max()) if limits[1] is None else limits[1]
    scaled = np.clip((heat - low) / (high - low), 0, 1) if high > low else np.zeros(heat.shape)
    return np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(
        0, 1
    )


def with_grid(picture: Image.Image, grid: tuple[int, int]) -> Image.Image:
    """`picture` cut into (down, across) patches with white lines between; numbered where there is room."""
    down, across = grid
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    for row in range(1, down):
        y = round(row * drawn.height / down)
        draw.line((0, y, drawn.width, y), (255, 255, 255), 2)
    for column in range(1, across):
        x = round(column * drawn.width / across)
        draw.line((x, 0, x, drawn.height), (255, 255, 255), 2)
    if drawn.height / down >= 26 and drawn.width / across >= 26:
        font = _font(11)
        for number in range(down * across):
            row, column = divmod(number, across)
            place = (column * drawn.width / across + 4, row * drawn.height / down + 3)
            draw.text(place, str(number + 1), (255, 255, 255), font, stroke_width=2, stroke_fill=(20, 20, 24))
    return drawn


def card(
    picture: Image.Image, title: str, note: str = "", legend: tuple[str, str] | None = None
) -> Image.Image:
    """`picture` on a page with `title` above and a colour bar between two words below."""
    width = max(picture.width, 360)
    title_lines, note_lines = _wrapped(title, _font(_TITLE), width), _wrapped(note, _font(_NOTE), width)
    head = 28 * len(title_lines) + 20 * len(note_lines) + 10
    foot = 44 if legend else 0
    page = Image.new("RGB", (width + 2 * _MARGIN, head + picture.height + foot + 2 * _MARGIN), PAPER)
    draw = ImageDraw.Draw(page)
    y = _MARGIN - 4
    for line in title_lines:
        draw.text((_MARGIN, y), line, INK, _font(_TITLE))
        y += 28
    for line in note_lines:
        draw.text((_MARGIN, y), line, SOFT_INK, _font(_NOTE))
        y += 20
    x = _MARGIN + (width - picture.width) // 2
    page.paste(picture, (x, head + _MARGIN))
    draw.rectangle(
        (x - 1, head + _MARGIN - 1, x + picture.width, head + _MARGIN + picture.height), outline=FRAME
    )
    if legend:
        _bar(page, _MARGIN, head + _MARGIN + picture.height + 12, width, legend)
    return page


def heat_card(
    picture: Image.Image,
    heat: np.ndarray,
    title: str,
    note: str,
    legend: tuple[str, str],
    limits: tuple[float | None, float | None] = (None, None),
) -> Image.Image:
    return card(overlay(picture, heat, limits), title, note, legend)


def sheet(pictures: Sequence[Image.Image], labels: Sequence[str], title: str, note: str) -> Image.Image:
    """Pictures side by side, each with its label."""
    columns = max(1, min(4, len(pictures)) if len(pictures) < 9 else round(len(pictures) ** 0.5 + 0.49))
    return contact_sheet(pictures, labels, columns, 220, title, subtitle=note)


def grid_of_maps(maps: np.ndarray, title: str, note: str) -> Image.Image:
    """(rows, columns, h, w): every map as a tile with its own scale; rows are layers, columns heads."""
    rows, columns = maps.shape[:2]
    side = max(28, min(110, 1100 // max(columns, rows)))
    left, gap = 34, 4
    page = Image.new("RGB", (left + columns * (side + gap), 22 + rows * (side + gap)), PAPER)
    draw = ImageDraw.Draw(page)
    for column in range(columns):
        draw.text(
            (left + column * (side + gap) + side // 2, 16), str(column + 1), SOFT_INK, _font(13), anchor="ms"
        )
    for row in range(rows):
        y = 22 + row * (side + gap)
        draw.text((left - 8, y + side // 2), str(row + 1), SOFT_INK, _font(13), anchor="rm")
        for column in range(columns):
            page.paste(_tile(unit(maps[row, column]), (side, side)), (left + column * (side + gap), y))
    return card(page, title, note, ("least", "most, in its tile"))


def tiles_of_tiles(
    maps: np.ndarray, title: str, note: str, legend: tuple[str, str], limits: tuple[float, float]
) -> Image.Image:
    """(H, W, h, w): a tile for each place, laid out as the places are; of more than 16 across every second or third."""
    step = -(-max(maps.shape[:2]) // 16)
    maps = maps[::step, ::step]
    rows, columns = maps.shape[:2]
    side, gap = max(36, min(96, 880 // columns)), 3
    page = Image.new("RGB", (columns * (side + gap) - gap, rows * (side + gap) - gap), PAPER)
    for row in range(rows):
        for column in range(columns):
            scaled = (maps[row, column] - limits[0]) / (limits[1] - limits[0])
            page.paste(_tile(scaled, (side, side)), (column * (side + gap), row * (side + gap)))
    return card(page, title, note, legend)


def curves_card(scores: Mapping[str, Faithfulness], title: str) -> Image.Image:
    """Probability while the hottest places vanish (left) and appear (right), a curve for each map."""
    side, gap, font = 300, 70, _font(14)
    page = Image.new("RGB", (2 * side + gap + 60, side + 52 + 24 * len(scores)), PAPER)
    draw = ImageDraw.Draw(page)
    panels = (
        ("deleted: should fall at once", "deletion_curve"),
        ("inserted: should rise at once", "insertion_curve"),
    )
    for at, (name, curve) in enumerate(panels):
        left, top = 44 + at * (side + gap), 26
        draw.text((left, 4), name, INK, font)
        for tick in (0, 50, 100):
            y = top + side - side * tick // 100
            draw.line((left, y, left + side, y), FRAME)
            draw.text((left - 6, y), f"{tick} %", SOFT_INK, _font(11), anchor="rm")
        for colour, score in zip(_CURVES, scores.values(), strict=False):
            points = getattr(score, curve)
            places = [
                (left + side * i / (len(points) - 1), top + side * (1 - one)) for i, one in enumerate(points)
            ]
            draw.line(places, colour, 3, joint="curve")
    y = side + 48
    for colour, (name, score) in zip(_CURVES, scores.items(), strict=False):
        draw.line((44, y + 8, 72, y + 8), colour, 4)
        words = (
            f"{name}: deleted {score.deletion:.2f} (random {score.random_deletion:.2f}), "
            f"inserted {score.insertion:.2f} (random {score.random_insertion:.2f})"
        )
        draw.text((82, y), words, INK, font)
        y += 24
    blank = next(iter(scores.values())).insertion_curve[0]
    note = "mean probability while places vanish or appear, and that of random maps"
    return card(page, title, f"{note}; of a picture without any place the model says {blank:.0%}")


def _tile(scaled: np.ndarray, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(viridis(scaled)).resize(size, Image.Resampling.NEAREST)


def _bar(page: Image.Image, x: int, y: int, width: int, words: tuple[str, str]) -> None:
    """The colours from low to high, a word at each end."""
    font, draw = _font(_NOTE), ImageDraw.Draw(page)
    low, high = (one_line(word) for word in words)
    start, end = x + round(font.getlength(low)) + 10, x + width - round(font.getlength(high)) - 10
    if end > start:
        colours = viridis(np.linspace(0, 1, end - start))[None].repeat(14, axis=0)
        page.paste(Image.fromarray(colours), (start, y + 2))
    draw.text((x, y + 9), low, SOFT_INK, font, anchor="lm")
    draw.text((x + width, y + 9), high, SOFT_INK, font, anchor="rm")


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> list[str]:
    lines: list[str] = []
    for word in one_line(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)
