"""Looking at model files: what they are, as facts or as a table; what was made, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsd_lib.core.text import escaped
from fastsd_lib.widgets import style
from fastsd_lib.workflows.model_rows import ModelRow, row_of

if TYPE_CHECKING:
    from fastsd_lib.models.verifying import Verification
    from fastsd_lib.workflows.model_downloads import Downloaded

MOST_ROWS = 500  # of one table on the page
MODEL_STYLES = """<style>
.fsd-models { overflow-x: auto; }
.fsd .fsd-models table { border-collapse: collapse; width: 100%; }
.fsd .fsd-models th, .fsd .fsd-models td { text-align: left; padding: 4px 14px 4px 0; vertical-align: top;
  border: 0; border-bottom: 1px solid var(--fsd-line); background: none; }
.fsd .fsd-models th { font-weight: 600; font-size: 12px; opacity: .72; }
.fsd .fsd-models td:first-child { overflow-wrap: anywhere; min-width: 180px; }
.fsd .fsd-models td:nth-child(n+2):nth-last-child(n+2) { white-space: nowrap; }
.fsd .fsd-model-facts td:first-child { white-space: nowrap; vertical-align: top; }
</style>"""


def show_rows(rows: Sequence[ModelRow], title: str, root: Path | None = None) -> None:
    """Model files as a table, or the facts of a single one; what is wrong with a file stands in its row."""
    if not rows:
        _display(title, f'<div class="fsd-help">No model lies in {escape(str(root or "there"))}.</div>')
    elif len(rows) == 1:
        body = facts_table(facts_of_row(rows[0]))
        _display(title, body + _problem(rows[0]), note=escaped(str(rows[0].path)))
    else:
        bad = sum(bool(row.problem) for row in rows)
        note = f"{len(rows):,} models, {bad:,} with a problem" if bad else f"{len(rows):,} models"
        _display(title, table(rows, root), note=f"{note}, in {escaped(str(root))}" if root else note)


def show_downloaded(found: Sequence[Downloaded], title: str = "Here now") -> None:
    """Where each model lies, what it is, and what its source told."""
    rows = ""
    for one in found:
        row = row_of(one.path)
        notes = "".join(f"<div>{escape(escaped(note))}</div>" for note in one.notes)
        here = "was there" if one.there_already else ""
        rows += (
            f"<tr><td>{escape(escaped(str(one.path)))}</td><td>{escape(row.sort)}</td><td>{escape(row.base)}</td>"
            f'<td class="fsd-number">{row.size}</td><td>{here}</td><td>{notes}{_problem(row)}</td></tr>'
        )
    heads = "".join(f"<th>{head}</th>" for head in ("Where", "Kind", "For", "Size", "", ""))
    _display(title, f'{MODEL_STYLES}<div class="fsd-models"><table><tr>{heads}</tr>{rows}</table></div>')


def table(rows: Sequence[ModelRow], root: Path | None = None) -> str:
    """Markup of a row for each file, by kind; paths below `root` without it."""
    heads = "".join(f"<th>{head}</th>" for head in ("File", "Kind", "For", "Weights", "Size", ""))
    ordered = sorted(
        rows, key=lambda row: (bool(row.problem), row.kind, row.family, str(row.path).casefold())
    )
    body = "".join(
        "<tr>"
        f"<td>{escape(escaped(_short(row.path, root)))}</td><td>{escape(row.sort)}</td><td>{escape(row.base)}</td>"
        f'<td>{escape(row.dtype)}</td><td class="fsd-number">{row.size}</td><td>{_problem(row)}</td></tr>'
        for row in ordered[:MOST_ROWS]
    )
    rest = len(rows) - MOST_ROWS
    more = f'<div class="fsd-help">and {rest:,} more: name a folder to see fewer</div>' if rest > 0 else ""
    return f'{MODEL_STYLES}<div class="fsd-models"><table><tr>{heads}</tr>{body}</table></div>{more}'


def facts_of_row(row: ModelRow) -> dict[str, str]:
    """Label -> text, without what is not known."""
    facts = {
        "Kind": row.sort,
        "For": row.base,
        "Needs": row.needs,
        "Trigger words": ", ".join(row.trigger_words),
        "Prediction": row.prediction,
        "Tensor names": row.naming,
        "Weights": f"{row.dtype}, {row.tensors:,} tensors" if row.tensors else "",
        "Averaged weights": "beside the others" if row.ema else "",
        "Size": row.size,
        "Title": row.title,
    }
    return {label: text for label, text in facts.items() if text}


def facts_table(facts: Mapping[str, Any]) -> str:
    cells = "".join(
        f'<tr><td class="fsd-help">{escape(label)}</td><td>{escape(escaped(str(value)))}</td></tr>'
        for label, value in facts.items()
        if value
    )
    return f'{MODEL_STYLES}<table class="fsd-table fsd-model-facts">{cells}</table>' if cells else ""


def show_verified(found: Sequence[Verification], title: str = "Verified") -> None:
    """One line for each file: whole, or what is wrong; and its SHA-256."""
    rows = "".join(
        f"<tr><td>{escape(escaped(one.path.name))}</td><td>{_verdict(one)}</td>"
        f'<td class="fsd-code">{escape(one.sha256)}</td></tr>'
        for one in found
    )
    _display(title, f'{MODEL_STYLES}<div class="fsd-models"><table>{rows}</table></div>')


def _verdict(one: Verification) -> str:
    if not one.problems:
        return '<span class="fsd-good">whole</span>'
    return "<br>".join(
        f'<span class="fsd-error">{escape(escaped(problem))}</span>' for problem in one.problems
    )


def _problem(row: ModelRow) -> str:
    if not row.problem:
        return ""
    fix = f'<br><span class="fsd-help">{escape(escaped(row.fix))}</span>' if row.fix else ""
    return f'<span class="fsd-error">{escape(escaped(row.problem))}</span>{fix}'


def _short(path: Path, root: Path | None) -> str:
    return str(path.relative_to(root)) if root and path.is_relative_to(root) and path != root else str(path)


def _display(title: str, body: str, note: str = "") -> None:
    from IPython.display import display

    display(style.card(title, style.html(body), note=note))
