"""The menu "Script" below a form, with the arguments of each script; they are sent as the API's clients send them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.a1111_xyz import ARGUMENTS, TITLE
from fastsd_lib.webui.a1111_xyz_axes import Axis, axes_of
from fastsd_lib.webui.a1111_xyz_values import BadValue, joined_list, split_list
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.tabs.desk import AT_ONCE, Desk, told
from fastsd_lib.webui.tabs.form import Form, Values
from fastsd_lib.webui.tabs.pasting import Pasted

NONE, MATRIX, LINES = "None", "Prompt matrix", "Prompts from file or textbox"
SCRIPTS = (NONE, MATRIX, LINES, TITLE)
MOST_FILE_BYTES = 1 << 20  # of a file with prompts
LETTERS = ("x", "y", "z")
SWITCHES = ("draw_legend", "include_lone_images", "include_sub_grids", "no_fixed_seeds",
            "vary_seeds_x", "vary_seeds_y", "vary_seeds_z")  # fmt: skip
#: The names of a script's arguments, in the order in which they are sent.
SENT = {
    MATRIX: ("put_at_start", "different_seeds", "prompt_type", "variations_delimiter"),
    LINES: ("checkbox_iterate", "checkbox_iterate_batch", "prompt_position", "prompt_txt"),
    TITLE: (*(f"{letter}_{what}" for letter in LETTERS for what in ("type", "values", "values_dropdown")),
            *SWITCHES, "margin_size", "csv_mode"),
}  # fmt: skip


def build(desk: Desk, form: Form) -> None:
    """Lay it out inside the current block; the form sends the chosen script with its arguments."""
    script = gr.Dropdown(list(SCRIPTS), value=NONE, label="Script", elem_id=f"{form.kind}_script_list")
    form.extras["script"] = script
    rooms = {}
    for name, lay_out in ((MATRIX, _matrix), (LINES, _lines), (TITLE, partial(_plot, desk))):
        with gr.Column(visible=False, elem_classes=["script"]) as rooms[name]:
            parts = lay_out(form)
        form.extras.update({_key(name, part): parts[part] for part in SENT[name]})
    script.change(
        lambda chosen: [gr.Column(visible=chosen == name) for name in rooms],
        script, list(rooms.values()), **AT_ONCE,
    )  # fmt: skip
    form.readers.append(_read)
    plot = [form.extras[_key(TITLE, f"{letter}_{what}")] for letter in LETTERS for what in ("type", "values")]
    form.pasters.append(([script, *plot], partial(_pasted, form.kind)))


def _key(script: str, part: str) -> str:
    return f"{_bare(script)}_{part}"


def _id(form: Form, script: str, part: str) -> str:
    """As A1111 names its scripts' components."""
    return f"script_{form.kind}_{_bare(script)}_{part}"


def _bare(script: str) -> str:
    return "".join(sign for sign in script.lower().replace(" ", "_") if sign.isalnum() or sign == "_")


def _read(extras: Values, body: Values) -> None:
    script = extras["script"]
    if script in SENT:
        body["script_name"] = script
        body["script_args"] = [extras[_key(script, part)] for part in SENT[script]]


def _pasted(kind: str, pasted: Pasted) -> list[Any]:
    """A grid's text brings its plot back; any other picture leaves the menu as it is."""
    found = pasted.found
    if found.get("Script") != TITLE:
        return [gr.skip()] * (1 + 2 * len(LETTERS))
    labels = {axis.label for axis in _menu(kind)}
    fields: list[Any] = []
    for letter in LETTERS:
        label = found.get(f"{letter.upper()} Type", "Nothing")
        known = label in labels
        fields += [
            label if known else "Nothing",
            str(found.get(f"{letter.upper()} Values", "")) if known else "",
        ]
    return [TITLE, *fields]


# ------------------------------------------------------------------ prompt matrix, prompts from a file


def _matrix(form: Form) -> dict[str, gr.Component]:
    gr.Markdown(
        "Write variants with bars: `a star | red | in snow` is drawn with each choice of the later parts."
    )
    name = partial(_id, form, MATRIX)
    with gr.Row():
        first = gr.Checkbox(label="Put variable parts at start of prompt", elem_id=name("put_at_start"))
        seeds = gr.Checkbox(label="Use different seed for each picture", elem_id=name("different_seeds"))
    with gr.Row():
        which = gr.Radio(
            ["positive", "negative"], value="positive", label="Select prompt", elem_id=name("prompt_type")
        )
        joined = gr.Radio(
            ["comma", "space"],
            value="comma",
            label="Select joining char",
            elem_id=name("variations_delimiter"),
        )
    return dict(zip(SENT[MATRIX], (first, seeds, which, joined), strict=True))


def _lines(form: Form) -> dict[str, gr.Component]:
    name = partial(_id, form, LINES)
    with gr.Row():
        iterate = gr.Checkbox(label="Iterate seed every line", elem_id=name("checkbox_iterate"))
        batch = gr.Checkbox(
            label="Use same random seed for all lines", elem_id=name("checkbox_iterate_batch")
        )
    place = gr.Radio(
        ["start", "end"], value="start", label="Insert prompts at the", elem_id=name("prompt_position")
    )
    text = gr.Textbox(
        label="List of prompt inputs", lines=4, max_lines=12, elem_id=name("prompt_txt"),
        placeholder='A prompt in each line, or --prompt "a cat" --steps 20 --seed 5',
    )  # fmt: skip
    upload = gr.UploadButton("Take the lines of a file", file_types=[".txt"], size="sm", elem_id=name("file"))
    upload.upload(_text_of, upload, text, **AT_ONCE)
    return dict(zip(SENT[LINES], (iterate, batch, place, text), strict=True))


