"""Pictures in one picture: plain grids, and the sheets of a plot with the names of its rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 100_000_000  # of one grid: 300 MB while it is made
PAPER, INK, EMPTY = "white", (28, 29, 33), (238, 238, 240)
MOST_LINES = 6  # of one label; the rest is three dots
SMALLEST_LETTERS_PX = 12

Size = tuple[int, int]  # width, height in pixels


def grid_of(pictures: Sequence[Image], rows: int = 0) -> Image:
    """All pictures in one, as even as it goes, each as large as the first one's cell, without any space between."""
    from PIL import Image

    columns, rows = grid_shape(len(pictures), rows)
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, rows * height), "black")
    for number, picture in enumerate(pictures):
        grid.paste(picture, (number % columns * width, number // columns * height))
    return grid


def grid_shape(count: int, rows: int = 0) -> tuple[int, int]:
    """Columns and rows of so many pictures."""
    rows = rows or max(int(count**0.5), 1)
    return -(-count // rows), rows


@dataclass(frozen=True)
class Sheet:
    """Where everything on a sheet stands. Cells are all of one size; labels stand over columns and left of rows."""

    cell: Size
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    legend: bool = True
    margin_px: int = 0  # between the cells

    @property
    def letters_px(self) -> int:
        return max(SMALLEST_LETTERS_PX, sum(self.cell) // 28)

    @property
    def slot_width(self) -> int:
        """A cell's share of the width: small pictures stand in the middle of a wider one, so that labels fit."""
        if not self.legend:
            return self.cell[0]
        return max(
            self.cell[0], min(max(map(self._width, self.columns)) + self.letters_px, 8 * self.letters_px)
        )

    @property
    def column_lines(self) -> list[list[str]]:
        return [
            wrapped(label, self.letters_px, self.slot_width - self.letters_px // 2) for label in self.columns
        ]

    @property
    def row_lines(self) -> list[list[str]]:
        return [wrapped(label, self.letters_px, self._row_text_px) for label in self.rows]

    @property
    def head_px(self) -> int:
        """The height over the pictures."""
        if not self.legend or not any(self.columns):
            return 0
        return _height(max(map(len, self.column_lines)), self.letters_px)

    @property
    def left_px(self) -> int:
        """The width left of the pictures."""
        return self._row_text_px + self.letters_px if self.legend and any(self.rows) else 0

    @property
    def slot_height(self) -> int:
        if not self.left_px:
            return self.cell[1]
        return max(self.cell[1], _height(max(map(len, self.row_lines)), self.letters_px))

    @property
    def size(self) -> Size:
        across, down = len(self.columns), len(self.rows)
        return (
            self.left_px + across * self.slot_width + (across - 1) * self.margin_px,
            self.head_px + down * self.slot_height + (down - 1) * self.margin_px,
        )

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Of a slot."""
        return (
            self.left_px + column * (self.slot_width + self.margin_px),
            self.head_px + row * (self.slot_height + self.margin_px),
        )

    @property
    def _row_text_px(self) -> int:
        return min(max(map(self._width, self.rows)), max(self.cell[0] * 3 // 4, 8 * self.letters_px))

    def _width(self, label: str) -> int:
        return max(
            (round(font(self.letters_px).getlength(line)) + 1 for line in label.split("\n")), default=0
        )

    def drawn(self, pictures: Sequence[Image | None]) -> Image:
        """The sheet with its pictures, row by row; None leaves a cell empty."""
        from PIL import Image, ImageDraw

        sheet = Image.new("RGB", self.size, PAPER if self.legend or self.margin_px else "black")
        draw = ImageDraw.Draw(sheet)
        for number, picture in enumerate(pictures):
            x, y = self.corner(number % len(self.columns), number // len(self.columns))
            width, height = picture.size if picture is not None else self.cell
            x, y = x + (self.slot_width - width) // 2, y + (self.slot_height - height) // 2
            if picture is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
            else:
                sheet.paste(picture.convert("RGB"), (x, y))
        if self.head_px:
            for column, lines in enumerate(self.column_lines):
                middle = self.corner(column, 0)[0] + self.slot_width // 2
                _write(draw, lines, middle, self.head_px // 2, self.letters_px, "mm")
        if self.left_px:
            for row, lines in enumerate(self.row_lines):
                middle = self.corner(0, row)[1] + self.slot_height // 2
                _write(draw, lines, self.left_px - self.letters_px // 2, middle, self.letters_px, "rm")
        return sheet


@dataclass(frozen=True)
class Album:
    """Sheets of one size side by side, each under its title."""

    sheet: Size
    titles: tuple[str, ...]
    letters_px: int
    legend: bool = True
    margin_px: int = 0

    @property
    def head_px(self) -> int:
        if not self.legend or not any(self.titles):
            return 0
        return _height(max(map(len, self._lines)), self._title_px)

    @property
    def gap_px(self) -> int:
        return max(self.margin_px, self.letters_px if self.legend else 0)

    @property
    def size(self) -> Size:
        count = len(self.titles)
        return count * self.sheet[0] + (count - 1) * self.gap_px, self.head_px + self.sheet[1]

    @property
    def _title_px(self) -> int:
        return round(1.25 * self.letters_px)

    @property
    def _lines(self) -> list[list[str]]:
        return [wrapped(title, self._title_px, self.sheet[0] - self.letters_px) for title in self.titles]

    def drawn(self, sheets: Sequence[Image]) -> Image:
        from PIL import Image, ImageDraw

        album = Image.new("RGB", self.size, PAPER if self.legend or self.margin_px else "black")
        draw = ImageDraw.Draw(album)
        for number, sheet in enumerate(sheets):
            x = number * (self.sheet[0] + self.gap_px)
            album.paste(sheet, (x, self.head_px))
            if self.head_px:
                middle = x + self.sheet[0] // 2
                _write(draw, self._lines[number], middle, self.head_px // 2, self._title_px, "mm")
        return album


@lru_cache(maxsize=64)
def font(size_px: int) -> Any:
    """Pillow's own font: the same letters on every machine."""
    from PIL import ImageFont

    return ImageFont.load_default(size_px)


@lru_cache(maxsize=1024)
def wrapped(label: str, letters_px: int, width_px: int) -> list[str]:
    """Lines no wider than `width_px`, at most MOST_LINES; a word that is too long is broken."""
    measure = font(letters_px).getlength
    lines: list[str] = []
    for paragraph in label.split("\n"):
        line = ""
        for word in paragraph.split():
            if line and measure(f"{line} {word}") <= width_px:
                line = f"{line} {word}"
                continue
            lines += [line] if line else []
            while len(word) > 1 and measure(word) > width_px and len(lines) <= MOST_LINES:
                cut = next(
                    at for at in range(len(word) - 1, 0, -1) if at == 1 or measure(word[:at]) <= width_px
                )
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        lines.append(line)
    if len(lines) > MOST_LINES:
        last = lines[MOST_LINES - 1]
        while last and measure(f"{last}...") > width_px:
            last = last[:-1]
        lines = [*lines[: MOST_LINES - 1], f"{last.rstrip()}..."]
    return lines


def _height(lines: int, letters_px: int) -> int:
    return round(lines * letters_px * 1.25) + letters_px


def _write(draw: Any, lines: list[str], x: int, middle: int, letters_px: int, anchor: str) -> None:
    """Lines around a middle."""
    for number, line in enumerate(lines):
        y = middle + round((number - (len(lines) - 1) / 2) * letters_px * 1.25)
        draw.text((x, y), line, INK, font(letters_px), anchor=anchor)
