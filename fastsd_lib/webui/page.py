"""What stands where on the page."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from fastsd_lib.generation.engine import GUIDANCE_SCALE
from fastsd_lib.generation.request import MAX_SEED
from fastsd_lib.generation.samplers import SAMPLERS
from fastsd_lib.webui.drawing import state

READY = "Ready. Write what you want to see."


@dataclass(frozen=True)
class Page:
    """The parts of the page that something happens with."""

    prompt: gr.Textbox
    negative: gr.Textbox
    go: gr.Button
    stop: gr.Button
    steps: gr.Slider
    count: gr.Slider
    guidance: gr.Slider
    sampler: gr.Dropdown
    seed: gr.Number
    dice: gr.Button
    width: gr.Number
    height: gr.Number
    progress: gr.HTML
    gallery: gr.Gallery
    record: gr.Textbox


def lay_out(model: str, side_px: int, vae_factor: int, defaults: Mapping[str, Any]) -> Page:
    """Build the page inside the current gr.Blocks; `defaults` is how the model likes to be asked."""
    about = f"{html.escape(model)} · {side_px} px"
    gr.HTML(f'<div class="title"><b>fastsd</b><span>{about}</span></div>', elem_id="head", padding=False)
    with gr.Row(elem_id="studio"):
        return Page(**_ask(), **_settings(side_px, vae_factor, defaults), **_result())


def _ask() -> dict[str, Any]:
    with gr.Column(elem_id="ask"):
        with gr.Group():
            prompt = gr.Textbox(label="Prompt", lines=3, autofocus=True, placeholder="a photo of a cat")
            negative = gr.Textbox(label="Negative prompt", placeholder="what should not be there")
        with gr.Row():
            go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3, min_width=160)
            stop = gr.Button("Stop", interactive=False, elem_id="stop", scale=1, min_width=90)
    return {"prompt": prompt, "negative": negative, "go": go, "stop": stop}


def _settings(side_px: int, vae_factor: int, defaults: Mapping[str, Any]) -> dict[str, Any]:
    usual_steps = defaults.get("inference_steps", 25)
    usual_guidance = defaults.get("guidance_scale", GUIDANCE_SCALE)
    samplers = [(entry.label, name) for name, entry in SAMPLERS.items()]
    with gr.Column(elem_id="settings"):
        with gr.Row():
            steps = gr.Slider(1, 100, usual_steps, step=1, label="Steps", buttons=[])
            count = gr.Slider(1, 16, 1, step=1, label="Pictures", buttons=[])
        with gr.Row():
            guidance = gr.Slider(1, 20, usual_guidance, step=0.5, label="Guidance", buttons=[])
            sampler = gr.Dropdown(samplers, value="ddim", label="Sampler")
        with gr.Row():
            seed = gr.Number(42, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, scale=3)
            dice = gr.Button("New seed", elem_id="dice", scale=1, min_width=110)
        with gr.Accordion("Size", open=False), gr.Row():
            width = gr.Number(side_px, label="Width", precision=0, step=vae_factor)
            height = gr.Number(side_px, label="Height", precision=0, step=vae_factor)
    return {
        "steps": steps, "count": count, "guidance": guidance, "sampler": sampler, "seed": seed, "dice": dice,
        "width": width, "height": height,
    }  # fmt: skip


def _result() -> dict[str, Any]:
    with gr.Column(elem_id="result"):
        progress = gr.HTML(state(READY), elem_id="state", padding=False)
        gallery = gr.Gallery(
            show_label=False, columns=4, height=500, object_fit="contain", elem_id="pictures",
            interactive=False, buttons=["download", "fullscreen"],
        )  # fmt: skip
        record = gr.Textbox(
            label="How it was made",
            lines=3,
            max_lines=6,
            interactive=False,
            buttons=["copy"],
            elem_id="record",
        )
    return {"progress": progress, "gallery": gallery, "record": record}
