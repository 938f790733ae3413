"""The web UI on a model of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastsd_lib.core.errors import require
from fastsd_lib.models import registry


def serve(
    model: str | Path = registry.EMBEDDED,
    host: str = "127.0.0.1",
    port: int = 7860,
    user: str | None = None,
    password: str | None = None,
    password_file: Path | None = None,
    no_auth: bool = False,
    open_to_all: bool = False,
    names: Sequence[str] = (),
) -> None:
    """Serve the page until Ctrl-C; on another host than this machine a password is asked for, made if none is given."""
    from fastsd_lib.webui.door import open_door

    door = open_door(  # before the model takes its seconds
        host, user, password, password_file, no_auth=no_auth, open_to_all=open_to_all, names=names
    )
    require("gradio", group="webui")
    from fastsd_lib.webui import app

    app.serve(registry.base_model(model), door, port=port)


def hide_password(password: str) -> None:
    """Take a password that was typed as an argument out of the list of running programs, where that can be done."""
    from fastsd_lib.webui.door import hide_from_listings

    hide_from_listings(password)
