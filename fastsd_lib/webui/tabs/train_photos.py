"""The photos of the Train tab: added, shown as training sees them, captioned, deleted."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.tabs.desk import QUIET, told
from fastsd_lib.webui.trainings import Trainings

GONE = "That photo is no longer there."


@dataclass
class PhotoBox:
    """The parts that events write to."""

    drop: gr.File
    report: gr.HTML
    gallery: gr.Gallery
    editor: gr.Group
    chosen: gr.State  # file name of the photo in the editor; "" = none
    caption: gr.Textbox
    prompt: gr.HTML  # what training reads beside it
    save: gr.Button
    delete: gr.Button

    def of_session(self) -> list[Any]:
        """What `of` writes to."""
        return [self.report, self.gallery, self.editor, self.chosen]

    def of(self, trainings: Trainings, session: str, report: str = "") -> list[Any]:
        """The photos of a session, none chosen."""
        photos = trainings.photos(session) if session else []
        pictures = [(photo.crop, photo.caption or photo.name) for photo in photos]
        count = f"{len(photos)} photos" if len(photos) != 1 else "1 photo"
        label = f"{count}, as training sees them; press one to caption it" if photos else "No photos yet"
        return [report, gr.Gallery(pictures, label=label, selected_index=None), gr.Group(visible=False), ""]


def build() -> PhotoBox:
    drop = gr.File(
        file_count="multiple", label="Photos: 5 to 20 of one subject",
        height=100, elem_id="train_upload",
    )  # fmt: skip
    report = gr.HTML(elem_id="train_report", padding=False)
    gallery = gr.Gallery(
        label="No photos yet", columns=5, rows=2, height="auto", object_fit="cover", allow_preview=False,
        interactive=False, elem_id="train_photos", buttons=[],
    )  # fmt: skip
    with gr.Group(visible=False, elem_id="train_editor") as editor:
        caption = gr.Textbox(label="Caption", lines=1, max_lines=3, elem_id="train_caption")
        prompt = gr.HTML(elem_id="train_training_prompt")
        with gr.Row():
            save = gr.Button("Save caption", size="sm", elem_id="train_save_caption")
            delete = gr.Button("Delete photo", size="sm", variant="stop", elem_id="train_delete_photo")
    return PhotoBox(drop, report, gallery, editor, gr.State(""), caption, prompt, save, delete)


def connect(
    box: PhotoBox, trainings: Trainings, session: gr.Dropdown, instance_prompt: gr.Textbox
) -> list[Any]:
    """Wire the box; the events after which the session holds other photos."""

    def add(name: str, files: Sequence[str] | None) -> list[Any]:
        lines = _guarded(lambda: trainings.add_photos(name, [Path(one) for one in files or []]))
        return [None, *box.of(trainings, name, _report(lines))]

    def choose(picked: gr.SelectData, name: str, words: str) -> list[Any]:
        photos = _guarded(lambda: trainings.photos(name))
        if picked.index >= len(photos):  # deleted in another browser
            raise gr.Error(GONE, print_exception=False)
        photo = photos[picked.index]
        return [gr.Group(visible=True), photo.name, gr.Textbox(photo.caption, label=f"Caption of {photo.name}"),
                prompt_of(words, photo.caption)]  # fmt: skip

    def prompt_of(words: str, caption: str) -> str:
        whole = html.escape(trainings.training_prompt(words or "", caption or ""))
        return f'<p class="training-prompt"><span>Training reads</span> {whole or "nothing yet"}</p>'

    def save(name: str, photo: str, text: str) -> list[Any]:
        _guarded(lambda: trainings.set_caption(name, photo, text))
        return box.of(trainings, name)

    def delete(name: str, photo: str) -> list[Any]:
        _guarded(lambda: trainings.delete_photo(name, photo))
        return box.of(trainings, name, f'<p class="nothing">Deleted {html.escape(photo)}.</p>')

    shown: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
    added = box.drop.upload(
        add, [session, box.drop], [box.drop, *box.of_session()], show_progress_on=[box.gallery], **shown
    )
    added.failure(lambda: None, None, box.drop, **QUIET)
    box.gallery.select(
        choose, [session, instance_prompt], [box.editor, box.chosen, box.caption, box.prompt], **QUIET
    )
    gr.on(
        [box.caption.change, instance_prompt.change], prompt_of, [instance_prompt, box.caption], box.prompt,
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    gr.on(
        [box.save.click, box.caption.submit],
        save,
        [session, box.chosen, box.caption],
        box.of_session(),
        **QUIET,
    )
    deleted = box.delete.click(delete, [session, box.chosen], box.of_session(), **QUIET)
    return [added, deleted]


def _report(lines: Sequence[str]) -> str:
    first, *others = map(html.escape, lines)
    if not others:
        return f'<p class="nothing">{first}</p>'
    items = "".join(f"<li>{line.strip()}</li>" for line in others)
    return f'<div class="notes"><b>{first}</b><ul>{items}</ul></div>'


def _guarded(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except UserError as error:
        raise told(error) from None
