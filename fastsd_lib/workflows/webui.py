"""The web UI on a model of any kind."""

from __future__ import annotations

from pathlib import Path

from fastsd_lib.core.errors import require
from fastsd_lib.models import registry


def serve(
    model: str | Path = registry.EMBEDDED,
    host: str = "127.0.0.1",
    port: int = 7860,
    user: str | None = None,
    password: str | None = None,
) -> None:
    """Serve the page until Ctrl-C; another host than this machine needs a user and a password."""
    require("gradio", group="webui")
    from fastsd_lib.webui import app

    app.serve(registry.base_model(model), host=host, port=port, user=user, password=password)
