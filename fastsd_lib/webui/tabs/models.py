"""Tab Models: what lies in the library, what is in memory, and what is inside a file. The page names no paths."""

from __future__ import annotations

import asyncio
import html
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.a1111_state import memory_of
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.model_facts import KINDS, Row, find_row, rows_of
from fastsd_lib.webui.model_insides import Inside, look_inside
from fastsd_lib.webui.tabs import shown
from fastsd_lib.webui.tabs.desk import QUIET, Desk, told
from fastsd_lib.webui.tabs.tab import when_shown

LABELS = {"checkpoints": "Checkpoints", "vaes": "VAE", "loras": "LoRA", "embeddings": "Embeddings",
          "controlnets": "ControlNet", "upscalers": "Upscalers"}  # fmt: skip
HEADS = ("Name", "Family", "Size", "Hash", "Where", "Trigger words", "")
NO_FILE = '<p class="nothing">Choose a file to see what is inside.</p>'
MOST_ROWS = 500  # of one table; more are found by their names


def build(desk: Desk) -> None:
    with gr.Row(elem_id="models", equal_height=False):
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_classes=["tools"]):
                kind = gr.Radio(
                    [(label, name) for name, label in LABELS.items()], value="checkpoints", show_label=False,
                    elem_id="models_kind", container=False, scale=4,
                )  # fmt: skip
                refresh = gr.Button("Refresh", size="sm", elem_id="models_refresh", scale=0, min_width=90)
            search = gr.Textbox(
                placeholder="Search by name, family or trigger word", show_label=False, container=False,
                elem_id="models_search", max_lines=1,
            )  # fmt: skip
            table = gr.HTML(elem_id="models_table", padding=False)
        with gr.Column(scale=2, min_width=320):
            name = gr.Dropdown([], label="File", elem_id="models_file", interactive=True)
            with gr.Row():
                load = gr.Button("Load", variant="primary", elem_id="models_load", min_width=90)
                identify = gr.Button("Identify", elem_id="models_identify", min_width=90)
            state = gr.HTML(elem_id="models_state", padding=False)
            inside = gr.HTML(NO_FILE, elem_id="models_inside", padding=False)
            gr.HTML('<h3 class="tab-head">In memory</h3>', padding=False)
            memory = gr.HTML(elem_id="models_memory", padding=False)
            unload = gr.Button("Unload all", size="sm", elem_id="models_unload")

    seen = [table, name, load, memory]
    events: dict[str, Any] = {**QUIET, "concurrency_limit": None}

    def listed(chosen: str, wanted: str, one: str | None) -> list[Any]:
        return show(desk.context, chosen, wanted, one)

    def identified(chosen: str, one: str | None) -> str:
        return _guarded(lambda: inside_of(desk.context, chosen, one))

    async def loaded(chosen: str, wanted: str, one: str | None) -> Any:
        row = _guarded(lambda: find_row(desk.context, "checkpoints", one or ""))
        yield shown.progress(f"Loading {row.name} ..."), *[gr.skip()] * len(seen)
        try:
            await asyncio.wrap_future(desk.context.service.load(row.name))
            await asyncio.to_thread(a1111_settings.apply, desk.context, {"sd_model_checkpoint": row.name})
        except UserError as error:
            raise told(error) from None
        words = f"{row.name} is loaded; it draws what names no other model."
        yield shown.progress(words), *await asyncio.to_thread(show, desk.context, chosen, wanted, one)

    def emptied(chosen: str, wanted: str, one: str | None) -> list[Any]:
        desk.context.service.shelf.unload()
        return [shown.progress("Nothing is kept in memory; the next order loads its model."),
                *show(desk.context, chosen, wanted, one)]  # fmt: skip

    def fresh(chosen: str, wanted: str, one: str | None) -> list[Any]:
        for library in ("networks", "controlnets"):
            if (found := getattr(desk.context.service.shelf.library, library, None)) is not None:
                found.refresh()
        return show(desk.context, chosen, wanted, one)

    inputs = [kind, search, name]
    kind.change(listed, inputs, seen, **events).then(lambda: (NO_FILE, ""), None, [inside, state], **QUIET)
    search.change(listed, inputs, seen, trigger_mode="always_last", **events)
    refresh.click(fresh, inputs, seen, **events)
    identify.click(identified, [kind, name], inside, **events)
    load.click(loaded, inputs, [state, *seen], **events).failure(lambda: "", None, state, **QUIET)
    unload.click(emptied, inputs, [state, *seen], **events)
    when_shown(listed, seen, inputs, concurrency_limit=None)


