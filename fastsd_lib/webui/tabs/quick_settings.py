"""The bar above the tabs: the model that draws, its VAE and clip skip."""

from __future__ import annotations

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.tabs.desk import QUIET, Desk, told


def build(desk: Desk) -> None:
    """Lay it out; `desk.quick` holds its components by the options that they set."""
    shelf = desk.context.service.shelf
    with gr.Row(elem_id="quicksettings"):
        desk.quick["sd_model_checkpoint"] = checkpoint = gr.Dropdown(
            [model.name for model in shelf.models()], value=shelf.current, label="Checkpoint",
            elem_id="setting_sd_model_checkpoint", scale=3,
        )  # fmt: skip

    async def load(name: str) -> None:
        import asyncio

        try:
            new = a1111_settings.checked_change(desk.context, {"sd_model_checkpoint": name})
            await asyncio.shield(asyncio.wrap_future(desk.context.service.load(new["sd_model_checkpoint"])))
            a1111_settings.apply(desk.context, new)
        except UserError as error:
            raise told(error) from None

    checkpoint.input(load, [checkpoint], None, **QUIET)
