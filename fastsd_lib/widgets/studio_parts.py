"""Pieces of the studio's panel: labelled fields, panes one at a time, and pictures that can be pressed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from fastsd_lib.widgets import style
from fastsd_lib.widgets.pictures import SMALL_PX, data_uri

STUDIO_STYLES = """<style>
.fsd.fsd-studio { max-width: 1180px; }
.fsd-studio .fsd-columns { align-items: flex-start; }
.fsd-studio .fsd-side { margin: 0; background: var(--fsd-soft); border-radius: 10px; padding: 10px 12px 12px; }
.fsd-studio .fsd-fields { display: grid !important; gap: 8px 10px;
  grid-template-columns: repeat(auto-fill, minmax(108px, 1fr)); align-items: end; overflow: visible; }
.fsd-studio .fsd-field { min-width: 0; overflow: visible; }
.fsd-studio .fsd-field > * { width: 100% !important; margin: 0 !important; min-width: 0; }
.fsd-studio .fsd-wide { grid-column: span 2; }
.fsd-studio .fsd-full { grid-column: 1 / -1; }
.fsd-studio .fsd-field .widget-hbox, .fsd-studio .fsd-field .jupyter-widget-hbox { height: 34px; }
.fsd-studio .fsd-field .widget-hbox > *, .fsd-studio .fsd-field .jupyter-widget-hbox > * { min-width: 0;
  margin: 0; }
.fsd-studio .widget-textarea, .fsd-studio .widget-html { margin: 0; max-width: 100%; }
.fsd-studio .fsd-name { font-size: 12px; opacity: .78; line-height: 1.35; }
.fsd-studio .fsd-prompt textarea { font-size: 14px !important; }
.fsd-studio .fsd-switch { border-bottom: 1px solid var(--fsd-line); padding-bottom: 6px; }
.fsd .jupyter-button.fsd-on { border-color: var(--fsd-accent); color: var(--fsd-accent); font-weight: 600; }
.fsd .jupyter-button.fsd-generate { min-width: 150px; height: 36px; line-height: 34px; font-weight: 600; }
.fsd .jupyter-button.fsd-icon { width: 34px !important; min-width: 34px; padding: 0; }
.fsd .jupyter-button.fsd-thumb { background-size: cover; background-position: center; width: 100% !important;
  height: auto; aspect-ratio: 1; padding: 0; margin: 0; display: flex; align-items: flex-end;
  justify-content: center; overflow: hidden; font-size: 11px; line-height: 1.35; }
.fsd .jupyter-button.fsd-thumb.fsd-pictured { color: #fff; padding: 0 0 3px; text-shadow: 0 0 3px #000;
  box-shadow: inset 0 -26px 16px -12px rgba(0,0,0,.75); }
.fsd .jupyter-button.fsd-thumb.fsd-on { outline: 3px solid var(--fsd-accent); outline-offset: 0; }
.fsd .jupyter-button.fsd-card { height: auto; min-height: 46px; width: 100% !important; margin: 0; padding: 6px
  10px; line-height: 1.35; text-align: left; white-space: pre-line; overflow-wrap: anywhere; }
