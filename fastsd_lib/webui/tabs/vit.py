"""Tab ViT: what a picture shows, what the model looked at, and which pictures of a collection are like it."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.a1111_pictures import open_picture
from fastsd_lib.webui.tabs import shown
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, Receiver, send_buttons, told
from fastsd_lib.webui.tabs.dropped import bytes_of, dropped_picture
from fastsd_lib.webui.tabs.tab import when_shown
from fastsd_lib.webui.vit_looks import VitLooks

if TYPE_CHECKING:
    from fastsd_lib.vit.predictions import Prediction

#: What the ways of looking inside are called, and which of them are ticked.
WAYS = {
    "patches": "Patches",
    "attention": "Attention by layer",
    "heads": "Heads of the last layer",
    "rollout": "Attention rollout",
    "relevance": "Relevance",
    "gradcam": "Grad-CAM",
    "occlusion": "Occlusion",
    "faithfulness": "Does it explain?",
    "positions": "Position similarity",
}
TICKED = ("patches", "rollout", "gradcam")
TOLD = 5  # labels
NO_INDEX, FIRST = "None", "What it says first"
SHOWN_PX, SENT_PX = 320, 2048  # long side of a neighbour: on the page, and when it is sent on
READY = shown.progress("Ready. Drop a picture and press Look.")


def build(desk: Desk) -> None:
    looks = VitLooks(getattr(desk.context.service.shelf.folders, "vits", ()))
    with gr.Row(elem_id="vit", equal_height=False):
        with gr.Column(scale=2, min_width=320):
            picture = dropped_picture("Picture", "vit_image", 320)
            model = gr.Dropdown(
                looks.models(), value=_first(looks.models()), label="Model", elem_id="vit_model", allow_custom_value=True,
                info="From models/ViT of the library, or by its name on the Hub",
            )  # fmt: skip
            ways = gr.CheckboxGroup(
                [(label, way) for way, label in WAYS.items()],
                value=list(TICKED),
                label="Look inside",
                elem_id="vit_ways",
            )
            target = gr.Dropdown([FIRST], value=FIRST, label="Which class to explain", elem_id="vit_target")
            with gr.Row():
                index = gr.Dropdown(
                    [NO_INDEX, *looks.indexes()], value=NO_INDEX, label="Pictures like it, from", elem_id="vit_index",
                    min_width=160,
                )  # fmt: skip
                count = gr.Slider(1, 48, 12, step=1, label="How many", elem_id="vit_count", min_width=120)
        with gr.Column(scale=3, min_width=320):
            go = gr.Button("Look", variant="primary", elem_id="vit_go")
            state = gr.HTML(READY, elem_id="vit_state", padding=False)
            labels = gr.HTML(elem_id="vit_labels", padding=False)
            inside_head = gr.HTML(_head("Inside the model"), visible=False, padding=False)
            inside = gr.Gallery(
                show_label=False, elem_id="vit_inside", columns=2, height="auto", object_fit="contain",
                visible=False, interactive=False, buttons=["download", "fullscreen"],
            )  # fmt: skip
            like_head = gr.HTML(visible=False, padding=False)
            like = gr.Gallery(
                show_label=False, elem_id="vit_neighbours", columns=4, height="auto", object_fit="cover",
                visible=False, interactive=False, allow_preview=False, buttons=[],
            )  # fmt: skip
            chosen_line = gr.HTML(elem_id="vit_chosen", padding=False)
            found, chosen = gr.State([]), gr.State(None)
            nothing = gr.State("")
            with gr.Column(visible=False, elem_id="vit_send") as sending:
                send_buttons(desk, chosen, nothing, ("img2img", "inpaint", "extras"), "vit")

    outputs = [state, labels, inside_head, inside, like_head, like, found, chosen, chosen_line, sending]
    work: dict[str, Any] = {**QUIET, "concurrency_limit": 2, "concurrency_id": "vit"}

    def look(path: str | None, *asked: Any) -> Iterator[list[Any]]:
        try:
            yield from looked(desk, looks, path, *asked)
        except UserError as error:
            raise told(error) from None

    def choose(event: gr.SelectData, places: list[tuple[str, str]]) -> list[Any]:
        if not event.index < len(places):
            return [gr.skip()] * 3
        name, place = places[event.index]
        copy = _copy(Path(place), desk) if place else None
        line = f'<p class="nothing">{html.escape(name)}{"" if copy else " is no longer there"}</p>'
        return [str(copy) if copy else None, line, gr.Column(visible=copy is not None)]

    def of_model(name: str, ticked: list[str]) -> list[Any]:
        return fitting(looks, name, ticked)

    def listed(name: str | None, chosen_index: str | None) -> list[Any]:
        models, indexes = looks.models(), [NO_INDEX, *looks.indexes()]
        return [gr.Dropdown(choices=models, value=name or _first(models)),
                gr.Dropdown(choices=indexes, value=chosen_index if chosen_index in indexes else NO_INDEX)]  # fmt: skip

    asked = go.click(look, [picture, model, ways, target, index, count], outputs, **work)
    asked.failure(lambda: READY, None, state, **AT_ONCE)
    model.input(of_model, [model, ways], [ways, target], **work)
    picture.change(lambda: [READY, "", *_empty()], None, outputs, **AT_ONCE)
    like.select(choose, found, [chosen, chosen_line, sending], **AT_ONCE)
    when_shown(listed, [model, index], [model, index], concurrency_limit=None)
    desk.receivers["vit"] = Receiver("ViT", "vit", picture)


def looked(
    desk: Desk,
    looks: VitLooks,
    path: str | None,
    name: str,
    ways: list[str],
    target: str,
    index: str,
    count: int,
) -> Iterator[list[Any]]:
    """What the outputs show, part by part as it comes. UserError for what cannot be."""
    limits = desk.context.limits
    data = bytes_of(path, limits.picture_bytes)
    open_picture(data, "The picture", limits).close()  # says what is wrong with it
    nothing = _empty()
    yield [shown.progress(f"Looking with {name} ..."), "", *nothing]
    prediction = looks.labels(name, data, "The picture")
    seen = [bars(prediction), *nothing]
    pictures: list[Any] = []
    wanted = [way for way in WAYS if way in (ways or ()) and way in looks.ways(name)]
    for number, way in enumerate(wanted):
        yield [shown.progress(f"Looking inside: {WAYS[way]}", number / len(wanted)), *seen]
        explained = None if target in (None, "", FIRST) else target
        pictures.append(looks.inside(name, data, [way], explained)[way])
        columns = 1 if len(wanted) == 1 else 2
        seen[1:3] = [gr.HTML(visible=True), gr.Gallery(pictures, visible=True, columns=columns)]
    if index and index != NO_INDEX:
        yield [shown.progress(f"Searching in {index} ..."), *seen]
        near = looks.neighbours(name, index, data, int(count))
        head = f"Like it in {html.escape(index)}; press one to send it on"
        seen[3:5] = [gr.HTML(_head(head), visible=True), gr.Gallery(_thumbnails(near), visible=True)]
        seen[5] = [(one.key, str(one.place or "")) for one in near]
    yield [shown.progress(f"{name} looked at the picture."), *seen]


def bars(prediction: Prediction) -> str:
    """Labels with bars, the likeliest first."""
    rows = "".join(
        f'<li><span class="name">{html.escape(label)}</span><span class="share">{score:.1%}</span>'
        f'<span class="bar"><i style="width:{min(max(score, 0), 1):.1%}"></i></span></li>'
        for label, score in zip(prediction.labels[:TOLD], prediction.scores, strict=False)
    )
    return f'<ol class="vit-labels" aria-label="What the picture shows">{rows}</ol>'


def fitting(looks: VitLooks, name: str, ticked: list[str]) -> list[Any]:
    """The choices that this model has: ways to look inside, classes to explain."""
    try:
        known, labels = looks.ways(name), looks.opened(name).model.labels
    except UserError as error:
        raise told(error) from None
    choices = [(label, way) for way, label in WAYS.items() if way in known]
    kept = [way for way in ticked or () if way in known]
    return [gr.CheckboxGroup(choices=choices, value=kept), gr.Dropdown(choices=[FIRST, *labels], value=FIRST)]


def _empty() -> list[Any]:
    """Of the outputs behind the labels."""
    return [gr.HTML(visible=False), gr.Gallery([], visible=False), gr.HTML(visible=False),
            gr.Gallery([], visible=False, selected_index=None), [], None, "", gr.Column(visible=False)]  # fmt: skip


def _head(words: str) -> str:
    return f'<h3 class="tab-head">{words}</h3>'


def _first(names: list[str]) -> str | None:
    return next(iter(names), None)


def _thumbnails(near: list[Any]) -> list[tuple[Any, str]]:
    from PIL import Image

    from fastsd_lib.vit.neighbours_picture import thumbnail

    gone = Image.new("RGB", (SHOWN_PX, SHOWN_PX), (148, 163, 184))
    return [
        (thumbnail(one.place, SHOWN_PX) or gone, f"{one.score:.3f}  {Path(one.key).stem[:14]}")
        for one in near
    ]


def _copy(place: Path, desk: Desk) -> Path | None:
    """A neighbour as a picture of the page's own: the collection itself is never served."""
    from fastsd_lib.vit.neighbours_picture import thumbnail

    picture = thumbnail(place, SENT_PX)
    if picture is None:
        return None
    file = desk.tasks.scratch / f"vit-{abs(hash((place, place.stat().st_mtime_ns))):x}.png"
    picture.save(file, compress_level=1)
    return file
