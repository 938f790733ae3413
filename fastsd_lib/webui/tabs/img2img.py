"""The tab img2img: A1111's inner tabs with their pictures, its fields, and what came of them."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.processing_utils import save_pil_to_cache

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.batches import scaled
from fastsd_lib.webui.extras_api import caption_of
from fastsd_lib.webui.tabs import (
    batch,
    control_panel,
    extra_cards,
    prompt_box,
    results,
    sampling,
    scripts_panel,
    sources,
)
from fastsd_lib.webui.tabs.canvas import Drawn, canvas, drawn_of, value_of
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, Receiver, told
from fastsd_lib.webui.tabs.form import Form, as_base64
from fastsd_lib.webui.tabs.sources import LABELS, MASKED, SIDES

MODES: dict[str, Any] = {
    "img2img": "view", "sketch": "colour", "inpaint": "mask", "inpaint_sketch": "colour",
    "inpaint_upload": "view",
}  # fmt: skip
COPIED_TO = ("img2img", "sketch", "inpaint", "inpaint_sketch")
RESIZE_MODES = ["Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)"]
MASKED_CONTENT = ["fill", "original", "latent noise", "latent nothing"]


def build(desk: Desk) -> None:
    """Lay it out inside the current gr.Tab."""
    form = desk.forms["img2img"] = Form("img2img", styles=lambda: known_styles(desk.context))
    box = prompt_box.build(desk, form)
    with gr.Row(elem_classes=["studio"]):
        with gr.Column(elem_classes=["settings"], elem_id="img2img_settings"), gr.Tabs():
            with gr.Tab("Generation", elem_id="img2img_generation"):
                _generation(desk, form)
            extra_cards.build(desk, "img2img")
        panel = results.build(desk, "img2img")
    form.readers.insert(0, sources.read)
    results.connect(desk, form, panel, box)


# ------------------------------------------------------------------ what stands where


def _generation(desk: Desk, form: Form) -> None:
    """The pictures and all fields, and what happens among them."""
    tabs, inner, batches = _sources(form)
    with gr.Row(elem_classes=["send-to"], elem_id="img2img_copy_to") as row:
        copies, ask = _copies()
    masking = _mask_choices(form)
    form.fields["resize_mode"] = gr.Radio(
        _numbered(RESIZE_MODES), value=0, label="Resize mode", elem_id="resize_mode"
    )
    sampling.build_sampler(desk, form)
    measure, hint = _sizes(desk, form)
    sampling.build_batches(desk, form)
    sampling.build_guidance(desk, form)
    form.fields["denoising_strength"] = gr.Slider(
        0, 1, 0.75, step=0.01, label="Denoising strength", buttons=[], elem_id="img2img_denoising_strength"
    )
    sampling.build_seed(desk, form)
    sampling.build_tiling(desk, form)
    control_panel.build(desk, form)
    scripts_panel.build(desk, form)
    _follow(form, inner, masking, row)
    _measure(form, measure, hint)
    _copy(form, tabs, copies)
    _interrogate(desk, form, ask)
    batch.connect(desk, form, batches)
    _receive(desk, form, tabs)


def _sources(form: Form) -> tuple[gr.Tabs, dict[str, gr.Tab], batch.Parts]:
    """The inner tabs, each with its picture or pictures."""
    extras, inner = form.extras, {}
    extras["mode"] = gr.Textbox("img2img", visible="hidden", label="Inner tab", elem_id="img2img_mode")
    with gr.Tabs(elem_id="mode_img2img") as tabs:
        for mode, label in LABELS.items():
            with gr.Tab(label, id=mode, elem_id=f"img2img_{mode}_tab") as inner[mode]:
                if mode == "batch":
                    files = batch.build(form)
                    continue
                extras[f"{mode}_picture"] = canvas(MODES[mode], f"img2img_{mode}_picture", label)
                if mode == "img2img":
                    _outpainting(form)
                elif mode == "inpaint_sketch":
                    extras["mask_alpha"] = gr.Slider(
                        0, 100, 0, step=1, label="Mask transparency", buttons=[], elem_id="img2img_mask_alpha"
                    )
                elif mode == "inpaint_upload":
                    extras["inpaint_upload_mask"] = canvas(
                        "view", "img2img_inpaint_upload_mask", "Mask", tall_px=300
                    )
    return tabs, inner, files


def _copies() -> tuple[dict[str, gr.Button], gr.Button]:
    """Buttons that take the open picture to another inner tab, and the one that puts it into words."""
    copies = {
        name: gr.Button(f"→ {LABELS[name]}", size="sm", min_width=80, elem_id=f"img2img_copy_to_{name}")
        for name in COPIED_TO
    }
    return copies, gr.Button("Interrogate", size="sm", min_width=80, elem_id="img2img_interrogate")


def _outpainting(form: Form) -> None:
    with gr.Accordion("Outpainting", open=False, elem_id="img2img_outpaint"):
        gr.Markdown(
            "Pixels to add at each side. The picture itself stays as it is; a strength of 0.8 or more suits."
        )
        for pair in (SIDES[:2], SIDES[2:]):
            with gr.Row():
                for side in pair:
                    form.extras[f"outpaint_{side}"] = gr.Slider(
                        0, 1024, 0, step=8, label=side.title(), buttons=[], min_width=120,
                        elem_id=f"img2img_outpaint_{side}",
                    )  # fmt: skip
        form.extras["outpaint_overlap"] = gr.Slider(
            0, 128, 8, step=4, label="Overlap drawn anew", buttons=[], elem_id="img2img_outpaint_overlap"
        )


def _mask_choices(form: Form) -> gr.Column:
    fields = form.fields
    with gr.Column(visible=False, elem_id="inpaint_controls") as choices:
        fields["mask_blur"] = gr.Slider(
            0, 64, 4, step=1, label="Mask blur", buttons=[], elem_id="img2img_mask_blur"
        )
        fields["inpainting_mask_invert"] = gr.Radio(
            _numbered(["Inpaint masked", "Inpaint not masked"]), value=0, label="Mask mode",
            elem_id="img2img_mask_mode",
        )  # fmt: skip
        fields["inpainting_fill"] = gr.Radio(
            _numbered(MASKED_CONTENT), value=1, label="Masked content", elem_id="img2img_inpainting_fill"
        )
        fields["inpaint_full_res"] = gr.Radio(
            [("Whole picture", False), ("Only masked", True)], value=False, label="Inpaint area",
            elem_id="img2img_inpaint_full_res",
        )  # fmt: skip
        fields["inpaint_full_res_padding"] = gr.Slider(
            0, 256, 32, step=4, label="Only masked padding, pixels", buttons=[],
            elem_id="img2img_inpaint_full_res_padding",
        )  # fmt: skip
    return choices


def _sizes(desk: Desk, form: Form) -> tuple[gr.Button, gr.HTML]:
    """Resize to, or by. Returns the button that takes the picture's size, and the line that tells the new one."""
    form.extras["resize_tab"] = gr.Textbox("to", visible="hidden", label="Size tab")
    with gr.Tabs(elem_id="img2img_tabs_resize"):
        with gr.Tab("Resize to", elem_id="img2img_tab_resize_to") as to:
            sampling.build_size(desk, form)
            measure = gr.Button("Take the picture's size", size="sm", elem_id="img2img_detect_image_size_btn")
        with gr.Tab("Resize by", elem_id="img2img_tab_resize_by") as by:
            form.extras["scale"] = gr.Slider(
                0.05, 4, 1, step=0.05, label="Scale", buttons=[], elem_id="img2img_scale"
            )
            hint = gr.HTML("", elem_id="img2img_scale_resolution_preview", elem_classes=["hint"])
    for name, tab in (("to", to), ("by", by)):
        tab.select(None, None, form.extras["resize_tab"], js=f"() => '{name}'")
    return measure, hint