def _text_of(path: str) -> str:
    """The lines of a file that was given. A toast for one that is no text."""
    file = Path(path)
    try:
        if file.stat().st_size > MOST_FILE_BYTES:
            raise UserError(
                f"{file.name} is larger than 1 MB.", fix="give a text file with one prompt in each line."
            )
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise told(UserError(f"{file.name} is no text in UTF-8.", fix="save it as plain text.")) from None
    except UserError as error:
        raise told(error) from None


# ------------------------------------------------------------------ X/Y/Z plot


def _menu(kind: str) -> list[Axis]:
    return [axis for axis in axes_of(kind) if not axis.missing]


def _plot(desk: Desk, form: Form) -> dict[str, gr.Component]:
    name = partial(_id, form, TITLE)
    parts: dict[str, gr.Component] = {}
    for letter, first in zip(LETTERS, ("Seed", "Nothing", "Nothing"), strict=True):
        _axis_row(form.kind, letter, first, parts, name)
    with gr.Row(elem_classes=["send-to"]):
        swaps = {
            pair: _small(f"Swap {pair[0].upper()}/{pair[1].upper()} axes", name(f"swap_{pair}_axes"))
            for pair in ("xy", "yz", "xz")
        }
        fills = {
            letter: _small(f"Fill {letter.upper()}", f"xyz_grid_fill_{letter}_{form.kind}", shown=False)
            for letter in LETTERS
        }
    labels = dict(zip(SENT[TITLE], (label for label, _ in ARGUMENTS), strict=True))
    for row in (SWITCHES[:3], SWITCHES[4:], (SWITCHES[3], "csv_mode")):
        with gr.Row():
            for switch in row:
                parts[switch] = gr.Checkbox(
                    switch == "draw_legend", label=labels[switch], min_width=130, elem_id=name(switch)
                )
    parts["margin_size"] = gr.Slider(
        0, 500, 0, step=2, label=labels["margin_size"], buttons=[], elem_id=name("margin_size")
    )
    _wire_plot(desk.context, form.kind, parts, fills, swaps)
    return parts


def _small(label: str, elem_id: str, shown: bool = True) -> gr.Button:
    return gr.Button(label, size="sm", min_width=104, visible=shown, elem_id=elem_id)


def _axis_row(kind: str, letter: str, first: str, parts: dict[str, gr.Component], name: Any) -> None:
    with gr.Row(elem_classes=["axis"]):
        parts[f"{letter}_type"] = gr.Dropdown(
            [axis.label for axis in _menu(kind)], value=first, label=f"{letter.upper()} type", min_width=150,
            scale=2, elem_id=name(f"{letter}_type"),
        )  # fmt: skip
        parts[f"{letter}_values"] = gr.Textbox(
            label=f"{letter.upper()} values", placeholder="1, 2, 3   1-5   1-10 (+2)   1-3 [5]", min_width=150,
            scale=3, elem_id=name(f"{letter}_values"),
        )  # fmt: skip
        parts[f"{letter}_values_dropdown"] = gr.Dropdown(
            [], label=f"{letter.upper()} values", multiselect=True, allow_custom_value=True, visible=False,
            min_width=150, scale=3, elem_id=name(f"{letter}_values_dropdown"),
        )  # fmt: skip


def _wire_plot(
    context: ApiContext,
    kind: str,
    parts: Mapping[str, gr.Component],
    fills: Mapping[str, gr.Button],
    swaps: Mapping[str, gr.Button],
) -> None:
    of = {
        letter: [parts[f"{letter}_{what}"] for what in ("type", "values", "values_dropdown")]
        for letter in LETTERS
    }
    for letter in LETTERS:
        own, shown = [*of[letter], parts["csv_mode"]], [*of[letter][1:], fills[letter]]
        show = partial(_shown_values, context, kind)
        parts[f"{letter}_type"].change(show, own, shown, **AT_ONCE)
        parts["csv_mode"].change(show, own, shown, **AT_ONCE)
        fills[letter].click(partial(_all_values, context, kind), [own[0], own[3]], own[1:3], **AT_ONCE)
    for pair, button in swaps.items():
        both = [*of[pair[0]], *of[pair[1]]]
        button.click(lambda *values: [*values[3:], *values[:3]], both, both, **AT_ONCE)


def _axis(kind: str, label: str | None) -> Axis:
    return next((axis for axis in _menu(kind) if axis.label == label), _menu(kind)[0])


def _shown_values(
    context: ApiContext, kind: str, label: str, text: str, chosen: list[str] | None, as_text: bool
) -> list[Any]:
    """A menu where the axis has names to choose from, else a text; what was written goes from one to the other."""
    axis = _axis(kind, label)
    choices = axis.choices(context) if axis.choices else []
    menu = bool(choices) and not as_text
    if menu and text:
        chosen, text = [one for one in _split(text) if one in choices], ""
    elif not menu and chosen:
        text, chosen = joined_list(one for one in chosen if one in choices) if choices else "", []
    return [
        gr.Textbox(value=text, visible=not menu),
        gr.Dropdown(choices=choices, value=[one for one in chosen or [] if one in choices], visible=menu),
        gr.Button(visible=bool(choices)),
    ]


def _split(text: str) -> list[str]:
    try:
        return split_list(text)
    except BadValue:
        return []


def _all_values(context: ApiContext, kind: str, label: str, as_text: bool) -> list[Any]:
    axis = _axis(kind, label)
    choices = axis.choices(context) if axis.choices else []
    return [joined_list(choices), gr.skip()] if as_text else [gr.skip(), choices]
