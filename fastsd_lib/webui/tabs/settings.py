"""Tab Settings: the server's options by group, with their ranges; what this browser alone keeps; who is signed in."""

from __future__ import annotations

import html
import json
import math
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui import a1111_settings
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import OPTIONS, READ_ONLY, Option
from fastsd_lib.webui.tabs import shown
from fastsd_lib.webui.tabs.desk import AT_ONCE, QUIET, Desk, owner_of_page, told
from fastsd_lib.webui.tabs.setting_words import GROUPS, WORDS
from fastsd_lib.webui.tabs.tab import when_loaded, when_shown

OTHER = "Other"
SHORTCUTS = {
    "Ctrl + Enter": "generate; again while it draws: begin anew",
    "Alt + Enter": "skip to the next picture",
    "Esc": "interrupt",
    "Ctrl + Up / Down": "more or less weight for the marked words, (word:1.1)",
    "Alt + Left / Right": "move the word under the cursor",
}
_SEARCH = """(text) => {
  const words = text.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const group of document.querySelectorAll("#settings .setting-group")) {
    let any = false;
    for (const one of group.querySelectorAll(".setting")) {
      const said = (one.textContent + " " + one.id).toLowerCase();
      const hit = words.every((word) => said.includes(word));
      one.style.display = hit ? "" : "none";
      any = any || hit;
    }
    group.style.display = any ? "" : "none";
  }
}"""


def build(desk: Desk) -> None:
    context = desk.context
    names = _grouped()
    parts: dict[str, gr.components.Component] = {}
    with gr.Row(elem_id="settings", equal_height=False):
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_classes=["tools"]):
                search = gr.Textbox(
                    placeholder="Search settings", show_label=False, container=False, max_lines=1, scale=3,
                    elem_id="settings_search", min_width=160,
                )  # fmt: skip
                apply = gr.Button("Apply", variant="primary", elem_id="settings_apply", min_width=120)
                reset = gr.Button("Defaults", elem_id="settings_reset", min_width=90)
            state = gr.HTML(elem_id="settings_state", padding=False)
            for group, those in names.items():
                with gr.Column(elem_classes=["setting-group"]):
                    gr.HTML(f'<h3 class="tab-head">{html.escape(group)}</h3>', padding=False)
                    for name in those:
                        parts[name] = _component(name, OPTIONS[name], context)
        with gr.Column(scale=2, min_width=300):
            _preferences(desk)
            who = gr.HTML(elem_id="settings_user", padding=False)
            gr.HTML(_help(), elem_id="settings_help", padding=False)

    values = list(parts.values())
    events: dict[str, Any] = {**QUIET, "concurrency_limit": None}

    def now(request: gr.Request) -> list[Any]:
        return [*_updates(parts, context), _who(owner_of_page(request)), ""]

    def change(*given: Any) -> list[Any]:
        return [_changed(context, dict(zip(parts, given, strict=True))), *_updates(parts, context)]

    def defaults() -> list[Any]:
        usual = [
            gr.skip() if name in ("sd_model_checkpoint", *READ_ONLY) else OPTIONS[name].default
            for name in parts
        ]
        return [shown.progress("The defaults are filled in; Apply makes them count."), *usual]

    search.change(None, search, None, js=_SEARCH, **AT_ONCE)
    apply.click(change, values, [state, *values], **events)
    reset.click(defaults, None, [state, *values], **events)
    when_shown(now, [*values, who, state], concurrency_limit=None)


# ------------------------------------------------------------------ the server's options


def _grouped() -> dict[str, list[str]]:
    """Every option stands in one group; a new one that no group names is not lost."""
    grouped = {group: [name for name in names if name in OPTIONS] for group, names in GROUPS.items()}
    rest = [name for name in OPTIONS if not any(name in names for names in grouped.values())]
    return grouped | ({OTHER: rest} if rest else {})


def _component(name: str, option: Option, context: ApiContext) -> gr.components.Component:
    label, about = WORDS.get(name, (name.replace("_", " "), ""))
    fixed = option.why_fixed or ("it is shown, not set" if name in READ_ONLY else "")
    said = [about, _range(option) if not fixed else "", f"Fixed: {fixed}." if fixed else ""]
    choices: dict[str, Any] = {
        "label": label,
        "info": " ".join(one for one in said if one) or None,
        "interactive": not fixed,
        "elem_id": f"settings_{name}",
        "elem_classes": ["setting", "fixed"] if fixed else ["setting"],
    }
    value = a1111_settings.shown(context)[name]
    offered = _choices(name, option, context)
    if isinstance(option.default, bool):
        return gr.Checkbox(value, **choices)
    if offered:
        return gr.Dropdown(offered, value=value, **choices)
    if isinstance(option.default, int | float):
        whole = isinstance(option.default, int)
        low = option.low if math.isfinite(option.low) else None
        high = option.high if math.isfinite(option.high) else None
        return gr.Number(value, precision=0 if whole else None, minimum=low, maximum=high,
                         step=1 if whole else 0.05, **choices)  # fmt: skip
    return gr.Textbox(_text(value), max_lines=1, **choices)


