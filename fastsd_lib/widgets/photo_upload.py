"""Photos into a session: upload, a folder, or the project's samples; what was refused and why; delete."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.paths import expanded
from fastsd_lib.widgets import style
from fastsd_lib.widgets.pictures import tile


class PhotoUpload(style.Shown):
    """The photos of a session. The originals are only read; the session keeps prepared copies."""

    def __init__(self, session: Any) -> None:
        import ipywidgets

        self.session = session
        self.upload = ipywidgets.FileUpload(
            accept="image/*,.heic,.heif,.avif,.txt,.zip",
            multiple=True,
            description="Upload photos",
            layout=ipywidgets.Layout(width="auto"),
        )
        self.upload.add_class("fsd-primary")
        self.folder = ipywidgets.Text(
            placeholder="or a folder, for example /content/drive/MyDrive/cat",
            layout=ipywidgets.Layout(flex="1 1 260px", width="auto"),
        )
        self.folder_button = style.button("Add folder", lambda: self.add_folder(self.folder.value))
        self._report = style.html()
        self._tiles = ipywidgets.GridBox(
            layout=ipywidgets.Layout(
                grid_template_columns="repeat(auto-fill, minmax(132px, 1fr))", grid_gap="12px", width="100%"
            )
        )
        self._asked = ""  # the photo whose Delete waits for a second press
        self.delete_buttons: dict[str, Any] = {}
        sources = style.row(self.upload, self.folder, self.folder_button)
        note = "5 to 20 photos of one subject, in different places and light. Your files stay as they are."
        self.box = style.card("Photos", sources, self._report, self._tiles, note=note)
        self.upload.observe(lambda _: self._add_uploads(), names="value")
        self._draw()

    @property
    def photos(self) -> list[Path]:
        from fastsd_lib.sessions.photos import photos

        return photos(self.session)

    def add(self, sources: Iterable[Path]) -> None:
        """Add files, folders and zips; the report below the buttons says what became of each."""
        from fastsd_lib.workflows import dreambooth

        try:
            report = dreambooth.add_photos(self.session, list(sources))
        except UserError as error:
            self._report.value = style.failure(error)
            return
        self._report.value = _report_table(report)
        self._draw()

    def add_folder(self, folder: str | Path) -> None:
        """Add a folder's photos; an empty name adds nothing, so that a cell needs no `if`."""
        if str(folder).strip():
            self.add([expanded(str(folder).strip())])

    def add_sample(self, subject: str) -> None:
        """Add the project's own photos of "cat" or "monster"; an empty name adds nothing."""
        from fastsd_lib.workflows import dreambooth

        if subject:
            with tempfile.TemporaryDirectory() as scratch:
                self.add(dreambooth.sample_photos(subject, Path(scratch)))

    def delete(self, name: str) -> None:
        """Remove a photo and its caption from the session; the first call only asks."""
        if self._asked != name:
            self._asked = name
        else:
            self._asked = ""
            for photo in self.photos:
                if photo.name == name:
                    photo.unlink()
                    (self.session.captions / f"{photo.stem}.txt").unlink(missing_ok=True)
            self._report.value = f'<span class="fsd-help">Deleted {escape(name)}.</span>'
        self._draw()

    def keep(self) -> None:
        """Take back the question whether to delete."""
        self._asked = ""
        self._draw()

    def _add_uploads(self) -> None:
        uploads = uploaded_files(self.upload.value)
        if not uploads:
            return
        with tempfile.TemporaryDirectory() as scratch:
            paths = []
            for name, content in uploads:
                paths.append(Path(scratch, Path(name.replace("\\", "/")).name or "photo"))
                paths[-1].write_bytes(content)
            self.add(paths)
        forget_uploads(self.upload)

    def _draw(self) -> None:
        cells, self.delete_buttons = [], {}
        for photo in self.photos:
            cells.append(self._cell(photo))
        self._tiles.children = cells
        self._tiles.layout.display = "grid" if cells else "none"

    def _cell(self, photo: Path) -> Any:
        asked = self._asked == photo.name
        kind = "danger" if asked else "plain"
        delete = style.button(
            "Really delete" if asked else "Delete", lambda: self.delete(photo.name), kind=kind
        )
        self.delete_buttons[photo.name] = delete
        buttons = [delete, style.button("Keep", self.keep)] if asked else [delete]
        return style.column(style.html(_tile(photo)), style.row(*buttons, grid_gap="2px"), grid_gap="2px")


def uploaded_files(value: Any) -> list[tuple[str, bytes]]:
    """(name, content) of each upload: ipywidgets 7 holds a dict by name, ipywidgets 8 a tuple of dicts."""
    if isinstance(value, dict):
        return [(name, bytes(one["content"])) for name, one in value.items()]
    return [(one["name"], bytes(one["content"])) for one in value]


def forget_uploads(upload: Any) -> None:
    """Empty the widget: it would hold every photo in memory, and refuse to take the same one again."""
    if isinstance(upload.value, dict):  # ipywidgets 7 makes `value` of these two whenever its counter changes
        upload.metadata, upload.data = [], []
        upload._counter = 0
    else:
        upload.value = ()


def _tile(photo: Path) -> str:
    try:
        return tile(photo, photo.name, max_px=240)
    except UserError as error:  # a legacy session may hold a file that is no photo
        return f'<div class="fsd-tile"><div class="fsd-box fsd-error">{escape(error.message)}</div></div>'


def _report_table(report: Any) -> str:
    head, *rest = report.lines()
    rows = "".join(f'<div class="{_mark(line)}">{escape(line.strip())}</div>' for line in rest)
    return f'<div class="fsd-box"><div class="fsd-label">{escape(head)}</div>{rows}</div>'


def _mark(line: str) -> str:
    return "fsd-error" if line.strip().startswith("refused") else "fsd-help"
