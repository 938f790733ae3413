"""A ViT server from a notebook: its address, a password where others reach it, and how to ask it."""

from __future__ import annotations

from fastsd_lib.widgets.webui_panel import WebuiPanel
from fastsd_lib.workflows import vit_serve


class VitServer(WebuiPanel):
    """`config` is a VitServeConfig; the buttons and `run` are those of the web UI's panel."""

    title, called = "ViT server", "The model answers"
    begin = staticmethod(vit_serve.launch)
