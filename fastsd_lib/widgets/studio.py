"""The studio: prompt to picture inside a notebook, with core widgets and no server.

Pictures are drawn in the service's thread and a second one watches, so the cell returns at once, other cells can
run, and Stop is heard at any time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from html import escape
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import duration
from fastsd_lib.widgets import style
from fastsd_lib.widgets.studio_form import StudioForm
from fastsd_lib.widgets.studio_parts import STUDIO_STYLES, Switch, field, fields, small_button
from fastsd_lib.widgets.studio_results import Results
from fastsd_lib.widgets.studio_shelves import Cards, Past, PngInfo
from fastsd_lib.workflows.studio import Studio, StudioConfig, open_studio
from fastsd_lib.workflows.studio_choices import StudioChoices, from_infotext

LOOK_S = 0.3  # between two looks at the job: a page takes no more
PREVIEW_S = 0.8


class StudioPanel(style.Shown):
    """The form, the picture in work, and what was drawn; `draw` is Generate for programs."""

    def __init__(self, studio: Studio, model: str = "") -> None:
        import ipywidgets as w

        self.studio = studio
        self.job: Any = None  # the newest order
        self._watcher: threading.Thread | None = None
        self._closed = threading.Event()
        self.form = StudioForm(studio.upscalers())
        self.model = w.Dropdown(layout=w.Layout(width="100%"))
        self.other_model = w.Text(
            placeholder="or a path, a Hugging Face id, a link",
            continuous_update=True,
            layout=w.Layout(width="100%"),
        )
        self.keep_in = w.Dropdown(layout=w.Layout(width="100%"))
        self.keep = w.Checkbox(value=True, indent=False, description="Save every picture")
        self.generate_button = style.button("Generate", self.generate, kind="primary")
        self.generate_button.add_class("fsd-generate")
        self.stop_button = style.button("Stop", self.stop, disabled=True)
        self.skip_button = style.button("Skip", self.skip, disabled=True)
        self._status, self._bar, self._message = style.html(), style.html(), style.html()
        self.results = Results(self._fill_from_text, self._use_picture)
        self.cards = Cards(studio, self.form)
        self.png_info = PngInfo(self._fill_from_text, self._use_picture)
        self.past = Past(studio, self._fill_from_text)
        self.box = self._laid_out()
        self._list_again()
        self._show_idle("Ready." if not studio.notes else studio.notes[-1])

    def _laid_out(self) -> Any:
        form = self.form
        model = style.row(
            _beside("Model", self.model, small_button("↻", "Look again", self._list_again)),
            _beside("Another model", self.other_model, style.button("Open", self.open_model)),
            align_items="flex-end", grid_gap="16px",
        )  # fmt: skip
        actions = style.row(self.generate_button, self.stop_button, self.skip_button, self._status)
        panes = Switch(
            (
                ("Settings", form.usual_fields()),
                ("Hires", form.hires_fields()),
                ("Picture", form.picture_fields()),
                ("Styles", self.cards.styles_box),
                ("LoRA", self.cards.box),
                ("PNG info", self.png_info.box),
                ("History", self.past.box),
                ("Saving", style.column(self.keep, fields(field("Save to", self.keep_in, full=True)))),
            ),
            self._pane_shown,
        )
        panes.box.add_class("fsd-side")
        left = style.column(panes.box, form.message, flex="1 1 340px", min_width="0")
        right = style.column(self.results.box, flex="1 1 340px", min_width="0")
        columns = style.row(left, right, align_items="flex-start", grid_gap="16px")
        note = "Everything is drawn on this machine and shown in this cell: there is no server and no link."
        box = style.card(
            "Studio", style.html(STUDIO_STYLES), model, form.inputs["prompt"], form.inputs["negative_prompt"],
            actions, self._bar, self._message, columns, note=note,
        )  # fmt: skip
        box.add_class("fsd-studio")
        return box

    # --- what the user does

    def generate(self) -> None:
        """Order what the form says; the page shows what becomes of it."""
        if not self.busy:
            try:
                self._order()
            except UserError as error:
                self._message.value = style.failure(error)

    def _order(self) -> None:
        if self.busy:
            raise UserError("The studio is drawing already.", fix="wait for it, or press Stop.")
        self._message.value = ""
        job, notes = self.studio.order(self.form.choices(self.model.value or ""))
        self._tell(notes)
        self._watch(job)

    def stop(self) -> None:
        """End with what there is: the picture in work is finished as it stands."""
        if self.job is not None:
            self._status.value = _said("Stopping.")
            if self.job.state == "waiting":
                self.studio.service.cancel(self.job.id)
            self.studio.service.interrupt(self.job.id)

    def skip(self) -> None:
        """Leave the picture in work as it stands and go on with the next one."""
        if self.job is not None:
            self.studio.service.skip(self.job.id)

    def open_model(self) -> None:
        """Take the model that is typed; a download takes its time in the background."""
        text = self.other_model.value.strip()
        if not text:
            return

        def work() -> None:
            try:
                name = self.studio.use_model(text)
                self._list_again(name)
                self._show_idle(f"{name} is ready.")
                self.other_model.value = ""
            except Exception as error:  # shown: nobody sees what a thread raises
                self._show_idle("")
                self._message.value = style.failure(error)

        self._message.value = ""
        self._status.value = _said(f"Opening {text} …")
        threading.Thread(target=work, name="studio model", daemon=True).start()

    async def draw(self, **choices: Any) -> list[Any]:
        """Put these into the form, press Generate, and wait for the pictures: for cells and programs.

        Interrupting the cell stops the drawing. UserError for a wrong value.
        """
        from fastsd_lib.widgets.kernel import answer_widgets

        self.form.fill(replace(self.form.choices(), **choices))
        self._order()
        while self.busy:
            try:
                await answer_widgets()
                await asyncio.sleep(0.05)
            except (KeyboardInterrupt, asyncio.CancelledError):
                self.stop()
        return list(self.job.future.result())

    @property
    def busy(self) -> bool:
        return self._watcher is not None and self._watcher.is_alive()

    def close(self, wanted: bool = True) -> None:
        """Free the models' memory; False leaves all as it is, so that a cell needs no `if`."""
        if wanted and not self._closed.is_set():
            self._closed.set()
            self.studio.close()
            for button in (self.generate_button, self.stop_button, self.skip_button):
                button.disabled = True
            self._status.value = _said("Closed: run the cell again for a new studio.")

    # --- watching

    def _watch(self, job: Any) -> None:
        self.job = job
        self.generate_button.disabled = True
        self.stop_button.disabled = self.skip_button.disabled = False
        self.results.begin()
        self._watcher = threading.Thread(target=self._follow, args=(job,), name="studio", daemon=True)
        self._watcher.start()

    def _follow(self, job: Any) -> None:
        try:
            shown, seen_at = 0, 0.0
            while not job.over:
                shown = self._take(job, shown)
                if time.monotonic() - seen_at >= PREVIEW_S and (rough := job.preview()) is not None:
                    self.results.preview(rough)
                    seen_at = time.monotonic()
                self._bar.value, self._status.value = _bar(job.share), _said(_progress(job))
                time.sleep(LOOK_S)
            self._take(job, shown)
            self._message.value = style.failure(job.error) if job.error is not None else self._message.value
            warnings = {one for picture in job.pictures for one in picture.record.get("warnings", ())}
            self._tell(sorted(warnings | set(job.notes)))
        except Exception as error:  # a full disk while saving; nobody sees what a thread raises
            self._message.value = style.failure(error)
        self.past.refresh()
        self._show_idle(_ended(job))

    def _take(self, job: Any, shown: int) -> int:
        """Show and save the pictures that are finished since; how many are shown now."""
        pictures = list(job.pictures)
        if len(pictures) == shown:
            return shown
        files = self.studio.save(job, self.keep_in.value or "") if self.keep.value else []
        for number in range(shown, len(pictures)):
            self.results.add(pictures[number], files[number] if number < len(files) else None)
        self.form.last_seed = pictures[-1].seed
        return len(pictures)

    def _show_idle(self, text: str) -> None:
        self.results.show()
        self._bar.value = ""
        self._status.value = _said(text)
        self.generate_button.disabled = False
        self.stop_button.disabled = self.skip_button.disabled = True

    # --- from elsewhere into the form

    def _fill_from_text(self, text: str) -> None:
        """What a picture says of itself, into the fields."""

        def find(name: str) -> str:
            return self.studio.service.shelf.find(name).name

        now = self.form.choices(self.model.value or "")
        choices, notes = from_infotext(now, text, self.studio.styles(), find)
        self.form.fill(choices)
        if choices.model in self.model.options:
            self.model.value = choices.model
        self._message.value = ""
        self._tell(notes)
        self._status.value = _said("The fields are filled.")

    def _use_picture(self, picture: Any, name: str = "init") -> None:
        self.form.set(**{name: picture})
        self._status.value = _said("The picture is in the pane Picture: it will be drawn over.")

    def _tell(self, notes: list[str]) -> None:
        if notes:
            lines = "<br>".join(escape(note) for note in notes)
            self._message.value += f'<div class="fsd-box fsd-help">{lines}</div>'

    def _pane_shown(self, name: str) -> None:
        if name == "History":
            self.past.refresh()
        elif name in ("LoRA", "Styles"):
            self.cards.refresh()

    def _list_again(self, chosen: str = "") -> None:
        names = self.studio.models()
        chosen = chosen or self.model.value or self.studio.service.shelf.current
        self.model.options = names
        self.model.value = chosen if chosen in names else names[0]
        kept = self.keep_in.value
        self.keep_in.options = [(f"{self.studio.outputs}", "")] + [
            (f"session {name}", name) for name in self.studio.sessions()
        ]
        self.keep_in.value = kept or ""


