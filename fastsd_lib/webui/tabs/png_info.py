"""Tab PNG Info: how a picture was made, whichever program drew it, and what of that is not here."""

from __future__ import annotations

import contextlib
import html
import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import ASSUMED, VERSION, read_infotext
from fastsd_lib.webui.a1111 import known_styles
from fastsd_lib.webui.a1111_pictures import open_picture
from fastsd_lib.webui.extras_api import history_of
from fastsd_lib.webui.missing import missing_from
from fastsd_lib.webui.tabs import shown
from fastsd_lib.webui.tabs.desk import QUIET, Desk, send_buttons, told
from fastsd_lib.webui.tabs.dropped import bytes_of, dropped_picture

PROGRAMS = {"a1111": "AUTOMATIC1111 or a program like it", "comfyui": "ComfyUI", "invokeai": "InvokeAI",
            "novelai": "NovelAI", "fastsd": "fastsd"}  # fmt: skip
LONGEST_TEXT = 20_000  # letters of a text beside the parameters; ComfyUI's graphs are long
EMPTY = '<p class="nothing">Drop a picture to see how it was made.</p>'
Answer = tuple[str, str, str, str]  # facts, warnings, infotext, other texts


def build(desk: Desk) -> None:
    with gr.Row(elem_id="png_info", equal_height=False):
        with gr.Column(scale=2, min_width=320):
            picture = dropped_picture("Picture", "pnginfo_image", 420)
        with gr.Column(scale=3, min_width=320):
            facts = gr.HTML(EMPTY, elem_id="pnginfo_facts", padding=False)
            warnings = gr.HTML(elem_id="pnginfo_warnings", padding=False)
            text = gr.Textbox(
                label="Parameters, as they stand in the file", lines=4, max_lines=12, interactive=False,
                buttons=["copy"], elem_id="pnginfo_text",
            )  # fmt: skip
            send_buttons(desk, picture, text, ("txt2img", "img2img", "inpaint", "extras"), "pnginfo")
            with gr.Accordion("Other texts in the file", open=False):
                others = gr.HTML(elem_id="pnginfo_others", padding=False)

    def ask(path: str | None) -> Answer:
        try:
            return asked(path, desk)
        except UserError as error:
            raise told(error) from None

    heard = picture.change(ask, picture, [facts, warnings, text, others], **QUIET)
    heard.failure(lambda: (EMPTY, "", "", ""), None, [facts, warnings, text, others], **QUIET)


def asked(path: str | None, desk: Desk) -> Answer:
    """What a picture's file says. UserError for what is no picture."""
    if path is None:
        return EMPTY, "", "", ""
    context = desk.context
    data = bytes_of(path, context.limits.picture_bytes)
    history = history_of(data)
    size = open_picture(data, "The picture", context.limits).size  # says what is wrong with it
    if history is None or not (history.parameters or history.texts):
        return _facts({"Size of the file": shown.size(len(data)), "Pixels": f"{size[0]} x {size[1]}"},
                      "This picture does not say how it was made."), "", "", ""  # fmt: skip
    found = read_infotext(history.parameters, known_styles(context)) if history.parameters else {}
    parameters = {key: value for key, value in found.items() if ASSUMED.get(key) != value}
    lost = missing_from(found, context) if found else []
    about = {"Drawn by": _program(history.program, found),
             "Pixels": f"{size[0]} x {size[1]}"}  # fmt: skip
    others = {name: value for name, value in history.texts.items() if name != "parameters"}
    return (
        _facts(_settings(parameters) | about, "", parameters),
        shown.notes(lost, head="Not here"),
        history.parameters,
        _others(others),
    )


def _program(program: str, parameters: Mapping[str, Any]) -> str:
    """Pictures that the API saved carry A1111's text alone, with our name as the version."""
    ours = program == "a1111" and parameters.get("Version") == VERSION
    return PROGRAMS.get("fastsd" if ours else program, "a program that does not say its name")


def _settings(parameters: Mapping[str, Any]) -> dict[str, str]:
    """A1111's keys with their values; sizes are put together again."""
    kept: dict[str, str] = {}
    for key, value in parameters.items():
        stem, _, side = key.rpartition("-")
        if key in ("Prompt", "Negative prompt", "Version"):
            continue
        if side == "1" and f"{stem}-2" in parameters:
            kept[stem] = f"{value} x {parameters[f'{stem}-2']}"
        elif not (side == "2" and f"{stem}-1" in parameters):
            kept[key] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return kept


def _facts(values: Mapping[str, str], note: str, parameters: Mapping[str, Any] | None = None) -> str:
    texts = ""
    for key in ("Prompt", "Negative prompt"):
        said = str((parameters or {}).get(key, "")).strip()
        if said:
            texts += f'<div class="said"><b>{key}</b><p>{html.escape(said)}</p></div>'
    note = f'<p class="nothing">{html.escape(note)}</p>' if note else ""
    return f'<div class="facts">{note}{texts}{shown.pairs(values)}</div>'


def _others(texts: Mapping[str, str]) -> str:
    if not texts:
        return '<p class="nothing">There are none.</p>'
    return "".join(
        f'<div class="said"><b>{html.escape(name[:100])}</b><pre>{html.escape(_readable(text))}</pre></div>'
        for name, text in texts.items()
    )


def _readable(text: str) -> str:
    if text.lstrip()[:1] in ("{", "[") and len(text) <= LONGEST_TEXT:
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}\n... ({len(text):,} letters)"
