"""Pictures of an evaluation: the confusion matrix, the reliability diagram, the worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastsd_lib.core.text import one_line
from fastsd_lib.images.grid import FRAME, INK, PAPER, SOFT_INK, contact_sheet
from fastsd_lib.images.load import PhotoError, PhotoLimits, read_photo
from fastsd_lib.vit import metrics
from fastsd_lib.vit.colours import ink_on, viridis
from fastsd_lib.vit.evaluation import Evaluation

MOST_CLASSES = 24  # of a matrix that can still be read
_ANY_PHOTO = PhotoLimits(min_side_px=1, max_aspect=1e9)
_BAR, _GAP = (68, 119, 170), (204, 102, 119)  # blue and rose of Tol's colour-blind safe set


def confusion_picture(evaluation: Evaluation) -> Image.Image:
    """Rows are the truth; a cell's colour is its share of the row, its number counts images.

    Of more than `MOST_CLASSES` classes those with the most mistakes are shown.
    """
    confusion, names = evaluation.confusion, list(evaluation.classes)
    left_out = len(names) - MOST_CLASSES
    if left_out > 0:
        wrong = confusion.sum(axis=0) + confusion.sum(axis=1) - 2 * np.diag(confusion)
        kept = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
        shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
        confusion, shares = confusion[np.ix_(kept, kept)], shares[np.ix_(kept, kept)]
        names = [names[one] for one in kept]
    else:
        shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    title = f"Confusion matrix, {evaluation.images} images of {one_line(evaluation.split)}"
    note = (
        f"the {MOST_CLASSES} classes with the most mistakes; {left_out} others are left out"
        if left_out > 0
        else ""
    )
    return _matrix(confusion, shares, names, title, note)


def _matrix(
    confusion: np.ndarray, shares: np.ndarray, names: list[str], title: str, note: str
) -> Image.Image:
    cell, unit = max(34, min(76, 1100 // len(names))), 20
    font, small, big = _font(unit), _font(max(13, min(unit, cell // 2 - 3))), _font(28)
    names = [_cut(one_line(name), font, 260) for name in names]
    label_px = round(max(font.getlength(name) for name in names)) + 16
    left, top, grid = 56 + label_px, 40 + 44 + (30 if note else 0) + 34 + label_px, cell * len(names)
    head_px = max(big.getlength(title), font.getlength(note))
    sheet = Image.new("RGB", (round(max(left + grid + 170, head_px + 60)), top + grid + 40), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((30, 30), title, INK, big)
    draw.text((30, 70), note, SOFT_INK, font)
    draw.text((left, top - label_px - 10), "predicted", SOFT_INK, font, anchor="ls")
    _sideways(sheet, "truth", font, SOFT_INK, (18, top + grid // 2), centre=True)
    for at, name in enumerate(names):
        middle = at * cell + cell // 2
        draw.text((left - 10, top + middle), name, INK, font, anchor="rm")
        _sideways(sheet, name, font, INK, (left + middle, top - 8))
    for row in range(len(names)):
        for column in range(len(names)):
            x, y, count = left + column * cell, top + row * cell, int(confusion[row, column])
            colour = tuple(int(one) for one in viridis(shares[row, column])) if count else (238, 238, 236)
            draw.rectangle((x, y, x + cell - 2, y + cell - 2), colour)
            if count:
                draw.text((x + cell // 2 - 1, y + cell // 2), str(count), ink_on(colour), small, anchor="mm")
    _legend(draw, left + grid + 24, top, min(grid, 260), font)
    return sheet


def _legend(draw: ImageDraw.ImageDraw, x: int, y: int, height: int, font: ImageFont.FreeTypeFont) -> None:
    for step in range(height):
        colour = tuple(int(one) for one in viridis(1 - step / max(height - 1, 1)))
        draw.line((x, y + step, x + 20, y + step), colour)
    draw.text((x + 30, y), "100 %", SOFT_INK, font, anchor="lt")
    draw.text((x + 30, y + height), "0 %", SOFT_INK, font, anchor="ls")
    draw.text((x + 30, y + height // 2), "of the row", SOFT_INK, font, anchor="lm")


def reliability_picture(evaluation: Evaluation) -> Image.Image:
    """How often the model is right, by how sure it is; before and after calibration, with counts of images."""
    sheet = Image.new("RGB", (1120, 740), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((30, 24), "Is the model right as often as it claims?", INK, _font(28))
    panels = ((evaluation.raw, "as the model gives it"), (evaluation.probabilities, "after calibration"))
    for at, (probabilities, name) in enumerate(panels):
        curve = metrics.reliability(probabilities, evaluation.truth)
        _panel(draw, 90 + at * 530, 150, curve, f"{name}: error {curve.ece:.3f}")
    notes = (
        "blue: how often it is right; rose: the gap to what it claims; above: images in the bin",
        f"temperature {evaluation.calibration.temperature:.3f}: {evaluation.calibration.source}",
    )
    for at, note in enumerate(notes):
        draw.text((30, 676 + 26 * at), _cut(one_line(note), _font(17), 1060), SOFT_INK, _font(17))
    return sheet


def _panel(draw: ImageDraw.ImageDraw, left: int, top: int, curve: metrics.Reliability, title: str) -> None:
    side, font = 440, _font(17)
    draw.text((left, top - 70), title, INK, _font(21))
    for tick in range(0, 101, 25):
        y, x = top + side - side * tick // 100, left + side * tick // 100
        draw.line((left, y, left + side, y), FRAME)
        draw.text((left - 8, y), f"{tick}", SOFT_INK, font, anchor="rm")
        draw.text((x, top + side + 8), f"{tick}", SOFT_INK, font, anchor="mt")
    for count, sure, right, low, high in zip(
        curve.count, curve.confidence, curve.accuracy, curve.low, curve.high, strict=True
    ):
        x0, x1 = left + side * low + 1, left + side * high - 2
        x1 = max(x1, x0 + 2)
        y_right, y_sure = top + side * (1 - right), top + side * (1 - sure)
        draw.rectangle((x0, min(y_right, top + side - 1), x1, top + side), _BAR)
        draw.rectangle((x0, min(y_right, y_sure), x1, max(y_right, y_sure)), outline=_GAP, width=3)
        draw.text(((x0 + x1) / 2, min(y_right, y_sure) - 4), str(count), INK, _font(13), anchor="ms")
    draw.line((left, top + side, left + side, top), SOFT_INK, 2)
    draw.text((left + side // 2, top + side + 36), "claimed confidence, %", SOFT_INK, font, anchor="mt")
    draw.text((left - 40, top - 16), "right, %", SOFT_INK, font, anchor="ls")


def worst_picture(evaluation: Evaluation, most: int = 24) -> Image.Image:
    """The mistakes that cost the most; for a split without mistakes, the right answers that were least sure."""
    wrong = evaluation.mistakes()
    if wrong:
        shown = [
            (one.key, f"{one.truth} taken for {one.predicted}, {one.confidence:.0%}") for one in wrong[:most]
        ]
        title = (
            f"Worst {len(shown)} of {len(wrong)} mistakes"
            if len(wrong) > len(shown)
            else f"All {len(wrong)} mistakes"
        )
        title = "The one mistake" if len(wrong) == 1 else title
    else:
        sure = evaluation.probabilities.max(axis=1)
        rows = np.argsort(sure, kind="stable")[: min(most, 12)]
        shown = [
            (evaluation.keys[row], f"{evaluation.classes[evaluation.truth[row]]}, {sure[row]:.0%}")
            for row in rows
        ]
        title = f"No mistakes; the least sure of {evaluation.images} right answers"
    pictures = [_thumbnail(Path(key)) for key, _ in shown]
    columns = min(6, len(shown))
    return contact_sheet(
        pictures,
        [label for _, label in shown],
        columns,
        200,
        title,
        subtitle=f"{evaluation.images} images of {evaluation.split}; the percentage is the calibrated confidence",
    )


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        return read_photo(path, limits=_ANY_PHOTO, max_side_px=400).image
    except (PhotoError, OSError):
        return None


def _sideways(sheet, text, font, ink, place: Sequence[int], centre: bool = False) -> None:
    """Text that reads upwards from `place`, its foot there (or its middle)."""
    width, height = round(font.getlength(text)) + 4, round(font.size * 1.4)
    strip = Image.new("RGB", (max(width, 1), height), PAPER)
    ImageDraw.Draw(strip).text((2, height // 2), text, ink, font, anchor="lm")
    turned = strip.rotate(90, expand=True)
    x, y = place
    sheet.paste(turned, (round(x - turned.width / 2), round(y - turned.height / (2 if centre else 1))))


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)


def _cut(text: str, font: ImageFont.FreeTypeFont, width_px: float) -> str:
    if font.getlength(text) <= width_px:
        return text
    while text and font.getlength(f"{text}...") > width_px:
        text = text[:-1].rstrip()
    return f"{text}..."
