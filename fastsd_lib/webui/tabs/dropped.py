"""A picture that is dropped on the page, as the file that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from fastsd_lib.core.errors import UserError


def dropped_picture(label: str, elem_id: str, height: int) -> gr.Image:
    """Its value is the path of the very file that was dropped, texts in it and all; nothing is decoded here.

    gr.Image decodes what it is given before anybody can say what is wrong with it. (A class of our own would make
    Gradio write a .pyi beside this file.)
    """
    picture = gr.Image(
        type="filepath", image_mode=None, sources=["upload"], label=label, elem_id=elem_id, height=height,
        buttons=["fullscreen"],
    )  # fmt: skip
    picture.preprocess = _path
    return picture


def _path(payload: Any) -> str | None:
    return None if payload is None or payload.path is None else str(payload.path)


def bytes_of(path: str | None, most: int, what: str = "The picture") -> bytes:
    """The file's bytes. UserError for none, and for one that is too large."""
    if not path:
        raise UserError("There is no picture.", fix="drop one here first.")
    file = Path(path)
    if file.stat().st_size > most:
        raise UserError(f"{what} is larger than {most >> 20} MB.", fix="take a smaller file.")
    return file.read_bytes()
