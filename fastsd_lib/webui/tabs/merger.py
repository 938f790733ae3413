"""Tab Checkpoint Merger, as A1111 has it: two or three models become one, beside what is being drawn."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.merging import MergeState, Merging
from fastsd_lib.webui.tabs import quick_settings, shown
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, told
from fastsd_lib.webui.tabs.tab import when_shown

METHODS = {
    "weighted_sum": ("Weighted sum", "A × (1 − M) + B × M. Needs A and B."),
    "add_difference": (
        "Add difference",
        "A + (B − C) × M: what B learned beyond C, put into A. Needs all three.",
    ),
    "none": ("No interpolation", "A as it is: to convert it, or to give it another VAE."),
}
WIDTHS = [("float16: half the size, as models are shared", "fp16"), ("float32", "fp32"), ("as A has it", "")]
CONFIGS = [("A", "a"), ("B", "b"), ("C", "c"), ("Don't", "")]
EMPTY = "Choose the models, then press Merge. Drawing goes on meanwhile."
EVERY_S = 0.4


def build(desk: Desk) -> None:
    merging = Merging(desk.context)
    with gr.Row(elem_id="modelmerger", elem_classes=["studio"]):
        with gr.Column(elem_classes=["settings"]):
            models, parts = _choices(desk)
        with gr.Column():
            with gr.Row():
                go = gr.Button("Merge", variant="primary", elem_id="modelmerger_merge")
                stop = gr.Button("Stop", elem_id="modelmerger_stop", interactive=False)
            state = gr.HTML(shown.progress(EMPTY), elem_id="modelmerger_result", padding=False)
    seen = [state, go, stop]
    lists = [*models, parts["vae"]]
    events: dict[str, Any] = {**QUIET, "concurrency_limit": None}

    def begin(*values: Any) -> list[Any]:
        try:
            merging.start(_read(dict(zip(parts, values, strict=True))))
        except UserError as error:
            raise told(error) from None
        return _shown(merging.state)

    async def follow() -> AsyncIterator[list[Any]]:
        while merging.state.running:
            yield _shown(merging.state)
            await asyncio.sleep(EVERY_S)
        yield _shown(merging.state)

    renew = partial(_lists, desk)
    quick = list(desk.quick.values())
    go.click(begin, list(parts.values()), seen, **events).success(follow, None, seen, **events).then(
        renew, lists, lists, **AT_ONCE
    ).then(lambda: quick_settings.shown(desk), None, quick, **AT_ONCE)
    stop.click(merging.stop, **AT_ONCE)
    when_shown(renew, lists, lists, concurrency_limit=None)
    when_shown(follow, seen, concurrency_limit=None)


def _choices(desk: Desk) -> tuple[list[gr.Dropdown], dict[str, gr.components.Component]]:
    """The dropdowns of models, and all components by the name of what they choose."""
    parts: dict[str, gr.components.Component] = {}
    names = _models(desk)
    labels = {"a": "Primary model (A)", "b": "Secondary model (B)", "c": "Tertiary model (C)"}
    with gr.Row():
        for (letter, label), usual in zip(labels.items(), ("primary", "secondary", "tertiary"), strict=True):
            parts[letter] = gr.Dropdown(
                names if letter == "a" else ["", *names], value=names[0] if letter == "a" else "", label=label,
                min_width=150, elem_id=f"modelmerger_{usual}_model_name",
            )  # fmt: skip
    parts["name"] = gr.Textbox(
        label="Custom name (optional)",
        placeholder="Empty: made of the models' names",
        elem_id="modelmerger_custom_name",
    )
    parts["method"] = gr.Radio(
        [(label, name) for name, (label, _) in METHODS.items()], value="weighted_sum", label="Interpolation method",
        info=METHODS["weighted_sum"][1], elem_id="modelmerger_interp_method",
    )  # fmt: skip
    parts["method"].change(
        lambda name: gr.Radio(info=METHODS[name][1]), parts["method"], parts["method"], **AT_ONCE
    )
    parts["multiplier"] = gr.Slider(
        0,
        1,
        0.3,
        step=0.05,
        label="Multiplier (M): 0 is A alone",
        buttons=[],
        elem_id="modelmerger_interp_amount",
    )
    with gr.Row():
        parts["dtype"] = gr.Radio(
            WIDTHS, value="fp16", label="Save as safetensors in", elem_id="modelmerger_save_as_half"
        )
    with gr.Row():
        parts["vae"] = gr.Dropdown(
            _vaes(desk), value="None", label="Bake in VAE", min_width=150, elem_id="modelmerger_bake_in_vae"
        )
        parts["config_from"] = gr.Radio(
            CONFIGS,
            value="a",
            label="Copy config (.yaml) from",
            min_width=200,
            elem_id="modelmerger_config_method",
        )
    parts["discard"] = gr.Textbox(
        label="Discard weights with matching name", placeholder=r"A regular expression, such as ^model_ema\.",
        elem_id="modelmerger_discard_weights",
    )  # fmt: skip
    with gr.Accordion("Metadata", open=False, elem_id="modelmerger_metadata"):
        parts["recipe"] = gr.Checkbox(
            True, label="Add merge recipe metadata", elem_id="modelmerger_add_recipe"
        )
        parts["keep_metadata"] = gr.Checkbox(
            True, label="Copy metadata from merged models", elem_id="modelmerger_copy_metadata"
        )
        parts["metadata"] = gr.Textbox(
            "{}", label="Further metadata, in JSON", lines=3, elem_id="modelmerger_metadata_json"
        )
    return [parts[letter] for letter in "abc"], parts


def _read(values: dict[str, Any]) -> dict[str, Any]:
    """The choices as `Merging.start` takes them. UserError for metadata that is no JSON object."""
    try:
        metadata = json.loads(values["metadata"] or "{}")
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError("The further metadata is no JSON object.", fix='write {"name": "value"}, or {}.')
    needed = {"weighted_sum": "ab", "add_difference": "abc", "none": "a"}[values["method"]]
    chosen = {letter: values[letter] for letter in "abc" if letter in needed and values[letter]}
    rest = {name: value for name, value in values.items() if name not in "abc"}
    return rest | chosen | {"metadata": metadata, "dtype": values["dtype"] or None}


def _shown(state: MergeState) -> list[Any]:
    if state.running:
        line = shown.progress(f"{state.name}: {state.step}", state.share, f"{state.share:.0%}")
    elif state.said:
        line = shown.notes([state.said], "error" if state.failed else "plain", state.name)
    else:
        line = shown.progress(EMPTY)
    return [line, gr.Button(interactive=not state.running), gr.Button(interactive=state.running)]


def _models(desk: Desk) -> list[str]:
    return [one.name for one in desk.context.service.shelf.models()]


def _vaes(desk: Desk) -> list[str]:
    return ["None", *(one.name for one in desk.context.service.shelf.vaes())]


def _lists(desk: Desk, a: str, b: str, c: str, vae: str) -> list[Any]:
    """What there is now; what was chosen stays if it is still there."""
    names, vaes = _models(desk), _vaes(desk)
    updates = [gr.Dropdown(choices=names, value=a if a in names else names[0])]
    updates += [gr.Dropdown(choices=["", *names], value=one if one in names else "") for one in (b, c)]
    return [*updates, gr.Dropdown(choices=vaes, value=vae if vae in vaes else "None")]
