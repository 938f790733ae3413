"""Tab History: jobs of earlier with their pictures; found, looked at, compared, taken up again, forgotten."""

from __future__ import annotations

import html
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui import past
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.look import PAGE
from fastsd_lib.webui.tabs import shown
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, owner_of_page, send_buttons, told
from fastsd_lib.webui.tabs.tab import when_shown

STATES = [("All", ""), ("Done", "done"), ("Stopped", "stopped"), ("Failed", "failed"), ("Lost", "lost")]
NOTHING = '<p class="nothing">Choose a picture to see how it was made.</p>'


def build(desk: Desk) -> None:
    context, now, job, held = desk.context, gr.State(1), gr.State(""), gr.State(None)
    with gr.Row(elem_id="history", equal_height=False):
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_classes=["tools"]):
                search = gr.Textbox(
                    placeholder="Search in prompts and settings", show_label=False, container=False, max_lines=1,
                    elem_id="history_search", scale=3, min_width=160,
                )  # fmt: skip
                state = gr.Dropdown(STATES, value="", show_label=False, container=False, min_width=110, scale=1,
                                    elem_id="history_state")  # fmt: skip
            tiles = gr.HTML(
                elem_id="history_tiles", padding=False, js_on_load=(PAGE / "tiles.js").read_text("utf-8")
            )
            with gr.Row(elem_classes=["pager"]):
                newer = gr.Button("← Newer", size="sm", min_width=80, elem_id="history_newer")
                where = gr.HTML(elem_id="history_where", padding=False)
                older = gr.Button("Older →", size="sm", min_width=80, elem_id="history_older")
        with gr.Column(scale=2, min_width=320):
            detail = _detail(desk)
    page = [tiles, where, newer, older, now]
    asked = [search, state, now]
    events: dict[str, Any] = {**QUIET, "concurrency_limit": None}

    def turned(by: int) -> Any:
        def show(text: str, which: str, number: int, request: gr.Request) -> list[Any]:
            return _page(context, owner_of_page(request), text, which, number + by if by else 1)

        return show

    def same(text: str, which: str, number: int, request: gr.Request) -> list[Any]:
        return _page(context, owner_of_page(request), text, which, number)

    def chosen(event: gr.EventData, request: gr.Request) -> list[Any]:
        job_id = str(event._data.get("job", ""))[:64] if isinstance(event._data, dict) else ""
        return _looked_at(context, owner_of_page(request), job_id)

    for event in (search.submit, state.change):
        event(turned(0), asked, page, **events)
    search.change(turned(0), asked, page, trigger_mode="always_last", **events)
    newer.click(turned(-1), asked, page, **events)
    older.click(turned(1), asked, page, **events)
    when_shown(same, page, asked, concurrency_limit=None)
    tiles.click(chosen, None, [job, *detail.outputs], **events)
    detail.connect(desk, job, held, same, asked, page)


