"""The tab txt2img: A1111's fields on the left, what came of them on the right."""

from __future__ import annotations

import gradio as gr

from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.tabs import (
    control_panel,
    extra_cards,
    hires_box,
    prompt_box,
    results,
    sampling,
    scripts_panel,
)
from fastsd_lib.webui.tabs.desk import Desk, Receiver
from fastsd_lib.webui.tabs.form import Form


def build(desk: Desk) -> None:
    """Lay it out inside the current gr.Tab."""
    form = desk.forms["txt2img"] = Form("txt2img", styles=lambda: known_styles(desk.context))
    box = prompt_box.build(desk, form)
    with gr.Row(elem_classes=["studio"]):
        with gr.Column(elem_classes=["settings"], elem_id="txt2img_settings"), gr.Tabs():
            with gr.Tab("Generation", elem_id="txt2img_generation"):
                sampling.build_sampler(desk, form)
                sampling.build_size(desk, form)
                sampling.build_batches(desk, form)
                sampling.build_guidance(desk, form)
                sampling.build_seed(desk, form)
                sampling.build_tiling(desk, form)
                hires_box.build(desk, form)
                control_panel.build(desk, form)
                scripts_panel.build(desk, form)
            extra_cards.build(desk, "txt2img")
        panel = results.build(desk, "txt2img")
    desk.receivers["txt2img"] = Receiver("txt2img", "txt2img", form=form)
    results.connect(desk, form, panel, box)
