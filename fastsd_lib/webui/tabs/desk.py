"""What all tabs of the page share: the server behind it, its forms, and where pictures can be sent."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.page_tasks import PageTasks

if TYPE_CHECKING:
    from fastsd_lib.webui.tabs.form import Form

#: For events of the page's own: no route of the public API, no veil over what they change.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
#: The same, however many come at once. Not queue=False: errors of such events are shown to nobody (Gradio 6.31).
AT_ONCE: dict[str, Any] = {**QUIET, "concurrency_limit": None}


@dataclass(frozen=True)
class Usual:
    """How the current model likes to be asked."""

    side_px: int = 512
    steps: int = 20
    guidance_scale: float = 7.0


@dataclass
class Receiver:
    """Where a picture, and what it was made with, can be sent."""

    label: str  # "img2img": the button says "Send to img2img"
    tab: str  # id of the tab that is shown then
    picture: gr.components.Component | None = None  # takes a file path
    form: Form | None = None  # takes the infotext
    js_after: str = ""  # run in the browser afterwards, to choose an inner tab; a statement
    value_of: Callable[[Any], Any] = lambda path: path  # the path as `picture` takes it
    inner: tuple[gr.Tabs, str] | None = None  # inner tabs, and the one that is shown then


@dataclass
class Desk:
    """One per page; handed to every tab."""

    context: ApiContext
    tasks: PageTasks
    trainings: Any = None  # webui/trainings.py; None = no Train tab
    usual: Usual = Usual()
    tabs: gr.Tabs = field(default=None, repr=False)
    quick: dict[str, gr.components.Component] = field(default_factory=dict)  # option -> its quick setting
    forms: dict[str, Form] = field(default_factory=dict)  # "txt2img", "img2img"
    receivers: dict[str, Receiver] = field(default_factory=dict)
    sendings: list[tuple[Any, ...]] = field(default_factory=list, repr=False)  # buttons to be wired

    def connect_sendings(self) -> None:
        """Wire the buttons of `send_buttons`, when all receivers are known; those without one are not shown."""
        for button, name, picture, text in self.sendings:
            if name in self.receivers:
                _connect(self, button, self.receivers[name], picture, text)
            else:
                button.visible = False


def icon_button(words: str, icon: str, elem_id: str) -> gr.Button:
    """A small square button that shows one of the icons of page/icons.css; its words are for tooltips and readers."""
    return gr.Button(
        words, size="sm", min_width=36, scale=0, elem_id=elem_id, elem_classes=["icon", f"icon-{icon}"]
    )


def told(error: UserError) -> gr.Error:
    """The error as a toast: what was wrong, then the way out. Toasts are HTML, and errors name what was typed."""
    fix = f"\n{error.fix[:1].upper()}{error.fix[1:]}" if error.fix else ""
    return gr.Error(
        html.escape(f"{error.message}{fix}", quote=False), print_exception=False, title="That did not work"
    )


def owner_of_page(request: gr.Request) -> str:
    """Who sits before the page: the user that the guard let in, "" where the server asks for no password."""
    return request.request.scope.get("fastsd.user") or ""


def send_buttons(
    desk: Desk,
    picture_source: gr.components.Component,
    text_source: gr.components.Component,
    to: Sequence[str],
    where: str,
) -> None:
    """Buttons "Send to ...", beside one another, for those of the receivers `to` that are there.

    `picture_source`: its value is a file path or a PIL picture; `text_source`: the picture's infotext. Called in
    a tab's `build`; the buttons are wired when all tabs are built.
    """
    with gr.Row(elem_classes=["send-to"]):
        for name in to:
            button = gr.Button(f"→ {name}", size="sm", min_width=80, elem_id=f"{where}_send_to_{name}")
            desk.sendings.append((button, name, picture_source, text_source))


def _connect(desk: Desk, button: gr.Button, to: Receiver, picture: Any, text: Any) -> None:
    button.value = f"→ {to.label}"
    fields = to.form.pasteable() if to.form else []
    inner = [to.inner[0]] if to.inner else []
    outputs = [desk.tabs, *inner, *([to.picture] if to.picture else []), *fields]

    def send(shown: Any, infotext: str) -> list[Any]:
        if to.picture is not None and shown is None:
            raise gr.Error("There is no picture to send yet.", print_exception=False, title="Nothing to send")
        pasted = to.form.paste(infotext) if to.form and infotext else [gr.skip() for _ in fields]
        chosen = [gr.Tabs(selected=to.inner[1])] if to.inner else []
        given = [to.value_of(shown)] if to.picture else []
        return [gr.Tabs(selected=to.tab), *chosen, *given, *pasted]

    sent = button.click(send, [picture, text], outputs, **AT_ONCE)
    if to.js_after:
        sent.then(None, js=f"() => {{ {to.js_after} }}")
