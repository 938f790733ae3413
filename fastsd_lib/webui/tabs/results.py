"""The right-hand side of txt2img and img2img: what is being drawn, and what came of it.

The browser names its task, keeps the name, and asks /internal/progress for it (page/tasks.js): so a reload, or a
connection that was lost, loses nothing.
"""

from __future__ import annotations

import html
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import duration
from fastsd_lib.webui.page_tasks import Outcome
from fastsd_lib.webui.tabs.desk import AT_ONCE, Desk, icon_button, owner_of_page, send_buttons, told
from fastsd_lib.webui.tabs.form import Form
from fastsd_lib.webui.tabs.prompt_box import PromptBox

PATIENCE_S = 120.0  # for the files of a task whose drawing is over
SENDS = ("txt2img", "img2img", "inpaint", "extras", "vit")


@dataclass
class ResultPanel:
    """The parts that events write to."""

    kind: str
    progress: gr.HTML
    gallery: gr.Gallery
    picked: gr.File  # the picture that is chosen
    info: gr.Textbox  # its infotext
    texts: gr.JSON  # of all pictures
    said: gr.HTML  # how long it took, what was ignored
    ticket: gr.Textbox  # the task's name

    def shown(self) -> list[gr.components.Component]:
        """What `of` writes to."""
        return [self.gallery, self.picked, self.info, self.texts, self.said]

    def of(self, outcome: Outcome) -> list[Any]:
        """The panel for what a task came to."""
        paths = [str(path) for path in (*outcome.pictures, *outcome.maps)]
        text = outcome.infotexts[0] if outcome.infotexts else ""
        gallery = gr.Gallery(paths, selected_index=0 if len(paths) == 1 else None)
        return [gallery, paths[0] if paths else None, text, outcome.infotexts, _said(outcome)]


def build(desk: Desk, kind: str) -> ResultPanel:
    """Lay out the panel in the current row; `kind`: "txt2img" or "img2img"."""
    with gr.Column(elem_classes=["result"], elem_id=f"{kind}_results"):
        progress = gr.HTML(elem_id=f"{kind}_progress", elem_classes=["task-progress"])
        gallery = gr.Gallery(
            show_label=False, columns=4, object_fit="contain", preview=True, interactive=False,
            elem_id=f"{kind}_gallery", buttons=["download", "fullscreen"],
        )  # fmt: skip
        picked = gr.File(visible="hidden", label="Chosen picture", elem_id=f"{kind}_picked")
        texts = gr.JSON(visible="hidden", elem_id=f"{kind}_infotexts")
        ticket = gr.Textbox(visible="hidden", label="Task", elem_id=f"{kind}_ticket")
        said = gr.HTML(elem_id=f"html_log_{kind}", elem_classes=["said"])
        info = gr.Textbox(
            label="How it was made", lines=3, max_lines=12, interactive=False, buttons=["copy"],
            elem_id=f"html_info_{kind}",
        )  # fmt: skip
        with gr.Row(elem_classes=["deeds"]):
            packed = icon_button("Download all pictures as one zip file", "zip", f"{kind}_save_zip")
            send_buttons(desk, picked, info, [name for name in SENDS if name != kind], kind)
        archive = gr.File(visible="hidden", label="All pictures", elem_id=f"{kind}_zip")
    packed.click(
        lambda pictures: _zip(desk.tasks.scratch, pictures or []), [gallery], [archive], **AT_ONCE
    ).success(None, js=f"() => {{ fastsd.download('{kind}_zip') }}")
    return ResultPanel(kind, progress, gallery, picked, info, texts, said, ticket)


def connect(desk: Desk, form: Form, panel: ResultPanel, box: PromptBox, scripts: Sequence[str] = ()) -> None:
    """Wire the drawing of a tab, once its form is laid out; inputs that are added later are wired, too."""
    kind = panel.kind

    def generate(request: gr.Request, ticket: str, *values: Any) -> str:
        try:
            body = form.body(values)
            body.force_task_id, body.save_images = ticket or None, True
            return desk.tasks.submit(body, owner_of_page(request)).id
        except UserError as error:
            raise told(error) from None

    def collect(request: gr.Request, ticket: str) -> list[Any]:
        task = desk.tasks.find(ticket, owner_of_page(request))
        if task is None or not task.done.wait(PATIENCE_S) or task.outcome is None:
            return [gr.skip() for _ in panel.shown()]
        if task.outcome.error is not None and not task.outcome.pictures:
            raise told(task.outcome.error)
        return panel.of(task.outcome)

    def wire() -> None:
        begun = box.generate.click(
            generate, [panel.ticket, *form.inputs()], [panel.ticket],
            js=f"(...values) => fastsd.begin('{kind}', values)", **AT_ONCE,
        )  # fmt: skip
        begun.success(None, js=f"() => {{ fastsd.follow('{kind}') }}")
        begun.failure(None, js=f"() => {{ fastsd.refused('{kind}') }}")

    form.wirings.append(wire)
    fetched = gr.Button(visible="hidden", elem_id=f"{kind}_collect")
    fetched.click(
        collect, [panel.ticket], panel.shown(), js=f"() => [fastsd.task('{kind}')]", **AT_ONCE
    ).then(None, js=f"() => {{ fastsd.collected('{kind}') }}")

    def interrupt(request: gr.Request, ticket: str) -> None:
        desk.tasks.interrupt(ticket, owner_of_page(request))

    def skip(request: gr.Request, ticket: str) -> None:
        desk.tasks.skip(ticket, owner_of_page(request))

    for button, end in ((box.interrupt, interrupt), (box.skip, skip)):
        button.click(end, [panel.ticket], js=f"() => [fastsd.task('{kind}')]", **AT_ONCE)
    panel.gallery.select(_chosen, [panel.gallery, panel.texts], [panel.picked, panel.info], **AT_ONCE)


def _chosen(chosen: gr.SelectData, pictures: list[Any], texts: list[str] | None) -> list[Any]:
    text = texts[chosen.index] if texts and chosen.index < len(texts) else ""
    return [pictures[chosen.index][0], text]


def _zip(folder: Path, pictures: list[tuple[str, Any]]) -> str:
    """The pictures in one file, as they are."""
    if not pictures:
        raise gr.Error("There are no pictures yet.", print_exception=False, title="Nothing to save")
    path = folder / f"fastsd-{time.strftime('%Y%m%d-%H%M%S')}-{len(pictures)}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number, (picture, _) in enumerate(pictures):
            archive.write(picture, f"{number:02d}-{Path(picture).name}")
    return str(path)


def _said(outcome: Outcome) -> str:
    """How long it took and what is to be said of it, as HTML."""
    count = len(outcome.infotexts) - outcome.info.get("index_of_first_image", 0)
    pictures = "1 picture" if count == 1 else f"{count} pictures"
    begin = f"Stopped with {pictures}" if outcome.stopped else pictures
    lines = [f"<p>{begin} in {duration(outcome.seconds)}</p>" if count else "<p>Stopped.</p>"]
    notes = list(outcome.info.get("warnings", []))
    if outcome.error is not None:
        notes.insert(0, f"{outcome.error.message} {outcome.error.fix}")
    lines += [f'<p class="note">{html.escape(str(note))}</p>' for note in notes]
    return "".join(lines)
