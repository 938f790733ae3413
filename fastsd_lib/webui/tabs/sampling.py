"""Fields that text to image and image to image share: sampler, size, batches, guidance, seed."""

from __future__ import annotations

import gradio as gr

from fastsd_lib.generation.request import MAX_SEED
from fastsd_lib.generation.samplers import SAMPLERS, SCHEDULES
from fastsd_lib.webui.tabs.desk import Desk, icon_button
from fastsd_lib.webui.tabs.form import Form, Values
from fastsd_lib.webui.tabs.pasting import Pasted

USUAL_SAMPLER = "euler_a"
MOST_PX, STEP_PX = 2048, 8
#: A seed as the text of a picture says it -> the field.
_SEED_OF = "(text) => {{ const found = /\\b{key}: (\\d+)/.exec(text || ''); return found ? +found[1] : -1 }}"


def build_sampler(desk: Desk, form: Form) -> None:
    """Sampling method, schedule type and steps."""
    kind = form.kind
    with gr.Row():
        form.fields["sampler_name"] = gr.Dropdown(
            [one.label for one in SAMPLERS.values()], value=SAMPLERS[USUAL_SAMPLER].label,
            label="Sampling method", elem_id=f"{kind}_sampling", min_width=130,
        )  # fmt: skip
        form.fields["scheduler"] = gr.Dropdown(
            [one.label for one in SCHEDULES.values()], value=SCHEDULES["automatic"].label,
            label="Schedule type", elem_id=f"{kind}_scheduler", min_width=130,
        )  # fmt: skip
    form.fields["steps"] = gr.Slider(
        1, 150, desk.usual.steps, step=1, label="Sampling steps", buttons=[], elem_id=f"{kind}_steps"
    )


def build_size(desk: Desk, form: Form) -> None:
    """Width and height, and what swaps them."""
    kind, side_px = form.kind, desk.usual.side_px
    with gr.Row(elem_classes=["with-tool"]):
        with gr.Column(min_width=160):
            sides = [
                gr.Slider(
                    min(64, side_px), MOST_PX, side_px, step=STEP_PX, label=side.title(), buttons=[],
                    elem_id=f"{kind}_{side}",
                )
                for side in ("width", "height")
            ]  # fmt: skip
        swap = icon_button("Swap width and height", "swap", f"{kind}_res_switch_btn")
    form.fields |= {"width": sides[0], "height": sides[1]}
    swap.click(None, sides, sides, js="(width, height) => [height, width]")


def build_batches(desk: Desk, form: Form) -> None:
    """Batch count and size."""
    kind = form.kind
    with gr.Row():
        form.fields["n_iter"] = gr.Slider(
            1, 100, 1, step=1, label="Batch count", buttons=[], elem_id=f"{kind}_batch_count", min_width=140
        )
        form.fields["batch_size"] = gr.Slider(
            1, 8, 1, step=1, label="Batch size", buttons=[], elem_id=f"{kind}_batch_size", min_width=140
        )


def build_guidance(desk: Desk, form: Form) -> None:
    form.fields["cfg_scale"] = gr.Slider(
        1, 30, desk.usual.guidance_scale, step=0.5, label="CFG scale", buttons=[],
        elem_id=f"{form.kind}_cfg_scale",
    )  # fmt: skip


def build_tiling(desk: Desk, form: Form) -> None:
    form.fields["tiling"] = gr.Checkbox(
        label="Tiling: edges that fit to one another", elem_id=f"{form.kind}_tiling", elem_classes=["switch"]
    )


def build_seed(desk: Desk, form: Form) -> None:
    """The seed (-1 is any), and below it, when "Extra" is ticked, the variation of it."""
    kind = form.kind
    with gr.Row(elem_classes=["with-tool"]):
        form.fields["seed"] = _seed("Seed", f"{kind}_seed")
        dice, reuse = _seed_buttons(kind, "seed")
        form.extras["seed_extra"] = more = gr.Checkbox(
            label="Extra", elem_id=f"{kind}_subseed_show", scale=0, min_width=76, elem_classes=["switch"]
        )
    with gr.Group(elem_classes=["only-if-ticked"], elem_id=f"{kind}_seed_extras"):
        with gr.Row(elem_classes=["with-tool"]):
            form.fields["subseed"] = _seed("Variation seed", f"{kind}_subseed")
            dice_2, reuse_2 = _seed_buttons(kind, "subseed")
        form.fields["subseed_strength"] = gr.Slider(
            0, 1, 0, step=0.01, label="Variation strength", buttons=[], elem_id=f"{kind}_subseed_strength"
        )
        with gr.Row():
            for name, side in (("seed_resize_from_w", "width"), ("seed_resize_from_h", "height")):
                form.fields[name] = gr.Slider(
                    0, MOST_PX, 0, step=STEP_PX, label=f"Resize seed from {side}", buttons=[],
                    elem_id=f"{kind}_{name}", min_width=140,
                )  # fmt: skip
    form.readers.append(_read_seed)
    form.pasters.append(([more], _paste_seed))
    info = f"() => [document.querySelector('#html_info_{kind} textarea')?.value]"
    for field, key, (any_, last) in (
        ("seed", "Seed", (dice, reuse)),
        ("subseed", "Variation seed", (dice_2, reuse_2)),
    ):
        any_.click(None, None, form.fields[field], js="() => -1")
        last.click(None, None, form.fields[field], js=f"() => ({_SEED_OF.format(key=key)})(({info})()[0])")


def _seed(label: str, elem_id: str) -> gr.Number:
    return gr.Number(
        -1, label=label, precision=0, minimum=-1, maximum=MAX_SEED, elem_id=elem_id, min_width=120
    )


def _seed_buttons(kind: str, name: str) -> tuple[gr.Button, gr.Button]:
    return (
        icon_button("Any seed (-1)", "dice", f"{kind}_random_{name}"),
        icon_button("The seed of the picture that is shown", "back", f"{kind}_reuse_{name}"),
    )


def _read_seed(extras: Values, body: Values) -> None:
    if not extras["seed_extra"]:
        for name in ("subseed", "subseed_strength", "seed_resize_from_w", "seed_resize_from_h"):
            body.pop(name, None)


def _paste_seed(pasted: Pasted) -> list[bool]:
    return [bool({"Variation seed", "Variation seed strength", "Seed resize from-1"} & set(pasted.found))]
