"""Styles beside the prompts: chosen ones are put in when the picture is drawn, or now; new ones are saved."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.styles import Style, apply_styles, read_styles, write_styles
from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.tabs.desk import AT_ONCE, Desk, icon_button, told
from fastsd_lib.webui.tabs.form import Form


def build(desk: Desk, form: Form) -> None:
    """A list of styles with buttons to put them into the prompts, and to save the prompts as one; in a row."""
    kind, context = form.kind, desk.context
    prompts = [form.fields["prompt"], form.fields["negative_prompt"]]
    box = form.fields["styles"] = gr.Dropdown(
        list(known_styles(context)), value=[], multiselect=True, allow_custom_value=True, show_label=False,
        container=False, label="Styles", elem_id=f"{kind}_styles", elem_classes=["styles"], min_width=90,
    )  # fmt: skip
    put_in = icon_button("Put the chosen styles into the prompts", "put-in", f"{kind}_style_apply")
    edit = icon_button("Save the prompts as a style", "save", f"{kind}_style_save")
    with gr.Group(visible=False, elem_id=f"{kind}_style_editor") as editor:
        name = gr.Textbox(label="Save the prompts as a style named", max_lines=1)
        with gr.Row():
            save = gr.Button("Save style", size="sm", variant="primary", min_width=80)
            leave = gr.Button("Cancel", size="sm", min_width=80)

    def apply(prompt: str, negative: str, names: list[str]) -> list[Any]:
        styled = apply_styles(prompt, negative, names, known_styles(context))
        return [*styled[:2], []]

    def keep(prompt: str, negative: str, name: str) -> list[Any]:
        try:
            save_style(context, Style(name.strip(), prompt, negative))
        except UserError as error:
            raise told(error) from None
        gr.Info(html.escape(f"The style {name.strip()!r} is saved.", quote=False))
        return [gr.Group(visible=False), gr.Dropdown(list(known_styles(context)))]

    put_in.click(apply, [*prompts, box], [*prompts, box], **AT_ONCE)
    edit.click(lambda: gr.Group(visible=True), None, editor, **AT_ONCE)
    leave.click(lambda: gr.Group(visible=False), None, editor, **AT_ONCE)
    save.click(keep, [*prompts, name], [editor, box], **AT_ONCE)


def save_style(context: ApiContext, style: Style) -> None:
    """Into the first file of styles, over one of the same name. UserError for no name, and for no such file."""
    files = context.service.shelf.folders.styles
    if not style.name:
        raise UserError("The style has no name.", fix="write one, such as: film grain.")
    if not files:
        raise UserError("This server has no file of styles.", fix="start it with --library DIR.")
    write_styles(files[0], (read_styles(files[0]) | {style.name: style}).values())
