"""Tab Queue: what waits and what is drawn. It lives in the browser and asks our own API, which knows whose jobs are whose:

no thread and no event of Gradio's is spent on whoever looks.
"""

from __future__ import annotations

import gradio as gr

from fastsd_lib.webui.look import PAGE
from fastsd_lib.webui.tabs.desk import Desk

_LAID_OUT = """
<div class="queue">
  <div class="queue-head"><span class="queue-state" role="status">…</span>
    <button type="button" class="queue-act queue-pause" title="Hold everything before the next step, or go on. With
 several users it is refused while orders of others are under way.">Pause</button></div>
  <p class="queue-trouble" role="alert" hidden></p>
  <ol class="queue-list"></ol>
  <p class="queue-empty" hidden>Nothing waits. What you order on any tab, or over the API, is listed here.</p>
  <h3 class="queue-past-head" hidden>Just over</h3>
  <ul class="queue-over"></ul>
</div>
"""


def build(desk: Desk) -> None:
    gr.HTML(
        html_template=_LAID_OUT,
        js_on_load=(PAGE / "queue.js").read_text("utf-8"),
        elem_id="queue_panel",
        padding=False,
        apply_default_css=False,
    )
