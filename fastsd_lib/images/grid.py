"""Contact sheets: pictures side by side on one page, with a title and names for rows and columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.text import one_line

PAPER = (250, 250, 248)
INK = (32, 33, 36)
SOFT_INK = (110, 113, 120)
FRAME = (222, 223, 226)


def contact_sheet(
    images: Sequence[Image.Image | None],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    cell_px: int = 256,
    title: str = "",
    *,
    subtitle: str = "",
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    pixels: bool = False,
) -> Image.Image:
    """One RGB page with all `images`, row by row, each whole in a square cell of `cell_px`; None leaves a cell empty.

    `labels` stand under the pictures, `row_labels` left of the rows, `column_labels` over the columns.
    Pictures smaller than a cell are blown up: smoothly, or with visible `pixels`. `columns` None chooses a
    page about as wide as high. Raises UserError without images.
    """
    if not images:
        raise UserError(
            "There are no pictures to put on a sheet.", fix="add photos or generate pictures first."
        )
    columns = columns or (len(column_labels) if column_labels else math.ceil(math.sqrt(len(images))))
    rows = math.ceil(len(images) / columns)
    page = _Page(columns, rows, cell_px, labels, row_labels, column_labels, title, subtitle)
    for at, image in enumerate(images):
        if image is None:
            continue
        page.put(
            image,
            *divmod(at, columns),
            label=labels[at] if labels and at < len(labels) else "",
            pixels=pixels,
        )
    return page.sheet


class _Page:
    """Where everything stands; sizes follow the cells, so that a page of 64-px cells is readable too."""

    def __init__(self, columns, rows, cell_px, labels, row_labels, column_labels, title, subtitle) -> None:
        unit = max(12, min(cell_px // 12, 26))  # the height of small letters' line, in pixels
        self.unit, self.cell_px = unit, cell_px
        self.small, self.plain = _font(unit), _font(round(unit * 1.1))
        self.big = _font(round(unit * 1.7))
        self.gap = max(6, cell_px // 24)
        self.margin = round(unit * 1.8)
        grid_width = columns * cell_px + (columns - 1) * self.gap
        self.row_label_px = 0
        if row_labels:
            widest = max(self.plain.getlength(word) for label in row_labels for word in _lines(label))
            self.row_label_px = round(min(widest, 1.2 * max(cell_px, 160)) + 1.2 * unit)
        self.label_lines = 0
        if labels:
            self.label_lines = max(len(_wrapped(label, self.small, cell_px, 2)) for label in labels)
        self.label_px = round(self.label_lines * unit * 1.3 + (unit * 0.5 if self.label_lines else 0))
        width = 2 * self.margin + self.row_label_px + grid_width
        heads = [
            (line, self.big if part == 0 else self.small, INK if part == 0 else SOFT_INK)
            for part, text in enumerate((title, subtitle))
            for line in _wrapped(text, self.big if part == 0 else self.small, width - 2 * self.margin, 3)
        ]
        head_px = sum(round(font.size * 1.35) for _, font, _ in heads) + (unit if heads else 0)
        column_px = round(unit * 1.9) if column_labels else 0
        self.left = self.margin + self.row_label_px
        self.top = self.margin + head_px + column_px
        height = self.top + rows * (cell_px + self.label_px) + (rows - 1) * self.gap + self.margin
        self.sheet = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.sheet)
        y = self.margin
        for line, font, ink in heads:
            self.draw.text((self.margin, y), line, ink, font, anchor="la")
            y += round(font.size * 1.35)
        for column, label in enumerate((column_labels or [])[:columns]):
            x = self.left + column * (cell_px + self.gap) + cell_px // 2
            text = _wrapped(label, self.plain, cell_px, 1)
            self.draw.text(
                (x, self.top - round(unit * 0.6)), "".join(text), SOFT_INK, self.plain, anchor="ms"
            )
        for row, label in enumerate((row_labels or [])[:rows]):
            self._name_row(label, row)

    def _name_row(self, label: str, row: int) -> None:
        lines = [
            line
            for part in _lines(label)
            for line in _wrapped(part, self.plain, self.row_label_px - self.unit, 4)
        ]
        step = round(self.plain.size * 1.3)
        middle = self.top + row * (self.cell_px + self.label_px + self.gap) + self.cell_px // 2
        for at, line in enumerate(lines):
            y = middle + round((at - (len(lines) - 1) / 2) * step)
            self.draw.text((self.margin, y), line, INK if at == 0 else SOFT_INK, self.plain, anchor="lm")

    def put(self, image: Image.Image, row: int, column: int, label: str, pixels: bool) -> None:
        """One picture, whole, in the middle of its cell, its label below."""
        x = self.left + column * (self.cell_px + self.gap)
        y = self.top + row * (self.cell_px + self.label_px + self.gap)
        picture = _fitted(image.convert("RGB"), self.cell_px, pixels)
        if picture.size != (self.cell_px, self.cell_px):
            self.draw.rectangle((x, y, x + self.cell_px - 1, y + self.cell_px - 1), (240, 240, 238))
        self.sheet.paste(
            picture, (x + (self.cell_px - picture.width) // 2, y + (self.cell_px - picture.height) // 2)
        )
        self.draw.rectangle((x - 1, y - 1, x + self.cell_px, y + self.cell_px), outline=FRAME)
        y += self.cell_px + round(self.unit * 0.5)
        for line in _wrapped(label, self.small, self.cell_px, 2):
            self.draw.text((x + self.cell_px // 2, y), line, SOFT_INK, self.small, anchor="ma")
            y += round(self.unit * 1.3)


def _fitted(image: Image.Image, cell_px: int, pixels: bool) -> Image.Image:
    scale = cell_px / max(image.size)
    if pixels and scale > 1:
        scale = max(1, int(scale))  # whole steps, or some pixels would be wider than others
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if pixels and scale > 1 else Image.Resampling.LANCZOS)


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: the same letters on every machine."""
    return ImageFont.load_default(size_px)


def _lines(label: str) -> list[str]:
    return label.split("\n")


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width_px: float, most: int) -> list[str]:
    """At most `most` lines no wider than `width_px`; what does not fit ends in three dots."""
    lines: list[str] = []
    for word in one_line(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    cut = len(lines) > most
    lines = lines[:most]
    for at, line in enumerate(lines):
        last = cut and at == most - 1
        if not last and font.getlength(line) <= width_px:
            continue
        while line and font.getlength(f"{line}...") > width_px:
            line = line[:-1].rstrip()
        lines[at] = f"{line}..."
    return lines
