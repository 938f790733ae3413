"""Looking at what a step made: pictures, a grid, a few figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.widgets import style
from fastsd_lib.widgets.pictures import image_tag, tiles


def show_pictures(
    pictures: Sequence[Any], labels: Sequence[str] | None = None, title: str = "Pictures"
) -> None:
    """Paths or PIL images as tiles, each with its label (default: the file's name)."""
    names = labels or [p.name if isinstance(p, Path) else str(n) for n, p in enumerate(pictures, 1)]
    if len(names) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures but {len(names)} labels")
    body = tiles(list(zip(pictures, names, strict=True))) if pictures else "No pictures yet."
    _display(title, body)


def show_folder(folder: Path, title: str, limit: int = 12) -> None:
    """The first `limit` pictures of a folder, and how many there are."""
    from fastsd_lib.core.file_kinds import list_photos

    pictures = list_photos(folder) if folder.is_dir() else []
    show_pictures(pictures[:limit], title=f"{title} ({len(pictures)})")


def show_grid(path: Path, title: str = "", note: str = "") -> None:
    """One picture at its own size, or as wide as the page when it is wider."""
    caption = f'<div class="fsd-help">{escape(str(path))}</div>'
    picture = image_tag(path, 1600, alt=title or path.name, style="max-width:100%;border-radius:8px")
    _display(title or path.stem, picture + caption, note)


def banner(title: str, text: str = "", facts: Mapping[str, Any] | None = None) -> None:
    """A line of text and a small table of facts: what the step did and where it lies."""
    body = f"<div>{escape(text)}</div>" if text else ""
    if facts:
        cells = "".join(
            f'<tr><td class="fsd-help">{escape(str(name))}</td>'
            f'<td class="fsd-code">{escape(str(value))}</td></tr>'
            for name, value in facts.items()
        )
        body += f'<table class="fsd-table">{cells}</table>'
    _display(title, body)


def _display(title: str, body: str, note: str = "") -> None:
    from IPython.display import display

    display(style.card(title, style.html(body), note=note))
