"""What happens when a tab comes into view, or the page is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.context import Context

from fastsd_lib.webui.tabs.desk import QUIET


def when_shown(
    work: Callable[..., Any], outputs: Sequence[Any], inputs: Sequence[Any] = (), **more: Any
) -> None:
    """Call `work` whenever the tab that is being built is selected: what it shows may have changed since.

    Called in a tab's `build`.
    """
    place = Context.block
    while place is not None and not isinstance(place, gr.Tab):
        place = place.parent
    if place is None:
        raise RuntimeError("when_shown is for what stands in a tab")
    # the outermost one: inner tabs are chosen while the outer one is seen
    while (above := _tab_above(place)) is not None:
        place = above
    place.select(work, list(inputs), list(outputs), **{**QUIET, **more})


def when_loaded(
    work: Callable[..., Any] | None, outputs: Sequence[Any], inputs: Sequence[Any] = (), **more: Any
) -> None:
    """Call `work` when a browser has loaded the page. (gr.on without triggers would hear every change of `inputs`, too.)"""
    Context.root_block.load(work, list(inputs), list(outputs), **{**QUIET, **more})


def _tab_above(place: Any) -> gr.Tab | None:
    place = place.parent
    while place is not None and not isinstance(place, gr.Tab):
        place = place.parent
    return place