def _numbered(labels: list[str]) -> list[tuple[str, int]]:
    return [(label, number) for number, label in enumerate(labels)]


# ------------------------------------------------------------------ what happens


def _follow(form: Form, inner: dict[str, gr.Tab], masking: gr.Column, copies: gr.Row) -> None:
    """What is drawn from is the inner tab that is open."""
    for name, tab in inner.items():
        tab.select(None, None, form.extras["mode"], js=f"() => '{name}'")
        tab.select(
            lambda name=name: [gr.Column(visible=name in MASKED), gr.Row(visible=name != "batch")],
            None,
            [masking, copies],
            **AT_ONCE,
        )


def _measure(form: Form, button: gr.Button, hint: gr.HTML) -> None:
    width, height, scale = form.fields["width"], form.fields["height"], form.extras["scale"]

    def taken(*shown: Any) -> list[int]:
        try:
            sides = scaled(_shown(*shown).picture().size, 1)
        except UserError as error:
            raise told(error) from None
        return [
            min(max(side, slider.minimum), slider.maximum)
            for side, slider in zip(sides, (width, height), strict=True)
        ]

    def said(factor: float, *shown: Any) -> str:
        try:
            old = _shown(*shown).picture().size
        except UserError:
            return ""
        new = scaled(old, factor)
        return f"<p>From {old[0]} × {old[1]} to <b>{new[0]} × {new[1]}</b></p>"

    button.click(taken, _pictures(form), [width, height], **QUIET)
    pictures = [form.extras[f"{mode}_picture"] for mode in MODES]
    gr.on(
        [scale.release, form.extras["mode"].change, *(one.upload for one in pictures)],
        said, [scale, *_pictures(form)], hint, **QUIET,
    )  # fmt: skip