def show(context: ApiContext, kind: str, wanted: str, chosen: str | None) -> list[Any]:
    """The table, the choice of files, the button that loads, and the memory."""
    kind = kind if kind in KINDS else "checkpoints"
    rows = rows_of(context, kind)
    words = (wanted or "").lower().split()
    found = [row for row in rows if all(word in _said(row) for word in words)]
    empty = f"No {KINDS[kind][0]} is here." if not rows else "Nothing of that name."
    text = shown.table(HEADS, [_cells(row) for row in found[:MOST_ROWS]], empty, "models")
    if len(found) > MOST_ROWS:
        text += f'<p class="nothing">{len(found) - MOST_ROWS} more: search for them by name.</p>'
    names = [row.name for row in rows]
    current = context.service.shelf.current if kind == "checkpoints" else None
    value = chosen if chosen in names else current if current in names else next(iter(names), None)
    return [text, gr.Dropdown(choices=names, value=value, label=f"File: {LABELS[kind]}"),
            gr.Button(interactive=kind == "checkpoints"), _memory(context)]  # fmt: skip


def _said(row: Row) -> str:
    return " ".join((row.name, row.family, row.words, row.place, row.hash, row.note)).lower()


def _cells(row: Row) -> list[shown.Cell]:
    return [(row.name, "name"), row.family, (shown.size(row.size_bytes), "number"), (row.hash, "mono"), row.place,
            (row.words, "words"), (row.note, "note")]  # fmt: skip


def _memory(context: ApiContext) -> str:
    kept = context.service.shelf.memory()
    rows = [
        [(name, "name"), (shown.size(int(mib * 2**20)), "number")] for name, mib in kept["models"].items()
    ]
    ram = memory_of(context)["ram"]
    said = {
        "Room for models": shown.size(kept["budget_mib"] * 2**20),
        "This program": f"{shown.size(ram['used'])} of {shown.size(ram['total'])}",
    }
    if kept["loading"]:
        said["Being read"] = ", ".join(kept["loading"])
    return shown.table(("Model", "Weights"), rows, "No model is in memory.", "memory") + shown.pairs(said)


def inside_of(context: ApiContext, kind: str, name: str | None) -> str:
    """What is inside a file of the library. UserError for one that is not in it."""
    if not name:
        raise UserError("No file is chosen.", fix="choose one of the list.")
    row = find_row(context, kind, name)
    try:
        seen = look_inside(row.path)
    except UserError as error:
        message = error.message.replace(str(row.path), row.path.name)
        raise UserError(message, error.fix.replace(str(row.path), row.path.name)) from None
    return _described(row, seen)


def _described(row: Row, seen: Inside) -> str:
    family = seen.family or row.family
    facts = {
        "What": seen.kind or "not known",
        "Family": family or "not known",
        "For" if seen.kind == "a whole model" else "Variant": seen.use,
        "Layout": seen.layout,
        "Precision": ", ".join(seen.dtypes),
        "Numbers": f"{sum(seen.dtypes.values()):,}",
        "Predicts": seen.prediction if seen.kind == "a whole model" else "",
        "Title": seen.title,
        "Hash": row.hash,
        "Trigger words": row.words,
        "Note": row.note,
    }
    unknown = [one for one in seen.unknown if not (family and one.startswith("the family"))]
    parts = [
        [part, (f"{count:,}", "number"), (shown.size(size), "number")]
        for part, (count, size) in seen.parts.items()
    ]
    more = ""
    if seen.metadata:
        more = (
            f"<details><summary>What the file says of itself</summary>{shown.pairs(seen.metadata)}</details>"
        )
    return (
        f'<h3 class="tab-head">{html.escape(row.name)}</h3>'
        + shown.pairs({key: value for key, value in facts.items() if value})
        + shown.table(("Part", "Tensors", "Size"), parts, "", "parts")
        + shown.notes(seen.warnings)
        + shown.notes(unknown, "plain", "Not known")
        + more
    )


def _guarded(work: Any) -> Any:
    try:
        return work()
    except UserError as error:
        raise told(error) from None
    except OSError as error:
        raise told(
            UserError(f"The file cannot be read: {error.strerror}.", fix="look at its rights.")
        ) from None
