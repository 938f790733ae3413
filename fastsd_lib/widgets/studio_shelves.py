"""What the studio takes from: LoRA cards, styles, the text in a picture, and what was drawn before."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style
from fastsd_lib.widgets.photo_upload import forget_uploads, uploaded_files
from fastsd_lib.widgets.studio_form import StudioForm, open_upload
from fastsd_lib.widgets.studio_parts import PictureButtons, field, fields
from fastsd_lib.workflows.studio import Studio

MOST_CARDS = 120


class Cards:
    """LoRA files and learned words as cards; a press puts one into the prompt, another takes it out."""

    def __init__(self, studio: Studio, form: StudioForm) -> None:
        import ipywidgets

        self._studio, self._form = studio, form
        self._all: list[Any] = []
        self.shown: list[Any] = []
        self.search = ipywidgets.Text(placeholder="Search", layout=ipywidgets.Layout(width="100%"))
        self.grid = PictureButtons(self._pressed, min_px=130, kind="fsd-card")
        self._note, self._styles_note = style.html(), style.html()
        self.box = style.column(self.search, self.grid.box, self._note)
        self.styles_box = style.column(fields(field("Styles", form.styles, full=True)), self._styles_note)
        self.search.observe(lambda _: self._draw(), names="value")
        self.refresh()

    def refresh(self) -> None:
        """Look for new files."""
        folders = self._studio.service.shelf.folders
        try:
            self._form.offer_styles(list(self._studio.styles()))
            self._styles_note.value = _help(
                "Press Ctrl to choose several. They come from "
                + ", ".join(str(file) for file in folders.styles[:1])
            )
        except UserError as error:
            self._styles_note.value = style.failure(error)
        self._all = self._studio.cards()
        self._draw()

    def _draw(self) -> None:
        word = self.search.value.strip().lower()
        found = [card for card in self._all if word in f"{card.name} {card.hint}".lower()]
        if found != self.shown or not self.grid.buttons:
            self.shown = found[:MOST_CARDS]
            self.grid.fill([(one.picture, f"{one.name}\n{one.hint}", one.tag) for one in self.shown])
        more = f"{len(found) - MOST_CARDS} more: search for them. " if len(found) > MOST_CARDS else ""
        folder = self._studio.service.shelf.folders.loras[0]
        self._note.value = _help(f"{more}A press puts it into the prompt. Files go into {folder}")

    def _pressed(self, number: int) -> None:
        self._form.insert(self.shown[number].tag)


class PngInfo:
    """A picture is asked how it was made; by any program whose text is known."""

    def __init__(self, fill: Callable[[str], None], use_picture: Callable[[Any], None]) -> None:
        import ipywidgets

        self._fill, self._use_picture = fill, use_picture
        self.text, self._picture = "", None
        self.upload = ipywidgets.FileUpload(
            accept="image/*", multiple=False, description="Upload a picture",
            layout=ipywidgets.Layout(width="auto"),
        )  # fmt: skip
        self.fill_button = style.button("Fill the fields", lambda: self._fill(self.text), disabled=True)
        self.use_button = style.button(
            "Draw over it", lambda: self._use_picture(self._picture), disabled=True
        )
        self._shown = style.html()
        self.box = style.column(style.row(self.upload, self.fill_button, self.use_button), self._shown)
        self.upload.observe(lambda _: self._uploaded(), names="value")
        self._shown.value = _help("A picture that says how it was made fills all fields at once.")

    def _uploaded(self) -> None:
        if found := uploaded_files(self.upload.value):
            self.read(found[-1][1])
            forget_uploads(self.upload)

    def read(self, data: bytes) -> None:
        """Ask a picture file; its text fills the fields at once."""
        from fastsd_lib.generation.other_programs import read_history

        self.text, self._picture = "", None
        try:
            self._picture = open_upload(data)
            history = read_history(data)
            self.text = history.parameters
        except UserError as error:
            self._shown.value = style.failure(error)
        else:
            said = self.text or "This picture does not say how it was made."
            self._shown.value = f'<div class="fsd-box fsd-infotext">{escape(said)}</div>'
        self.fill_button.disabled = not self.text
        self.use_button.disabled = self._picture is None
        if self.text:
            self._fill(self.text)


class Past:
    """Earlier orders, also of earlier days; a press fills the fields."""

    def __init__(self, studio: Studio, fill: Callable[[str], None]) -> None:
        import ipywidgets

        self._studio, self._fill = studio, fill
        self._entries: list[dict[str, Any]] = []
        self.search = ipywidgets.Text(placeholder="Search", layout=ipywidgets.Layout(width="100%"))
        self.grid = PictureButtons(self._pressed, min_px=96)
        self._note = style.html()
        self.box = style.column(self.search, self.grid.box, self._note)
        self.search.observe(lambda _: self.refresh(), names="value")

    def refresh(self) -> None:
        entries = self._studio.past(self.search.value.strip(), most=24)
        if [one["id"] for one in entries] != [one["id"] for one in self._entries]:
            self._entries = entries
            self.grid.fill([_entry(one) for one in entries])
        self._note.value = _help(
            "A press fills the fields with how it was made." if entries else "Nothing was drawn yet."
        )

    def _pressed(self, number: int) -> None:
        self._fill(self._entries[number]["infotexts"][0])


def _entry(entry: dict[str, Any]) -> tuple[Path | None, str, str]:
    files = [Path(one) for one in entry["files"] or ()]
    there = next((one for one in files if one.is_file()), None)
    when = time.strftime("%d %b %H:%M", time.localtime(entry["created_s"]))
    return there, when, entry["prompt"][:200]


def _help(text: str) -> str:
    return f'<span class="fsd-help">{escape(text)}</span>'
