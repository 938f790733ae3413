"""The bar above the tabs: the model that draws, its VAE and clip skip."""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import OPTIONS
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, icon_button, told
from fastsd_lib.webui.tabs.form import Form, Values

OWN_VAE = "Automatic"
NAMES = ("sd_model_checkpoint", "sd_vae", "CLIP_stop_at_last_layers")


def build(desk: Desk) -> None:
    """Lay the bar out; `desk.quick` holds its components by the options that they set."""
    skip = OPTIONS["CLIP_stop_at_last_layers"]
    context = desk.context
    with gr.Row(elem_id="quicksettings"):
        desk.quick["sd_model_checkpoint"] = gr.Dropdown(
            _models(context), value=context.service.shelf.current, label="Checkpoint", scale=3,
            elem_id="setting_sd_model_checkpoint",
        )  # fmt: skip
        desk.quick["sd_vae"] = gr.Dropdown(
            _vaes(context), value=OWN_VAE, label="VAE", scale=2, elem_id="setting_sd_vae"
        )
        desk.quick["CLIP_stop_at_last_layers"] = gr.Number(
            1, label="Clip skip", precision=0, minimum=skip.low, maximum=skip.high, scale=1, min_width=90,
            elem_id="setting_CLIP_stop_at_last_layers",
        )  # fmt: skip
        again = icon_button("Look for models again", "again", "refresh_checkpoints")
        theme = icon_button("Dark or light", "theme", "toggle_theme")
    theme.click(None, js="() => { fastsd.toggleTheme() }")
    again.click(lambda: shown(desk), None, list(desk.quick.values()), **AT_ONCE)


def connect(desk: Desk) -> None:
    """Wire the bar: what is chosen is loaded and stays, for the API and for other browsers, too."""
    checkpoint, *others = (desk.quick[name] for name in NAMES)
    sizes = [form.fields[side] for form in desk.forms.values() for side in ("width", "height")]

    async def load(name: str, *sides: float) -> list[Any]:
        context = desk.context
        try:
            new = a1111_settings.checked_change(context, {"sd_model_checkpoint": name})
            before = await _side_px(context, "")
            after = await _side_px(context, new["sd_model_checkpoint"])
            await asyncio.to_thread(a1111_settings.apply, context, new)
        except UserError as error:
            raise told(error) from None
        return [after if side == before else gr.skip() for side in sides]

    def change(vae: str, clip_skip: int | None) -> None:
        given = {"sd_vae": vae, "CLIP_stop_at_last_layers": clip_skip}
        try:
            a1111_settings.apply(desk.context, a1111_settings.checked_change(desk.context, given))
        except UserError as error:
            raise told(error) from None

    name = gr.Textbox(visible="hidden", label="Chosen card", elem_id="checkpoint_card")
    card = gr.Button(visible="hidden", elem_id="checkpoint_choose")  # a card of the checkpoints was pressed
    card.click(
        load, [name, *sizes], sizes, js="(...values) => [fastsd.checkpoint, ...values.slice(1)]", **QUIET
    ).then(lambda: shown(desk), None, list(desk.quick.values()), **AT_ONCE)
    checkpoint.input(
        load, [checkpoint, *sizes], sizes, api_visibility="private", show_progress_on=[checkpoint],
        concurrency_limit=None,
    ).failure(lambda: shown(desk), None, list(desk.quick.values()), **AT_ONCE)  # fmt: skip
    gr.on([one.input for one in others], change, others, None, **QUIET)


def add_to(desk: Desk, form: Form) -> None:
    """Let a form's orders be drawn with what the bar shows, and with what pasted texts demand instead."""
    for name in NAMES:
        form.extras[name] = desk.quick[name]
    form.readers.append(_read)


def shown(desk: Desk) -> list[Any]:
    """The bar as the server is set now: for a page that is opened, and after settings were changed elsewhere."""
    context = desk.context
    return [
        gr.Dropdown(_models(context), value=context.service.shelf.current),
        gr.Dropdown(_vaes(context), value=context.options["sd_vae"]),
        context.options["CLIP_stop_at_last_layers"],
    ]


def _read(extras: Values, body: Values) -> None:
    chosen = {name: extras[name] for name in NAMES if extras.get(name) not in (None, "")}
    body["override_settings"] = {**chosen, **body.get("override_settings", {})}


def _models(context: ApiContext) -> list[str]:
    return [model.name for model in context.service.shelf.models()]


def _vaes(context: ApiContext) -> list[str]:
    names = [OWN_VAE, *(vae.name for vae in context.service.shelf.vaes())]
    chosen = context.options["sd_vae"]
    return names if chosen in names else [*names, chosen]


async def _side_px(context: ApiContext, model: str) -> int:
    """The size that a model draws best; loads it."""
    engine = await asyncio.shield(asyncio.wrap_future(context.service.load(model)))
    return engine.side_px