class _Parts:
    """The right-hand side: one job."""

    about: gr.HTML
    gallery: gr.Gallery
    text: gr.Textbox
    file: gr.State
    send: gr.Column
    given: gr.Image
    over: gr.Column
    repeat: gr.Button
    hold: gr.Button
    compared: gr.HTML
    forget: gr.Button
    with_files: gr.Checkbox

    @property
    def outputs(self) -> list[Any]:
        return [self.about, self.gallery, self.text, self.file, self.send, self.given, self.over]

    def connect(
        self, desk: Desk, job: gr.State, held: gr.State, same: Any, asked: list[Any], page: list[Any]
    ) -> None:
        context = desk.context
        events: dict[str, Any] = {**QUIET, "concurrency_limit": None}

        def picked(job_id: str, event: gr.SelectData, request: gr.Request) -> tuple[Any, Any]:
            entry = _mine(context, request, job_id)
            files = past.files_of(entry, context)
            if not event.index < len(files):
                return gr.skip(), gr.skip()
            return past.text_of(entry, event.index), str(files[event.index])

        def again(job_id: str, request: gr.Request) -> str:
            try:
                past.repeat(context, owner_of_page(request), job_id)
            except UserError as error:
                raise told(error) from None
            return shown.progress(
                "Ordered again; the tab Queue shows it, and its pictures will be listed here."
            )

        def away(job_id: str, files: bool, request: gr.Request) -> list[Any]:
            try:
                gone, left = past.forget(context, owner_of_page(request), job_id, files)
            except UserError as error:
                raise told(error) from None
            words = "Forgotten." + (f" {gone} file{'s' * (gone != 1)} deleted." if files else "")
            about = shown.progress(words) + shown.notes(
                [f"{name} stays: it does not say that this job made it." for name in left]
            )
            return ["", about, *_nothing()[1:]]

        def compare(
            job_id: str, file: str | None, text: str, first: Any, request: gr.Request
        ) -> tuple[Any, Any, Any]:
            if not job_id:
                raise told(UserError("No job is chosen.", fix="choose one on the left."))
            this = (job_id, file, text)
            if first is None:
                return (
                    this,
                    gr.Button("Compare with the held one"),
                    shown.progress("Held. Choose another one, then compare."),
                )
            return None, gr.Button("Hold to compare"), _side_by_side(context, request, first, this)

        self.gallery.select(picked, job, [self.text, self.file], **AT_ONCE)
        self.repeat.click(again, job, self.compared, **events)
        gone = self.forget.click(away, [job, self.with_files], [job, *self.outputs], **events)
        gone.success(same, asked, page, **events)
        self.hold.click(
            compare, [job, self.file, self.text, held], [held, self.hold, self.compared], **events
        )


def _detail(desk: Desk) -> _Parts:
    parts = _Parts()
    parts.about = gr.HTML(NOTHING, elem_id="history_about", padding=False)
    parts.file = gr.State(None)
    parts.gallery = gr.Gallery(
        show_label=False, elem_id="history_gallery", columns=3, height=380, object_fit="contain", interactive=False,
        visible=False, buttons=["download", "fullscreen"], preview=True,
    )  # fmt: skip
    with gr.Column(visible=False, elem_id="history_detail") as parts.send:
        parts.text = gr.Textbox(
            label="How it was made", lines=4, max_lines=12, interactive=False, buttons=["copy"],
            elem_id="html_info_history",
        )  # fmt: skip
        send_buttons(desk, parts.file, parts.text, ("txt2img", "img2img", "inpaint", "extras"), "history")
        with gr.Row():
            parts.repeat = gr.Button("Repeat exactly", size="sm", elem_id="history_repeat", min_width=110)
            parts.hold = gr.Button("Hold to compare", size="sm", elem_id="history_hold", min_width=110)
        with gr.Row(elem_classes=["forget"]):
            parts.forget = gr.Button(
                "Forget this job", size="sm", variant="stop", elem_id="history_forget", min_width=110
            )
            parts.with_files = gr.Checkbox(
                False,
                label="and delete its picture files",
                container=False,
                elem_id="history_with_files",
                min_width=160,
            )
    with gr.Column(visible=False, elem_id="history_over") as parts.over:
        parts.given = gr.Image(
            label="Drawn over", type="filepath", format="png", interactive=False, height=220, elem_id="history_given",
            buttons=["download", "fullscreen"],
        )  # fmt: skip
        send_buttons(desk, parts.given, parts.text, ("img2img", "inpaint"), "history_given")
    parts.compared = gr.HTML(elem_id="history_compared", padding=False)
    return parts


# ------------------------------------------------------------------ what is shown


def _page(context: ApiContext, owner: str, text: str, state: str, number: int) -> list[Any]:
    try:
        found = past.find(context, owner, text or "", state or "", int(number or 1))
    except UserError as error:
        raise told(error) from None
    tiles = "".join(_tile(entry, context) for entry in found.entries)
    empty = "Nothing was drawn yet." if not (text or state) else "Nothing of that kind."
    listed = f'<div class="tiles">{tiles}</div>' if tiles else f'<p class="nothing">{empty}</p>'
    jobs = f"{found.count:,} job{'s' * (found.count != 1)}"
    where = f"<p>{jobs} · page {found.page} of {found.pages}</p>"
    return [listed, where, gr.Button(interactive=found.page > 1), gr.Button(interactive=found.page < found.pages),
            found.page]  # fmt: skip