.fsd .jupyter-button.fsd-card.fsd-pictured { aspect-ratio: 1; background-size: cover; color: #fff;
  text-shadow: 0 1px 3px #000, 0 0 2px #000; display: flex; align-items: flex-end; }
.fsd-studio .fsd-stage { min-height: 220px; display: flex; align-items: center; justify-content: center;
  background: var(--fsd-soft); border-radius: 10px; overflow: hidden; }
.fsd-studio .fsd-stage img { display: block; max-width: 100%; max-height: 620px; }
.fsd-studio .fsd-stage img.fsd-small { width: min(100%, 384px); image-rendering: pixelated; }
.fsd-studio .fsd-infotext { white-space: pre-wrap; max-height: 150px; overflow-y: auto; font-size: 12px; }
.fsd-studio .widget-upload { width: auto; }
</style>"""


def field(name: str, widget: Any, *, wide: bool = False, full: bool = False, tip: str = "") -> Any:
    """A widget below its name: one column of the grid, two (`wide`), or all (`full`)."""
    import ipywidgets

    title = f' title="{escape(tip, quote=True)}"' if tip else ""
    box = ipywidgets.VBox([ipywidgets.HTML(f'<span class="fsd-name"{title}>{escape(name)}</span>'), widget])
    box.add_class("fsd-field")
    if wide:
        box.add_class("fsd-wide")
    if full:
        box.add_class("fsd-full")
    return box


def fields(*boxes: Any) -> Any:
    """Fields in aligned columns, as many as fit."""
    import ipywidgets

    grid = ipywidgets.Box(list(boxes))
    grid.add_class("fsd-fields")
    return grid


def small_button(sign: str, tip: str, on_click: Callable[[], None]) -> Any:
    made = style.button(sign, on_click)
    made.tooltip = tip
    made.add_class("fsd-icon")
    return made


class Switch:
    """Panes of which one shows at a time, each behind a button; `box` is the row of buttons and the panes."""

    def __init__(self, panes: Sequence[tuple[str, Any]], on_show: Callable[[str], None] = lambda name: None):
        self.buttons = {name: style.button(name, lambda name=name: self.show(name)) for name, _ in panes}
        self._panes, self._on_show = dict(panes), on_show
        head = style.row(*self.buttons.values(), grid_gap="2px")
        head.add_class("fsd-switch")
        self.box = style.column(head, *self._panes.values())
        self.show(panes[0][0])

    def show(self, name: str) -> None:
        for other, pane in self._panes.items():
            pane.layout.display = "" if other == name else "none"
            mark(self.buttons[other], other == name)
        self._on_show(name)


def mark(button: Any, on: bool) -> None:
    """Show a button as the chosen one, or not."""
    (button.add_class if on else button.remove_class)("fsd-on")


class PictureButtons:
    """Pictures as buttons in a grid: core widgets know no picture that can be pressed, but buttons take a class."""

    _made = 0  # classes are the page's, not one panel's

    def __init__(self, on_press: Callable[[int], None], min_px: int = 84, kind: str = "fsd-thumb") -> None:
        import ipywidgets

        self._on_press, self._kind = on_press, kind
        self._style = style.html()
        self.grid = ipywidgets.GridBox(
            layout=ipywidgets.Layout(
                grid_template_columns=f"repeat(auto-fill, minmax({min_px}px, 1fr))",
                grid_gap="8px",
                width="100%",
            )
        )
        self.box = style.column(self._style, self.grid, grid_gap="0px")
        self._rules: list[str] = []
        self.buttons: list[Any] = []

    def clear(self) -> None:
        self._rules, self.buttons = [], []
        self._draw()

    def add(self, picture: Any, label: str, tip: str = "") -> None:
        """`picture`: a path or PIL image, or None for a button of words."""
        self._append(picture, label, tip)
        self._draw()

    def fill(self, entries: Sequence[tuple[Any, str, str]]) -> None:
        """(picture or None, label, tip) of each, instead of what was there."""
        self._rules, self.buttons = [], []
        for entry in entries:
            self._append(*entry)
        self._draw()

    def choose(self, number: int) -> None:
        for place, button in enumerate(self.buttons):
            mark(button, place == number)

    def _append(self, picture: Any, label: str, tip: str) -> None:
        import ipywidgets

        number = len(self.buttons)
        button = ipywidgets.Button(description=label, tooltip=tip or label)
        button.add_class(self._kind)
        if picture is not None:
            PictureButtons._made += 1
            name = f"fsd-p{PictureButtons._made}"
            button.add_class(name)
            button.add_class("fsd-pictured")
            uri = data_uri(picture.copy() if hasattr(picture, "getbands") else picture, 192)
            sharp = "image-rendering:pixelated;" if uri.startswith("data:image/png") else ""
            self._rules.append(f".fsd .jupyter-button.{name}{{background-image:url({uri});{sharp}}}")
        button.on_click(lambda _: self._on_press(number))
        self.buttons.append(button)

    def _draw(self) -> None:
        self._style.value = f"<style>{''.join(self._rules)}</style>" if self._rules else ""
        self.grid.children = tuple(self.buttons)
        self.box.layout.display = "" if self.buttons else "none"


def stage(picture: Any) -> str:
    """The large picture: as it is, tiny ones enlarged with sharp pixels."""
    small = ' class="fsd-small"' if max(picture.size) <= SMALL_PX else ""
    return f'<div class="fsd-stage"><img{small} src="{data_uri(picture.copy(), 1024)}" alt="picture"></div>'
