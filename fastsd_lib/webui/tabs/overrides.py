"""Settings that a pasted text demands and that differ from those of the page: shown, sent, and easily taken out."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.a1111_infotext import SETTINGS
from fastsd_lib.webui.a1111_settings import shown
from fastsd_lib.webui.api_errors import Refused
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import checked
from fastsd_lib.webui.tabs.desk import Desk
from fastsd_lib.webui.tabs.form import Form, Values
from fastsd_lib.webui.tabs.pasting import Pasted


def build(desk: Desk, form: Form) -> None:
    """A line "Override settings", which is to be seen when there is something in it."""
    name = f"{form.kind}_override_settings"
    box = gr.Dropdown(
        [], value=[], multiselect=True, allow_custom_value=True, label="Override settings", elem_id=name,
        elem_classes=["only-if-filled"],
    )  # fmt: skip
    form.extras["overrides"] = box
    form.readers.append(_read)
    form.pasters.append(([box], lambda pasted: [demanded(pasted, desk.context)]))


def demanded(pasted: Pasted, context: ApiContext) -> list[str]:
    """ "Clip skip: 2" and the like: what the text says and the server is not set to."""
    now, lines = shown(context), []
    for key, option in SETTINGS.items():
        said = pasted.found.get(key)
        if said is not None and not _same(option, said, now, context):
            lines.append(f"{key}: {said}")
    return lines


def _same(option: str, said: Any, now: Mapping[str, Any], context: ApiContext) -> bool:
    if option == "sd_model_checkpoint":
        try:
            return context.service.shelf.find(str(said)).name == context.service.shelf.current
        except UserError:
            _warn(f"The model {str(said)[:80]!r} of this text is not here; the chosen one will draw.")
            return True
    try:
        return checked({option: said})[option] == now[option]
    except Refused as error:
        _warn(f"{error.message} It was left out.")
        return True


def _warn(text: str) -> None:
    gr.Warning(html.escape(text, quote=False))


def _read(extras: Values, body: Values) -> None:
    given = body.setdefault("override_settings", {})
    for line in extras.get("overrides") or []:
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon:
            raise Refused(422, f"Override settings: {line[:80]!r} is no setting.", 'write "Clip skip: 2".')
        given[SETTINGS.get(key, key)] = value
