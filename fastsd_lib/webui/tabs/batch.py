"""The inner tab Batch of img2img: files instead of one picture, drawn one after the other by webui/batches.py."""

from __future__ import annotations

import html
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.context import Context

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import duration
from fastsd_lib.webui.batches import Batch, matched, zip_of
from fastsd_lib.webui.tabs.desk import AT_ONCE, Desk, owner_of_page, told
from fastsd_lib.webui.tabs.form import Form

TICK_S = 0.7
KEY = "fastsd.img2img.batch"  # in the browser, the number of its latest batch: a reload finds it
KEPT = 20  # batches that are over, for pages that come back
SHOWN = 24  # pictures beside the progress, the newest first
PICTURES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif"]


class Batches:
    """Those of one page's server, by number."""

    def __init__(self) -> None:
        self._all: OrderedDict[str, Batch] = OrderedDict()
        self._lock = threading.Lock()

    def begin(self, batch: Batch) -> str:
        name = f"{batch.started:.6f}"
        with self._lock:
            self._all[name] = batch
            over = [one for one, kept in self._all.items() if kept.over]
            for old in over[: max(len(over) - KEPT, 0)]:
                del self._all[old]
        threading.Thread(target=batch.run, name="batch", daemon=True).start()
        return name

    def find(self, name: str | None, owner: str) -> Batch | None:
        with self._lock:
            batch = self._all.get(name or "")
        return batch if batch is not None and batch.owner == owner else None


@dataclass
class Parts:
    """The components that events read and write."""

    go: gr.Button
    end: gr.Button
    skip: gr.Button
    number: gr.Textbox  # of this browser's latest batch
    clock: gr.Timer
    said: gr.HTML
    gallery: gr.Gallery
    archive: gr.File

    def shown(self) -> list[Any]:
        return [self.said, self.gallery, self.archive, self.clock]


def build(form: Form) -> Parts:
    """Lay it out inside the current gr.Tab."""
    many: dict[str, Any] = {"file_count": "multiple", "file_types": PICTURES, "height": 150}
    for name, label in (("pictures", "Pictures"), ("masks", "Masks"), ("controls", "For ControlNet")):
        with (
            nullcontext()
            if name == "pictures"
            else gr.Accordion(f"{label}: one for all, or of the same names", open=False)
        ):
            form.extras[f"batch_{name}"] = gr.File(label=label, elem_id=f"img2img_batch_{name}", **many)
    with gr.Row():
        go = gr.Button("Draw all", variant="primary", elem_id="img2img_batch_go", size="md", min_width=120)
        end = gr.Button("Interrupt", elem_id="img2img_batch_interrupt", size="md", min_width=80)
        skip = gr.Button("Skip", elem_id="img2img_batch_skip", size="md", min_width=60)
    said = gr.HTML("", elem_id="img2img_batch_said", elem_classes=["said"])
    gallery = gr.Gallery(
        show_label=False, columns=4, object_fit="contain", interactive=False, visible=False,
        elem_id="img2img_batch_gallery", buttons=["download", "fullscreen"],
    )  # fmt: skip
    archive = gr.File(label="All of them", visible=False, interactive=False, elem_id="img2img_batch_archive")
    number = gr.Textbox(visible="hidden", label="Batch")
    return Parts(go, end, skip, number, gr.Timer(TICK_S, active=False), said, gallery, archive)


def connect(desk: Desk, form: Form, parts: Parts) -> None:
    """Wire it, once the form is laid out."""
    batches = Batches()

    def begin(request: gr.Request, *values: Any) -> list[Any]:
        try:
            batch = batches.begin(_batch(desk, form, values, owner_of_page(request)))
        except UserError as error:
            raise told(error) from None
        return [batch, gr.Timer(active=True)]

    def look(request: gr.Request, number: str | None) -> list[Any]:
        batch = batches.find(number, owner_of_page(request))
        return [gr.skip()] * 3 + [gr.Timer(active=False)] if batch is None else _state(batch)

    def found(request: gr.Request, number: str | None) -> list[Any]:
        return [number, *look(request, number)]

    def end(request: gr.Request, number: str | None) -> None:
        if batch := batches.find(number, owner_of_page(request)):
            batch.end()

    def skip(request: gr.Request, number: str | None) -> None:
        if batch := batches.find(number, owner_of_page(request)):
            batch.skip()

    def wire() -> None:
        begun = parts.go.click(begin, form.inputs(), [parts.number, parts.clock], **AT_ONCE)
        begun.success(None, parts.number, None, js=f"(number) => localStorage.setItem('{KEY}', number)")

    form.wirings.append(wire)
    parts.clock.tick(look, parts.number, parts.shown(), **AT_ONCE)
    parts.end.click(end, parts.number, None, **AT_ONCE)
    parts.skip.click(skip, parts.number, None, **AT_ONCE)
    Context.root_block.load(
        found, parts.number,
        [parts.number, *parts.shown()], js=f"() => [localStorage.getItem('{KEY}') || '']", **AT_ONCE,
    )  # fmt: skip


def _batch(desk: Desk, form: Form, values: Sequence[Any], owner: str) -> Batch:
    named = dict(zip([*form.fields, *form.extras], values, strict=True))
    files = {
        name: [(Path(path).name, Path(path)) for path in named[f"batch_{name}"] or []]
        for name in ("pictures", "masks", "controls")
    }
    scale = named["scale"] if named["resize_tab"] == "by" else None
    return Batch(desk.tasks, form.body(values), matched(**files), owner, scale)


def _state(batch: Batch) -> list[Any]:
    """What the page shows of it now."""
    files = [str(path) for path in reversed(batch.results) if path.is_file()]
    archive = gr.skip()
    if batch.over:
        archive = gr.File(str(zip_of(batch)), visible=True) if files else gr.File(None, visible=False)
    gallery = gr.Gallery(files[:SHOWN], visible=bool(files))
    return [_said(batch), gallery, archive, gr.Timer(active=not batch.over)]


def _said(batch: Batch) -> str:
    """How far it is, and a line for each file that could not be drawn."""
    count, share = len(batch.pictures), batch.number / len(batch.pictures)
    if batch.over:
        first = "Interrupted with" if batch.ended else "Done:"
        line = f"{first} {len(batch.results)} of {count} drawn in {duration(batch.seconds)}"
    else:
        jobs = batch.task.jobs if batch.task else []
        share += sum(job.share for job in jobs) / max(len(jobs), 1) / count
        line = f"Picture {min(batch.number + 1, count)} of {count}"
    lines = [
        f'<div class="line"><span>{line}</span><span>{len(batch.failures) or "none"} failed</span></div>',
        f'<div class="bar"><i style="width:{100 * min(share, 1):.1f}%"></i></div>',
    ]
    lines += [f'<p class="note">{html.escape(f"{name}: {why}")}</p>' for name, why in batch.failures]
    return f'<div class="line-and-bar">{lines[0]}{lines[1]}</div>' + "".join(lines[2:])
