"""Small pieces of HTML that several tabs show. Every text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cell = str | tuple[str, str]  # text, or (text, class of the cell)


def progress(words: str, share: float | None = None, aside: str = "") -> str:
    """A line, and a bar under it when there is a share."""
    bar = "" if share is None else f'<div class="bar"><i style="width:{share:.1%}"></i></div>'
    line = f"<span>{html.escape(words)}</span><span>{html.escape(aside)}</span>"
    return f'<div class="line-and-bar" role="status"><div class="line">{line}</div>{bar}</div>'


def notes(sentences: Iterable[str], kind: str = "warning", head: str = "") -> str:
    """A box with a line for each sentence; "" for none."""
    lines = "".join(f"<li>{html.escape(one)}</li>" for one in sentences)
    title = f"<b>{html.escape(head)}</b>" if head else ""
    return f'<div class="notes {kind}" role="note">{title}<ul>{lines}</ul></div>' if lines else ""


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values in aligned columns."""
    rows = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>" for key, value in values.items()
    )
    return f'<dl class="pairs">{rows}</dl>' if rows else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]], empty: str, name: str = "") -> str:
    """A table that becomes a list of cards on a phone."""
    body = "".join(
        f"<tr>{''.join(_cell(cell, head) for cell, head in zip(row, heads, strict=True))}</tr>"
        for row in rows
    )
    if not body:
        return f'<p class="nothing">{html.escape(empty)}</p>'
    top = "".join(f"<th scope='col'>{html.escape(head)}</th>" for head in heads)
    return (
        f'<div class="table {name}"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _cell(cell: Cell, head: str) -> str:
    text, kind = cell if isinstance(cell, tuple) else (cell, "")
    return f'<td class="{kind}" data-head="{html.escape(head)}">{html.escape(text)}</td>'


def size(count: int) -> str:
    """Bytes as people say them."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    return f"{count:.3g} GB"
