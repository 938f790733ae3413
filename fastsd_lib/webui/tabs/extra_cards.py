"""LoRA files, embeddings, checkpoints and wildcards as cards: a press writes into the prompt, or loads the checkpoint."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gradio as gr

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.prompts import known_wildcards
from fastsd_lib.webui import extra_networks
from fastsd_lib.webui.a1111_lists import refresh_networks
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.tabs.desk import QUIET, Desk, icon_button, told

PAGES = {"lora": "LoRA", "textual_inversion": "Embeddings", "checkpoints": "Checkpoints"}
_FOLDERS = {
    "lora": "models/Lora",
    "textual_inversion": "embeddings",
    "checkpoints": "models/Stable-diffusion",
}


def build(desk: Desk, kind: str) -> None:
    """A gr.Tab for each page of cards, in the current gr.Tabs; filled when it is first looked at."""
    for page, label in PAGES.items():
        with gr.Tab(label, elem_id=f"{kind}_{page}_cards_tab") as tab:
            with gr.Row(elem_classes=["cards-head"]):
                gr.Textbox(
                    placeholder="Search", show_label=False, container=False, label=f"Search {label}",
                    elem_id=f"{kind}_{page}_search", elem_classes=["cards-search"], min_width=120,
                )  # fmt: skip
                again = icon_button("Look into the folder again", "again", f"{kind}_{page}_extra_refresh")
            shelf = gr.HTML(elem_id=f"{kind}_{page}_cards", elem_classes=["cards"])

        async def show(page: str = page) -> str:
            try:
                return await asyncio.to_thread(cards, desk.context, page)
            except UserError as error:
                raise told(error) from None

        async def look_again(page: str = page) -> str:
            await asyncio.to_thread(refresh_networks, desk.context)
            return await show(page)

        tab.select(show, None, shelf, **QUIET)
        again.click(look_again, None, shelf, **QUIET)


def cards(context: ApiContext, page: str) -> str:
    """The cards of a page as HTML; page/cards.js searches and presses them. Reads folders."""
    items = sorted(_items(context, page), key=lambda one: one[0].lower())
    if not items:
        return f'<p class="none">Nothing here yet: put files into {_FOLDERS[page]}, then look again.</p>'
    current = context.service.shelf.current if page == "checkpoints" else ""
    return "".join(
        _card(page, name, path is not None and bool(extra_networks.covers(path)), name == current, notes)
        for name, path, notes in items
    )


def _items(context: ApiContext, page: str) -> Iterable[tuple[str, Path | None, Mapping[str, Any]]]:
    if page == "wildcards":  # have no file of their own beside which a picture could lie
        return [(name, None, {}) for name in known_wildcards(context.service.shelf.folders)]
    return extra_networks.items_of(context, page)


def _card(page: str, name: str, has_cover: bool, is_current: bool, notes: Mapping[str, Any]) -> str:
    shown, words = html.escape(name, quote=True), html.escape(_trained_on(notes), quote=True)
    put = {"lora": f"<lora:{name}:1>", "textual_inversion": name, "wildcards": f"__{name}__"}.get(page, "")
    does = f'data-put="{html.escape(put, quote=True)}"' if put else f'data-checkpoint="{shown}"'
    source = f"sd_extra_networks/cover-images?page={page}&amp;item={quote(name, safe='')}"
    cover = f'<img loading="lazy" alt="" src="{source}">' if has_cover else '<span class="no-cover"></span>'
    mark = ' aria-current="true"' if is_current else ""
    title = f"{shown}\n{words}" if words else shown
    return (
        f'<button type="button" class="card" {does}{mark} title="{title}" '
        f'data-search="{shown.lower()} {words.lower()}">{cover}<span class="name">{shown}</span></button>'
    )


def _trained_on(notes: Mapping[str, Any]) -> str:
    """What a LoRA file says it was made from, in a few words."""
    said = [str(notes.get(key, "")) for key in ("ss_base_model_version", "ss_output_name", "modelspec.title")]
    return ", ".join(dict.fromkeys(one[:60] for one in said if one))
