"""Tab Extras: pictures that exist already, enlarged: one with a comparison, or many one after the other."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from pydantic import ValidationError

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.jobs import QueueFull
from fastsd_lib.webui.a1111_lists import upscalers
from fastsd_lib.webui.enlarging import Enlarging, Result, zip_of
from fastsd_lib.webui.errands import Errands
from fastsd_lib.webui.extras_api import MOST_PICTURES, ExtrasBody
from fastsd_lib.webui.tabs import shown
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, Receiver, owner_of_page, send_buttons, told
from fastsd_lib.webui.tabs.dropped import dropped_picture
from fastsd_lib.webui.tabs.tab import when_loaded, when_shown

LOOK_S = 0.3
COMPARED_PX = 2048  # both sides of the comparison have at most so many; the file has all
READY = shown.progress("Ready. Drop a picture and press Generate.")
FIELDS = ("resize_mode", "upscaling_resize", "upscaling_resize_w", "upscaling_resize_h", "upscaling_crop", "upscaler_1",
          "upscaler_2", "extras_upscaler_2_visibility")  # fmt: skip


class Orders:
    """The last order of each user, so that a page that was loaded again finds it."""

    def __init__(self, desk: Desk) -> None:
        self.context, self.errands = desk.context, Errands(threads=2, most=16)
        self.folder = desk.context.pictures_dir or desk.tasks.scratch
        self._last: dict[str, Enlarging] = {}

    def of(self, owner: str) -> Enlarging | None:
        return self._last.get(owner)

    def begin(self, owner: str, values: dict[str, Any], pictures: list[str]) -> Enlarging:
        """UserError for values that cannot be, and while an earlier order is under way."""
        last = self._last.get(owner)
        if last is not None and not last.over:
            raise UserError("Your last pictures are still being enlarged.", fix="wait, or press Interrupt.")
        order = Enlarging(
            _body(values), [(Path(one).name, Path(one)) for one in pictures], self.context, self.folder
        )
        self._last[owner] = order
        while len(self._last) > 256:
            del self._last[next(iter(self._last))]
        return order


def _body(values: dict[str, Any]) -> ExtrasBody:
    try:
        return ExtrasBody.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name, said = str(first["loc"][0]).replace("_", " "), first["msg"][:1].lower() + first["msg"][1:]
        raise UserError(f"{name} is {str(first.get('input'))[:80]!r}: {said}.", fix="change it.") from None


def build(desk: Desk) -> None:
    orders = Orders(desk)
    with gr.Row(elem_id="extras", equal_height=False):
        with gr.Column(scale=2, min_width=320):
            batch = gr.State(False)
            with gr.Tabs(elem_id="mode_extras"):
                with gr.Tab("Single image") as one_tab:
                    picture = dropped_picture("Source", "extras_image", 320)
                with gr.Tab("Batch") as many_tab:
                    files = gr.File(
                        label=f"Pictures, up to {MOST_PICTURES}", file_count="multiple", file_types=["image"],
                        elem_id="extras_batch", height=320,
                    )  # fmt: skip
            one_tab.select(lambda: False, None, batch, **AT_ONCE)
            many_tab.select(lambda: True, None, batch, **AT_ONCE)
            fields = _fields(desk)
        with gr.Column(scale=3, min_width=320):
            with gr.Row():
                go = gr.Button(
                    "Generate", variant="primary", elem_id="extras_generate", scale=3, min_width=160
                )
                stop = gr.Button("Interrupt", elem_id="extras_interrupt", scale=1, min_width=100)
            state = gr.HTML(READY, elem_id="extras_state", padding=False)
            compared = gr.ImageSlider(
                label="Before and after", elem_id="extras_compared", format="png", visible=False,
                buttons=["fullscreen"], max_height=560,
            )  # fmt: skip
            gallery = gr.Gallery(
                label="Results", elem_id="extras_gallery", columns=4, height=260, object_fit="contain", visible=False,
                interactive=False, buttons=["download", "fullscreen"],
            )  # fmt: skip
            trouble = gr.HTML(elem_id="extras_trouble", padding=False)
            packed = gr.DownloadButton("Download all as ZIP", elem_id="extras_zip", visible=False, size="sm")
            text = gr.Textbox(
                label="How it was made", lines=2, max_lines=8, interactive=False, buttons=["copy"],
                elem_id="html_info_extras",
            )  # fmt: skip
            chosen = gr.State(None)
            send_buttons(desk, chosen, text, ("img2img", "inpaint"), "extras")
    outputs = [state, compared, gallery, trouble, packed, text, chosen]

    async def generate(
        request: gr.Request, many: bool, path: str | None, paths: list[str] | None, *values: Any
    ) -> Any:
        try:
            order = orders.begin(owner_of_page(request), dict(zip(FIELDS, values, strict=True)),
                                 (paths or []) if many else [path] if path else [])  # fmt: skip
            work = asyncio.ensure_future(orders.errands.run(order.run))
            await asyncio.sleep(0)
            if work.done():
                work.result()
        except QueueFull as error:
            order.end()
            order.over = True
            raise told(error) from None
        except UserError as error:
            raise told(error) from None
        async for seen in _watched(order):
            yield seen

    async def again(request: gr.Request) -> AsyncIterator[list[Any]]:
        yield [gr.skip()] * len(outputs)  # what yields nothing empties them
        order = orders.of(owner_of_page(request))
        if order is not None:
            async for seen in _watched(order):
                yield seen

    def interrupt(request: gr.Request) -> None:
        order = orders.of(owner_of_page(request))
        if order is not None:
            order.end()

    def choose(event: gr.SelectData, request: gr.Request) -> tuple[Any, Any]:
        order = orders.of(owner_of_page(request))
        if order is None or not event.index < len(order.results):
            return gr.skip(), gr.skip()
        result = order.results[event.index]
        return str(result.file), result.parameters

    watched = {**QUIET, "concurrency_limit": None}
    go.click(generate, [batch, picture, files, *fields], outputs, **watched)
    stop.click(interrupt, None, None, **AT_ONCE)
    gallery.select(choose, None, [chosen, text], **AT_ONCE)
    when_loaded(again, outputs, concurrency_limit=None)
    desk.receivers["extras"] = Receiver("extras", "extras", picture)


def _fields(desk: Desk) -> list[gr.components.Component]:
    """In the order of FIELDS."""
    names = _upscalers(desk)
    mode = gr.Radio([("Scale by", 0), ("Scale to", 1)], value=0, label="Size", elem_id="extras_resize_mode")
    with gr.Row(visible=True) as by:
        factor = gr.Slider(1, 8, 4, step=0.05, label="Resize", elem_id="extras_upscaling_resize")
    with gr.Row(visible=False) as to:
        width = gr.Number(512, label="Width", precision=0, minimum=1, maximum=8192, min_width=90,
                          elem_id="extras_upscaling_resize_w")  # fmt: skip
        height = gr.Number(512, label="Height", precision=0, minimum=1, maximum=8192, min_width=90,
                           elem_id="extras_upscaling_resize_h")  # fmt: skip
        crop = gr.Checkbox(True, label="Crop to fit", min_width=110, elem_id="extras_upscaling_crop")
    with gr.Row():
        first = gr.Dropdown(
            names, value="Lanczos", label="Upscaler 1", elem_id="extras_upscaler_1", min_width=140
        )
        second = gr.Dropdown(
            names, value="None", label="Upscaler 2", elem_id="extras_upscaler_2", min_width=140
        )
    share = gr.Slider(
        0, 1, 0, step=0.01, label="Upscaler 2 visibility", elem_id="extras_upscaler_2_visibility"
    )
    mode.change(
        lambda chosen: (gr.Row(visible=chosen == 0), gr.Row(visible=chosen == 1)), mode, [by, to], **AT_ONCE
    )

    def listed() -> list[Any]:
        return [gr.Dropdown(choices=_upscalers(desk)) for _ in range(2)]

    when_shown(listed, [first, second])
    return [mode, factor, width, height, crop, first, second, share]


def _upscalers(desk: Desk) -> list[str]:
    return [row["name"] for row in upscalers(desk.context)]


async def _watched(order: Enlarging) -> AsyncIterator[list[Any]]:
    """What the outputs show, until the order is over. It goes on when nobody watches."""
    known = -1
    while True:
        over = order.over
        results = list(order.results)
        seen = [_state(order), *[gr.skip()] * 6]
        if len(results) != known:
            known = len(results)
            seen[1:] = await asyncio.to_thread(_results, results, len(order.pictures) > 1)
        seen[3] = shown.notes([f"{name}: {why}" for name, why in order.failures], "error", "Left out")
        if over:
            break
        yield seen
        await asyncio.sleep(LOOK_S)
    if len(results) < 2:
        yield seen
        return
    with tempfile.TemporaryDirectory(prefix="fastsd-zip-") as folder:
        place = await asyncio.to_thread(zip_of, [one.file for one in results], Path(folder))
        seen[4] = gr.DownloadButton(value=str(place), visible=True)
        yield seen  # a copy is made for the browser before this goes on


def _state(order: Enlarging) -> str:
    count = len(order.pictures)
    if not order.over:
        name = order.pictures[min(order.number, count - 1)][0]
        words = f"Ending with {name}" if order.ended else f"Enlarging {name}"
        return shown.progress(words, (order.number + order.share) / count, f"{order.number + 1} of {count}")
    done = len(order.results)
    words = f"{done} of {count} enlarged" if count > 1 else "Enlarged" if done else "Nothing was enlarged"
    if done == 1:
        words += f" to {order.results[0].size[0]} x {order.results[0].size[1]}"
    return shown.progress(words + ("; interrupted." if order.ended and done < count else "."))


def _results(results: list[Result], many: bool) -> list[Any]:
    """Of the outputs behind the state."""
    if not results:
        return [gr.ImageSlider(value=None, visible=False), gr.Gallery(value=[], visible=False), "",
                gr.DownloadButton(visible=False), "", None]  # fmt: skip
    last = results[-1]
    pair = gr.ImageSlider(visible=False) if many else gr.ImageSlider(value=_pair(last), visible=True)
    pictures = [(str(one.file), f"{one.name} · {one.size[0]} x {one.size[1]}") for one in results]
    gallery = gr.Gallery(value=pictures, visible=True)
    return [pair, gallery, "", gr.DownloadButton(visible=False), last.parameters, str(last.file)]


def _pair(result: Result) -> tuple[Any, Any]:
    """Both at one size, so that the slider compares the same places."""
    from PIL import Image, ImageOps

    after = Image.open(result.file).convert("RGB")
    after.thumbnail((COMPARED_PX, COMPARED_PX))
    before = ImageOps.exif_transpose(Image.open(result.before)).convert("RGB")
    return ImageOps.fit(before, after.size, Image.Resampling.BICUBIC), after
