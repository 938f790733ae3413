"""The pictures of a ViT experiment: choose sample data, name a folder, zip or data set, or upload; look at the classes."""

from __future__ import annotations

from html import escape
from pathlib import Path

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style
from fastsd_lib.widgets.photo_upload import forget_uploads, uploaded_files
from fastsd_lib.widgets.vit_results import VIT_STYLES, picture_or_note
from fastsd_lib.workflows.vit_experiment import Experiment
from fastsd_lib.workflows.vit_pictures import save_uploads, take_pictures

PER_CLASS, MOST_CLASSES = 8, 24


class VitPictures(style.Shown):
    """What an experiment learns from, class by class; `source` ("" = what was chosen before) is taken when it is shown."""

    def __init__(self, experiment: Experiment, source: str = "") -> None:
        import ipywidgets

        self.experiment = experiment
        self._to_take = source.strip()
        wide = ipywidgets.Layout(flex="1 1 240px", width="auto")
        self.source = ipywidgets.Text(
            value=source, placeholder="digits, a folder, a zip, org/name", layout=wide
        )
        self.take_button = style.button("Use these", lambda: self.take(self.source.value), kind="primary")
        self.label = ipywidgets.Text(placeholder="class of the uploads, such as cat", layout=wide)
        self.upload = ipywidgets.FileUpload(
            accept="image/*,.heic,.heif,.avif,.zip",
            multiple=True,
            description="Upload pictures",
            layout=ipywidgets.Layout(width="auto"),
        )
        self.upload.observe(lambda _: self._add_uploads(), names="value")
        self._message, self._classes = style.html(), style.html()
        self.box = style.card(
            "Pictures",
            style.row(self.source, self.take_button),
            style.row(self.label, self.upload),
            self._message,
            self._classes,
            note="One folder for each class. Your files are only read; uploads are kept in the experiment.",
        )
        self._draw()

    def show(self) -> None:
        """Show the widget, then take what the cell asked for; UserError for what cannot be had, so that a run ends."""
        super().show()
        source, self._to_take = self._to_take, ""
        if source:
            take_pictures(self.experiment, source)
            self._draw()

    def take(self, source: str | Path) -> None:
        """Use sample data, a folder, a zip or a data set instead; what is wrong with it is said below the field."""
        self._message.value = ""
        try:
            take_pictures(self.experiment, source)
        except UserError as error:
            self._message.value = style.failure(error)
            return
        self._draw()

    def _add_uploads(self) -> None:
        uploads = uploaded_files(self.upload.value)
        if not uploads:
            return
        self._message.value = ""
        try:
            save_uploads(self.experiment, uploads, self.label.value.strip())
        except UserError as error:
            self._message.value = style.failure(error)
        forget_uploads(self.upload)
        self._draw()

    def _draw(self) -> None:
        from fastsd_lib.vit.folder_data import open_image_folder

        try:
            folder = self.experiment.pictures
            data = open_image_folder(folder)
        except UserError as error:
            self._classes.value = f'<span class="fsd-help">{escape(error.message)}</span>'
            return
        parts = {"train": data.train, "validation": data.validation, "test": data.test}
        counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part)
        body = f"<div>{escape(str(folder))}: {len(data.classes)} classes, {counts}</div>"
        for number, name in enumerate(data.classes[:MOST_CLASSES]):
            mine = {part: [path for path, label in rows if label == number] for part, rows in parts.items()}
            count = " + ".join(str(len(paths)) for part, paths in mine.items() if parts[part])
            tiles = "".join(
                f'<div class="fsd-tile">{picture_or_note(path)}</div>' for path in mine["train"][:PER_CLASS]
            )
            body += f'<div class="fsd-label">{escape(name)} <span class="fsd-help">{count}</span></div>'
            body += f'<div class="fsd-vit-group">{tiles}</div>'
        if len(data.classes) > MOST_CLASSES:
            body += f'<div class="fsd-help">and {len(data.classes) - MOST_CLASSES} classes more</div>'
        self._classes.value = VIT_STYLES + body
