"""The newest pictures: a large one, small ones to choose from, and how each was made."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.widgets import style
from fastsd_lib.widgets.studio_parts import PictureButtons, stage

MOST_SHOWN = 48  # pictures in the strip; older ones are in the folder and in the history


class Results:
    """Pictures as they are finished; the last one is chosen unless somebody chose another."""

    def __init__(self, fill: Callable[[str], None], use_picture: Callable[[Any], None]) -> None:
        self._fill, self._use_picture = fill, use_picture
        self.pictures: list[tuple[Any, Path | None]] = []
        self.chosen = -1
        self._large, self._text, self._where = style.html(), style.html(), style.html()
        self.strip = PictureButtons(self.choose)
        self.buttons = style.row(
            style.button("Fill the fields", lambda: self._fill(self.infotext)),
            style.button("Draw over it", lambda: self._use_picture(self.pictures[self.chosen][0].image)),
        )
        self.box = style.column(self._large, self.strip.box, self.buttons, self._text, self._where)
        self.show()

    def begin(self) -> None:
        """A new order: its pictures follow those that are there, without pushing the strip beyond its bound."""
        if len(self.pictures) > MOST_SHOWN:
            self.pictures = self.pictures[-MOST_SHOWN // 2 :]
            self.chosen = -1
            self.strip.fill([(one.image, str(one.seed), "") for one, _ in self.pictures])

    def add(self, picture: Any, file: Path | None) -> None:
        self.pictures.append((picture, file))
        self.strip.add(picture.image, str(picture.seed), f"seed {picture.seed}")
        self.choose(len(self.pictures) - 1)

    def preview(self, rough: Any) -> None:
        """The picture in work, in the large one's place until `show`."""
        self._large.value = stage(rough)

    def choose(self, number: int) -> None:
        self.chosen = number
        self.strip.choose(number)
        self.show()

    @property
    def infotext(self) -> str:
        """How the chosen picture was made, as A1111 writes it; "" without one."""
        from fastsd_lib.generation.infotext import infotext

        return infotext(self.pictures[self.chosen][0].record) if self.pictures else ""

    def show(self) -> None:
        """The chosen picture, and how it was made."""
        there = bool(self.pictures)
        self.buttons.layout.display = "" if there else "none"
        if not there:
            self._large.value = (
                '<div class="fsd-stage"><span class="fsd-help">Pictures appear here.</span></div>'
            )
            return
        picture, file = self.pictures[self.chosen]
        self._large.value = stage(picture.image)
        self._text.value = f'<div class="fsd-box fsd-infotext">{escape(self.infotext)}</div>'
        self._where.value = f'<span class="fsd-help fsd-code">{escape(str(file))}</span>' if file else ""
