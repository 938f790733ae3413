"""The look that every widget shares: one accent colour, readable on light and dark pages alike.

Surfaces are half-transparent greys and text takes the page's colour, so JupyterLab, Colab and VS Code need no
theme of their own here. The accent has a contrast of 4.5 on white and of 4.2 on JupyterLab's dark page.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

STYLESHEET = """<style>
.fsd { --fsd-accent: #7a5af8; --fsd-line: rgba(127,127,127,.32); --fsd-soft: rgba(127,127,127,.10);
  --fsd-bad: #d9363e; --fsd-good: #268a5c;
  --fsd-page: var(--jp-layout-color1, var(--vscode-editor-background, var(--colab-primary-surface-color,
  Canvas)));
  --fsd-text: var(--jp-ui-font-color1, var(--vscode-foreground, var(--colab-primary-text-color,
  CanvasText)));
  border: 1px solid var(--fsd-line); border-radius: 10px; padding: 14px 16px 16px; margin: 4px 2px;
  max-width: 980px; box-sizing: border-box; color: var(--fsd-text); overflow: visible; }
.fsd, .fsd p, .fsd td, .fsd .widget-html-content { font-family: var(--jp-ui-font-family, system-ui,
  sans-serif);
  font-size: 13px; line-height: 1.5; }
.fsd .widget-html-content { color: var(--fsd-text); height: auto; white-space: normal; }
.fsd .widget-html, .fsd .widget-inline-hbox { height: auto; overflow: visible; }
.fsd .widget-box { overflow: visible; }
.fsd .widget-html:has(> .widget-html-content:empty) { display: none; }
.fsd-title { font-size: 15px; font-weight: 600; margin: 0; padding-left: 10px;
  border-left: 3px solid var(--fsd-accent); line-height: 1.3; }
.fsd-note { opacity: .72; margin: 2px 0 0 13px; }
.fsd-label { font-weight: 600; }
.fsd-help { opacity: .72; }
.fsd-error, .fsd .fsd-error { color: var(--fsd-bad); opacity: 1; }
.fsd-good { color: var(--fsd-good); }
.fsd-box { background: var(--fsd-soft); border-radius: 8px; padding: 8px 12px; overflow-wrap: anywhere; }
.fsd-code { font-family: var(--jp-code-font-family, ui-monospace, monospace); font-size: 12.5px; }
.fsd .jupyter-button { border-radius: 7px; border: 1px solid var(--fsd-line); background: var(--fsd-soft);
  color: var(--fsd-text); height: 32px; line-height: 30px; padding: 0 14px; width: auto; font-size: 13px;
  font-weight: 500; margin: 2px 4px 2px 0; box-shadow: none; overflow: visible; }
.fsd .jupyter-button:hover:enabled { border-color: var(--fsd-accent); }
.fsd .jupyter-button:focus-visible { outline: 2px solid var(--fsd-accent); outline-offset: 1px; }
.fsd .jupyter-button:disabled { opacity: .45; }
.fsd .jupyter-button.fsd-primary { background: var(--fsd-accent); border-color: var(--fsd-accent);
  color: #fff; }
.fsd .jupyter-button.fsd-danger { background: var(--fsd-bad); border-color: var(--fsd-bad); color: #fff; }
.fsd input[type=text], .fsd input[type=number], .fsd textarea, .fsd select { color: var(--fsd-text)
  !important;
  background: var(--fsd-soft) !important; border: 1px solid var(--fsd-line) !important; border-radius:
  7px !important;
  font-size: 13px !important; box-sizing: border-box; }
.fsd input[type=text], .fsd input[type=number] { height: 32px !important; padding: 0 9px !important; }
.fsd .widget-text, .fsd .widget-dropdown { height: 34px; }
.fsd .widget-dropdown > select { height: 32px; padding-left: 9px !important; }
.fsd .widget-textarea { max-width: calc(100% - 4px); }
.fsd textarea { padding: 7px 9px !important; line-height: 1.45; font-family: inherit !important; }
.fsd select[size] { padding: 4px !important; overflow-y: auto; }
.fsd select[size] option { padding: 4px 7px; border-radius: 5px; }
.fsd .widget-dropdown option { background: var(--fsd-page); color: var(--fsd-text); }
.fsd :is(input, textarea, select):focus { outline: 2px solid var(--fsd-accent) !important;
  outline-offset: -1px; }
.fsd .widget-readout, .fsd .widget-label { color: var(--fsd-text); }
.fsd .noUi-connect { background: var(--fsd-accent); }
.fsd-tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(132px, 1fr));
  margin: 4px 0; }