def _tile(entry: Mapping[str, Any], context: ApiContext) -> str:
    picture = past.thumbnail(entry, context)
    state = entry["state"]
    inner = f'<img src="{picture}" alt="">' if picture else f"<i>{html.escape(_without(entry))}</i>"
    count = len(entry["infotexts"])
    marks = f"<b>{count}</b>" if count > 1 else ""
    marks += f'<em class="{state}">{state}</em>' if state != "done" else ""
    prompt = entry["prompt"].strip() or "(no prompt)"
    return (
        f'<button type="button" class="tile" data-job="{html.escape(entry["id"], quote=True)}"'
        f' title="{html.escape(prompt[:400], quote=True)}"><span class="look">{inner}{marks}</span>'
        f'<span class="what">{html.escape(prompt[:120])}</span><span class="when">{_when(entry)}</span></button>'
    )


def _without(entry: Mapping[str, Any]) -> str:
    """Why there is no picture."""
    if entry["files"]:
        return "its files are gone"
    return "not saved as a file" if entry["infotexts"] else "no picture"


def _when(entry: Mapping[str, Any]) -> str:
    return time.strftime("%d %b %H:%M", time.localtime(entry["created_s"] or 0))


def _looked_at(context: ApiContext, owner: str, job_id: str) -> list[Any]:
    try:
        entry = past.entry_of(context, owner, job_id)
    except UserError as error:
        raise told(error) from None
    files = past.files_of(entry, context)
    facts = {
        "State": entry["state"],
        "Drawn": time.strftime("%d %b %Y, %H:%M:%S", time.localtime(entry["created_s"] or 0)),
        "Took": f"{entry['finished_s'] - entry['started_s']:.1f} s"
        if entry["finished_s"] and entry["started_s"]
        else "",
        "Kind": entry["kind"],
        "Model": entry["model"],
        "Pictures": str(len(entry["infotexts"])),
        "Files": ", ".join(Path(file).name for file in files) or _without(entry),
        "User": entry["owner"],
    }
    about = shown.pairs({key: value for key, value in facts.items() if value})
    about += shown.notes([entry["error"]], "error") if entry["error"] else ""
    gallery = gr.Gallery(
        value=[str(file) for file in files], visible=bool(files), selected_index=0 if files else None
    )
    file = str(files[0]) if files else None
    given, trouble = _given(context, owner, entry)
    about += trouble
    return [entry["id"], about, gallery, past.text_of(entry), file, gr.Column(visible=True), given,
            gr.Column(visible=given is not None)]  # fmt: skip


def _given(context: ApiContext, owner: str, entry: Mapping[str, Any]) -> tuple[Any, str]:
    """What it was drawn over, if anything; a note when that is not kept any more."""
    if not entry["request"].get("init"):
        return None, ""
    try:
        return past.given_pictures(context, owner, entry["id"])[0], ""
    except UserError as error:
        return None, shown.notes([error.message])


def _nothing() -> list[Any]:
    return [
        NOTHING,
        gr.Gallery(value=[], visible=False),
        "",
        None,
        gr.Column(visible=False),
        None,
        gr.Column(visible=False),
    ]


def _mine(context: ApiContext, request: gr.Request, job_id: str) -> dict[str, Any]:
    try:
        return past.entry_of(context, owner_of_page(request), job_id)
    except UserError as error:
        raise told(error) from None


def _side_by_side(context: ApiContext, request: gr.Request, *two: tuple[str, str | None, str]) -> str:
    columns = ""
    for job_id, file, _ in two:
        entry = _mine(context, request, job_id)
        picture = past.picture_uri(entry, context, file)
        inner = f'<img src="{picture}" alt="">' if picture else f"<i>{html.escape(_without(entry))}</i>"
        columns += f"<figure>{inner}<figcaption>{_when(entry)}</figcaption></figure>"
    rows = [[(key, "name"), one, other] for key, one, other in past.differences(two[0][2], two[1][2])]
    table = shown.table(
        ("Setting", "First", "Second"), rows, "They were made alike, setting by setting.", "compare"
    )
    return f'<div class="side-by-side">{columns}</div>{table}'