def _choices(name: str, option: Option, context: ApiContext) -> list[str]:
    shelf = context.service.shelf
    if name == "sd_model_checkpoint":
        return [model.title for model in shelf.models()]
    if name == "sd_vae":
        return ["Automatic", *(vae.name for vae in shelf.vaes())]
    return [str(choice) for choice in option.choices]


def _range(option: Option) -> str:
    if isinstance(option.default, bool) or not isinstance(option.default, int | float) or option.choices:
        return ""
    if math.isfinite(option.low) and math.isfinite(option.high):
        return f"{option.low:g} to {option.high:g}."
    return f"{option.low:g} or more." if math.isfinite(option.low) else ""


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _updates(parts: dict[str, Any], context: ApiContext) -> list[Any]:
    """Everything as it is in force now; files may have come since the page was made."""
    values, updates = a1111_settings.shown(context), []
    for name, part in parts.items():
        value = _text(values[name]) if isinstance(part, gr.Textbox) else values[name]
        moving = name in ("sd_model_checkpoint", "sd_vae")
        updates.append(
            gr.Dropdown(choices=_choices(name, OPTIONS[name], context), value=value) if moving else value
        )
    return updates


def _changed(context: ApiContext, given: dict[str, Any]) -> str:
    """Apply what differs; all of it or nothing. Says what was changed."""
    before = a1111_settings.shown(context)
    asked = {
        name: value
        for name, value in given.items()
        if name not in READ_ONLY and not OPTIONS[name].why_fixed and value != before[name]
    }
    try:
        for name in (name for name, value in asked.items() if value is None):
            label = WORDS.get(name, (name, ""))[0]
            raise UserError(f"{label} is empty.", fix=f"type a value, such as {OPTIONS[name].default!r}.")
        a1111_settings.apply(context, a1111_settings.checked_change(context, asked))
    except UserError as error:
        raise told(error) from None
    labels = ", ".join(WORDS.get(name, (name, ""))[0] for name in asked)
    return shown.progress(f"Changed: {labels}." if asked else "Nothing was changed: all is as before.")


# ------------------------------------------------------------------ this browser, this user


def _preferences(desk: Desk) -> None:
    gr.HTML('<h3 class="tab-head">This browser</h3>', padding=False)
    theme = gr.Radio(
        [("As the system", "auto"), ("Light", "light"), ("Dark", "dark")], value="auto", label="Theme",
        elem_id="settings_theme",
    )  # fmt: skip
    theme.input(None, theme, None, js="(chosen) => fastsdTheme.choose(chosen)", **AT_ONCE)
    when_shown(None, [theme], js="() => fastsdTheme.chosen()", queue=False)
    gr.HTML(
        '<p class="nothing">The fields of a tab as they stand now can be what this browser begins with.</p>',
        padding=False,
    )
    for kind, form in desk.forms.items():
        with gr.Row():
            keep = gr.Button(f"Keep the fields of {kind}", size="sm", elem_id=f"settings_keep_{kind}")
            forget = gr.Button("Forget them", size="sm", elem_id=f"settings_forget_{kind}", min_width=100)
        names, fields = json.dumps([kind, list(form.fields)]), list(form.fields.values())
        keep.click(None, fields, None, js=f"(...now) => fastsdFields.keep({names}, now)", **AT_ONCE)
        forget.click(None, None, None, js=f"() => fastsdFields.forget({names})", **AT_ONCE)
        when_loaded(None, fields, fields, js=f"(...now) => fastsdFields.kept({names}, now)", queue=False)


def _who(user: str) -> str:
    head = '<h3 class="tab-head">You</h3>'
    if not user:
        return f"{head}<p class='nothing'>No password is asked for: everybody who reaches this page may draw.</p>"
    return (
        f'{head}<p class="user">Signed in as <b>{html.escape(user)}</b></p>'
        '<form method="post" action="/logout"><button class="queue-act">Sign out</button></form>'
    )


def _help() -> str:
    keys = shown.pairs(SHORTCUTS)
    links = '<a href="/docs" target="_blank">The HTTP API</a>'
    return (
        f'<h3 class="tab-head">Keys</h3>{keys}<h3 class="tab-head">Programs</h3>'
        f'<p class="nothing">{links}: what programs for AUTOMATIC1111 ask, and orders with an id.</p>'
    )