.fsd-tile { display: block; min-width: 0; }
.fsd-tile img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--fsd-soft);
  border-radius: 8px; display: block; }
.fsd-tile img.fsd-small, .fsd-crop img.fsd-small { image-rendering: pixelated; }
.fsd-tile figcaption, .fsd-tile span { display: block; font-size: 12px; opacity: .8; margin-top: 4px;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.fsd-tile.fsd-chosen img { outline: 3px solid var(--fsd-accent); }
.fsd-crop { position: relative; display: inline-block; line-height: 0; overflow: hidden; border-radius:
  8px; }
.fsd-crop img { display: block; max-width: 100%; border-radius: 8px; }
.fsd-crop i { position: absolute; box-sizing: border-box; border: 2px solid #fff; outline: 2px solid
  var(--fsd-accent);
  box-shadow: 0 0 0 2000px rgba(0,0,0,.5); border-radius: 3px; }
.fsd-stages { display: grid; grid-template-columns: max-content minmax(120px, 1fr) max-content
  max-content;
  gap: 8px 14px; align-items: center; }
.fsd-bar { height: 10px; border-radius: 5px; background: var(--fsd-soft); overflow: hidden; }
.fsd-bar b { display: block; height: 100%; border-radius: 5px; background: var(--fsd-accent); }
.fsd-number { font-variant-numeric: tabular-nums; text-align: right; }
.fsd-facts { display: flex; flex-wrap: wrap; gap: 8px; }
.fsd-facts div { background: var(--fsd-soft); border-radius: 8px; padding: 5px 12px; min-width: 92px; }
.fsd-facts small { display: block; opacity: .72; font-size: 11.5px; }
.fsd-facts strong { font-size: 15px; font-weight: 600; font-variant-numeric: tabular-nums; }
.fsd table.fsd-table { border-collapse: collapse; }
.fsd table.fsd-table td { text-align: left; padding: 3px 18px 3px 0; background: none; border: 0; }
</style>"""


class Shown:
    """A widget with a `box`: it shows itself as the last line of a cell, or when told to."""

    box: Any

    def show(self) -> None:
        from IPython.display import display

        display(self.box)

    def _ipython_display_(self) -> None:
        self.show()


def card(title: str, *children: Any, note: str = "") -> Any:
    """A bordered box with a title, the shared stylesheet and `children` below one another."""
    import ipywidgets

    head = f'{STYLESHEET}<div class="fsd-title">{escape(title)}</div>'
    if note:
        head += f'<div class="fsd-note">{escape(note)}</div>'
    box = ipywidgets.VBox([ipywidgets.HTML(head), *children], layout=ipywidgets.Layout(grid_gap="10px"))
    box.add_class("fsd")
    return box


def html(content: str = "", **layout: str) -> Any:
    """An HTML widget; `content` is markup, so user text in it must have gone through `escape`."""
    import ipywidgets

    return ipywidgets.HTML(content, layout=ipywidgets.Layout(**layout))


def button(label: str, on_click: Callable[[], None], *, kind: str = "plain", disabled: bool = False) -> Any:
    """A button as wide as its label; `kind` is plain, primary or danger."""
    import ipywidgets

    made = ipywidgets.Button(description=label, disabled=disabled, layout=ipywidgets.Layout(width="auto"))
    if kind != "plain":
        made.add_class(f"fsd-{kind}")
    made.on_click(lambda _: on_click())
    return made


def row(*children: Any, **layout: str) -> Any:
    """Children side by side; they wrap on a narrow page instead of being cut off."""
    import ipywidgets

    settings = {"flex_flow": "row wrap", "align_items": "center", "grid_gap": "8px", **layout}
    return ipywidgets.HBox(list(children), layout=ipywidgets.Layout(**settings))


def column(*children: Any, **layout: str) -> Any:
    import ipywidgets

    return ipywidgets.VBox(list(children), layout=ipywidgets.Layout(**{"grid_gap": "8px", **layout}))


def failure(error: Exception) -> str:
    """The markup of an error: what is wrong, and below it what to do; no traceback."""
    from fastsd_lib.core.errors import UserError

    if isinstance(error, UserError):
        fix = f'<br><span class="fsd-help">{escape(error.fix)}</span>' if error.fix else ""
        return f'<div class="fsd-box"><span class="fsd-error">{escape(error.message)}</span>{fix}</div>'
    text = f"{type(error).__name__}: {error}"
    return f'<div class="fsd-box"><span class="fsd-error">{escape(text)}</span></div>'
