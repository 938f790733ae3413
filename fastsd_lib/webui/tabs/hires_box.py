"""The second pass of text to image, as A1111 calls it: Hires. fix."""

from __future__ import annotations

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.request import UPSCALER_LABELS
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.tabs.desk import Desk
from fastsd_lib.webui.tabs.form import Form, Values
from fastsd_lib.webui.tabs.sampling import MOST_PX, STEP_PX

SAME_SAMPLER, SAME_SCHEDULE = "Use same sampler", "Use same scheduler"


def build(desk: Desk, form: Form) -> None:
    """A switch, and below it the fields of the second pass, which are to be seen when it is on."""
    fields = form.fields
    with gr.Group(elem_id="txt2img_hr", elem_classes=["switched"]):
        fields["enable_hr"] = gr.Checkbox(
            label="Hires. fix", elem_id="txt2img_hr-checkbox", elem_classes=["switch"]
        )
        with gr.Column(elem_classes=["only-if-ticked"]):
            with gr.Row():
                fields["hr_upscaler"] = gr.Dropdown(
                    _upscalers(desk.context), value=UPSCALER_LABELS["latent"], label="Upscaler",
                    elem_id="txt2img_hr_upscaler", min_width=140,
                )  # fmt: skip
                fields["hr_second_pass_steps"] = _slider("Hires steps", 0, 150, 0, 1, "txt2img_hires_steps")
            with gr.Row():
                fields["denoising_strength"] = _slider(
                    "Denoising strength", 0, 1, 0.7, 0.01, "txt2img_denoising_strength"
                )
                fields["hr_scale"] = _slider("Upscale by", 1, 4, 2, 0.05, "txt2img_hr_scale")
            with gr.Row():
                fields["hr_resize_x"] = _slider(
                    "Resize width to", 0, MOST_PX, 0, STEP_PX, "txt2img_hr_resize_x"
                )
                fields["hr_resize_y"] = _slider(
                    "Resize height to", 0, MOST_PX, 0, STEP_PX, "txt2img_hr_resize_y"
                )
            with gr.Row():
                fields["hr_sampler_name"] = gr.Dropdown(
                    [SAME_SAMPLER, *(one.label for one in SAMPLERS.values())], value=SAME_SAMPLER,
                    label="Hires sampling method", elem_id="hr_sampler", min_width=140,
                )  # fmt: skip
                fields["hr_scheduler"] = gr.Dropdown(
                    [SAME_SCHEDULE, *(one.label for one in SCHEDULES.values())], value=SAME_SCHEDULE,
                    label="Hires schedule type", elem_id="hr_scheduler", min_width=140,
                )  # fmt: skip
            for name, label in (
                ("hr_prompt", "Hires prompt"),
                ("hr_negative_prompt", "Hires negative prompt"),
            ):
                fields[name] = gr.Textbox(
                    label=label, placeholder="Empty: as in the first pass", lines=2, elem_id=name,
                    elem_classes=["prompt"],
                )  # fmt: skip
    form.readers.append(_read)


def _slider(label: str, low: float, high: float, usual: float, step: float, elem_id: str) -> gr.Slider:
    return gr.Slider(low, high, usual, step=step, label=label, buttons=[], elem_id=elem_id, min_width=140)


def _read(extras: Values, body: Values) -> None:
    """Without its switch the second pass leaves no trace in the request."""
    if not body.get("enable_hr"):
        for name in [name for name in body if name.startswith("hr_") or name == "denoising_strength"]:
            del body[name]


def _upscalers(context: ApiContext) -> list[str]:
    from fastsd_lib.generation.upscale import upscalers

    networks = []
    for one in upscalers(context.service.shelf.folders.upscalers).values():
        try:
            networks += [one.name] if one.path and one.scale else []
        except UserError:  # a file that cannot be read is none to choose
            continue
    return [*UPSCALER_LABELS.values(), *networks]
