"""Fields that text to image and image to image share: sampler, size, batches, guidance, seed."""

from __future__ import annotations

import gradio as gr

from fastsd_lib.generation.request import MAX_SEED
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES
from fastsd_lib.webui.tabs.desk import Desk
from fastsd_lib.webui.tabs.form import Form

USUAL_SAMPLER = "euler_a"


def build_sampler(desk: Desk, form: Form) -> None:
    """Sampling method, schedule type and steps in one row."""
    kind = form.kind
    with gr.Row():
        form.fields["sampler_name"] = gr.Dropdown(
            [one.label for one in SAMPLERS.values()], value=SAMPLERS[USUAL_SAMPLER].label,
            label="Sampling method", elem_id=f"{kind}_sampling",
        )  # fmt: skip
        form.fields["scheduler"] = gr.Dropdown(
            [one.label for one in SCHEDULES.values()], value=SCHEDULES["automatic"].label,
            label="Schedule type", elem_id=f"{kind}_scheduler",
        )  # fmt: skip
    form.fields["steps"] = gr.Slider(
        1, 150, desk.usual.steps, step=1, label="Sampling steps", buttons=[], elem_id=f"{kind}_steps"
    )


def build_size(desk: Desk, form: Form) -> None:
    """Width and height."""
    kind, side_px = form.kind, desk.usual.side_px
    for side in ("width", "height"):
        form.fields[side] = gr.Slider(
            min(64, side_px), 2048, side_px, step=8, label=side.title(), buttons=[], elem_id=f"{kind}_{side}"
        )


def build_batches(desk: Desk, form: Form) -> None:
    """Batch count and size."""
    kind = form.kind
    form.fields["n_iter"] = gr.Slider(
        1, 100, 1, step=1, label="Batch count", buttons=[], elem_id=f"{kind}_batch_count"
    )
    form.fields["batch_size"] = gr.Slider(
        1, 8, 1, step=1, label="Batch size", buttons=[], elem_id=f"{kind}_batch_size"
    )


def build_guidance(desk: Desk, form: Form) -> None:
    form.fields["cfg_scale"] = gr.Slider(
        1, 30, desk.usual.guidance_scale, step=0.5, label="CFG scale", buttons=[],
        elem_id=f"{form.kind}_cfg_scale",
    )  # fmt: skip


def build_seed(desk: Desk, form: Form) -> None:
    """The seed; -1 is any."""
    form.fields["seed"] = gr.Number(
        -1, label="Seed", precision=0, minimum=-1, maximum=MAX_SEED, elem_id=f"{form.kind}_seed"
    )