def studio_panel(config: StudioConfig, root: Any = None) -> StudioPanel:
    """Open a studio and its panel: what the notebook's cell calls."""
    return StudioPanel(open_studio(config, root))


def _beside(name: str, widget: Any, button: Any) -> Any:
    widget.layout.width, widget.layout.flex = "auto", "1 1 auto"
    box = field(name, style.row(widget, button, flex_flow="row nowrap", grid_gap="4px"))
    box.layout.flex = "1 1 340px"
    return box


def _said(text: str) -> str:
    return f'<span class="fsd-help">{escape(text)}</span>'


def _bar(share: float) -> str:
    return f'<div class="fsd-bar" role="progressbar"><b style="width:{100 * share:.1f}%"></b></div>'


def _progress(job: Any) -> str:
    if job.state == "waiting":
        return "Loading the model …" if not job.place or job.place == 1 else f"Waiting, number {job.place}."
    left = f", {duration(job.eta_s)} left" if job.eta_s else ""
    of = (
        f"picture {len(job.pictures) + 1} of {job.order.request.count}, "
        if job.order.request.count > 1
        else ""
    )
    return f"{of}step {job.picture_step} of {job.picture_steps}{left}"


def _ended(job: Any) -> str:
    drawn = len(job.pictures)
    what = f"{drawn} picture{'' if drawn == 1 else 's'}"
    if job.state == "failed":
        return "Ended with an error."
    if job.state == "stopped":
        return f"Stopped; {what} kept." if drawn else "Stopped before the first picture."
    took = duration((job.finished_s or 0) - (job.started_s or job.finished_s or 0))
    return f"{what} in {took}."


__all__ = ["StudioChoices", "StudioConfig", "StudioPanel", "studio_panel"]
