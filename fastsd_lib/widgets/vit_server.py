"""A ViT server from a notebook: its address, and a password where others reach it."""

from __future__ import annotations

from typing import Any, ClassVar

from fastsd_lib.widgets.webui_panel import WebuiPanel
from fastsd_lib.workflows import vit_serve


class VitServer(WebuiPanel):
    """`config` is a VitServeConfig; the buttons and `run` are those of the web UI's panel.

    A kernel serves one model: the server of an earlier run of the cell ends, so that its port is free.
    """

    title, called = "ViT server", "The model answers"
    begin = staticmethod(vit_serve.launch)
    _last: ClassVar[VitServer | None] = None

    def __init__(self, config: vit_serve.VitServeConfig, root: Any = None, **more: Any) -> None:
        super().__init__(config, root, **more)
        if VitServer._last is not None:
            VitServer._last.stop()
        VitServer._last = self