def _copy(form: Form, tabs: gr.Tabs, buttons: dict[str, gr.Button]) -> None:
    for name, button in buttons.items():

        def copied(*shown: Any, name: str = name) -> list[Any]:
            try:
                drawn = _shown(*shown)
                path = drawn.path
                if drawn.layer is not None and MODES[shown[0]] == "colour":
                    cache = form.extras[f"{name}_picture"].GRADIO_CACHE
                    path = save_pil_to_cache(drawn.sketched(), cache, format="png")
            except UserError as error:
                raise told(error) from None
            return [value_of(path), gr.Tabs(selected=name), name]

        button.click(
            copied, _pictures(form), [form.extras[f"{name}_picture"], tabs, form.extras["mode"]], **QUIET
        )


def _interrogate(desk: Desk, form: Form, button: gr.Button) -> None:
    def told_by(*shown: Any) -> str:
        try:
            return caption_of(as_base64(_shown(*shown).path), desk.context)
        except UserError as error:
            raise told(error) from None

    button.click(
        told_by, _pictures(form), form.fields["prompt"], show_progress="minimal", api_visibility="private"
    )


def _receive(desk: Desk, form: Form, tabs: gr.Tabs) -> None:
    for name in ("img2img", "inpaint", "inpaint_upload"):
        desk.receivers[name] = Receiver(
            LABELS[name].lower(), "img2img", picture=form.extras[f"{name}_picture"], form=form,
            value_of=value_of, inner=(tabs, name),
        )  # fmt: skip


def _pictures(form: Form) -> list[Any]:
    return [form.extras["mode"], *(form.extras[f"{mode}_picture"] for mode in MODES)]


def _shown(mode: str, *pictures: Any) -> Drawn:
    """What the open inner tab shows. UserError for nothing."""
    drawn = drawn_of(dict(zip(MODES, pictures, strict=True)).get(mode))
    if drawn is None:
        raise UserError(f"There is no picture in the tab {LABELS[mode]}.", fix="drop one there first.")
    return drawn
