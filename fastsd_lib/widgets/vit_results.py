"""Looking at what a ViT experiment made: predictions beside their pictures, neighbours, groups, tables, a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.widgets import style
from fastsd_lib.widgets.pictures import image_tag

THUMB_PX = 224
VIT_STYLES = """<style>
.fsd-vit-cards { display: grid; gap: 14px; grid-template-columns: repeat(auto-fill, minmax(168px, 1fr)); }
.fsd-vit-cards .fsd-tile img { aspect-ratio: 4 / 3; }
.fsd-vit-cards .fsd-tile > b { display: block; font-size: 12.5px; margin-top: 5px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
.fsd-vit-score { display: grid; grid-template-columns: minmax(0, 1fr) 46px 42px; gap: 6px; align-items: center;
  font-size: 12px; }
.fsd-vit-score span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.fsd-vit-score .fsd-bar { height: 6px; }
.fsd-vit-inside { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr));
  align-items: start; }
.fsd-vit-inside > img { width: 100%; border-radius: 8px; display: block; }
.fsd-vit-none { aspect-ratio: 4 / 3; border-radius: 8px; background: var(--fsd-soft); display: grid;
  place-items: center; font-size: 12px; padding: 8px; box-sizing: border-box; overflow: hidden; }
.fsd-vit-group { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, 92px); margin: 4px 0 12px; }
.fsd-vit-scroll { overflow-x: auto; max-width: 100%; }
.fsd table.fsd-vit-table { border-collapse: collapse; font-size: 13px; }
.fsd table.fsd-vit-table th, .fsd table.fsd-vit-table td { padding: 4px 14px 4px 0; text-align: left;
  border-bottom: 1px solid var(--fsd-line); background: none; vertical-align: top; }
.fsd table.fsd-vit-table td:first-child, .fsd table.fsd-vit-table .fsd-number { white-space: nowrap; }
.fsd table.fsd-vit-table .fsd-number { text-align: right; }
</style>"""


def show_predictions(
    predictions: Iterable[Any], title: str = "Predictions", note: str = "", limit: int = 24
) -> None:
    """The first `limit` predictions, each below its picture with its best labels; those not read say why."""
    held = list(predictions)
    cards = "".join(_prediction(one) for one in held[:limit])
    rest = f"{len(held) - limit} more are not shown." if len(held) > limit else ""
    body = f'<div class="fsd-vit-cards">{cards}</div>' if cards else "No pictures yet."
    _display(title, body, " ".join(filter(None, (rest, note))))


def show_neighbours(query: Any, neighbours: Sequence[Any], title: str = "Most alike") -> None:
    """The picture that was asked for, then its neighbours, the most alike first."""
    body = _card(query, "asked for", Path(str(query)).name)
    body += "".join(
        _card(one.place or one.key, f"{one.score:.3f}", "/".join(Path(one.key).parts[-2:]))
        for one in neighbours
    )
    _display(title, f'<div class="fsd-vit-cards">{body}</div>')


def show_groups(groups: Mapping[str, Sequence[str]], title: str, note: str = "", most: int = 9) -> None:
    """Groups of pictures that belong together, each under its name, `most` of each."""
    body = ""
    for name, keys in groups.items():
        count = f"{len(keys)} picture{'s' if len(keys) != 1 else ''}"
        tiles = "".join(_card(key, "", "/".join(Path(key).parts[-2:])) for key in keys[:most])
        body += f'<div class="fsd-label">{escape(name)} <span class="fsd-help">{count}</span></div>'
        body += f'<div class="fsd-vit-group">{tiles}</div>'
    _display(title, body or "None were found.", note)


def show_table(rows: Sequence[Mapping[str, Any]], title: str, note: str = "") -> None:
    """Rows of one shape as a table; numbers stand to the right."""
    _display(title, table(rows), note)


def show_inside(pictures: Mapping[str, Any], title: str = "Look inside") -> None:
    """Pictures that say themselves what they show, side by side; wide ones take a row."""
    body = "".join(
        image_tag(
            picture, 1200, alt=name, style="grid-column:1/-1" if picture.width > 1.4 * picture.height else ""
        )
        for name, picture in pictures.items()
    )
    body = f'<div class="fsd-vit-inside">{body}</div>' if body else ""
    _display(title, body or "Nothing to see.")


def show_curated(found: Any, title: str = "Photos for DreamBooth") -> None:
    """Each photo of a session with the advice; None says how to get some."""
    if found is None:
        _display(title, "No session is named: nothing was looked at.")
        return
    rows = [
        {
            "photo": row.name,
            "advice": row.verdict,
            "score": row.score,
            "blur": row.blur,
            "why": "; ".join(row.reasons),
        }
        for row in found.rows
    ]
    from fastsd_lib.workflows.curation import curation_sheet

    sheet = image_tag(
        curation_sheet(found), 1200, alt=title, style="max-width:100%;border-radius:8px;display:block"
    )
    notes = "".join(f'<div class="fsd-help">{escape(note)}</div>' for note in found.notes)
    _display(title, sheet + table(rows) + notes, "Nothing was moved or deleted.")


def show_report(folder: Path, title: str = "Report") -> None:
    """The report of an evaluation: its first figures, confusion, calibration, the worst mistakes."""
    from fastsd_lib.core.files import read_json

    told = read_json(folder / "report.json")
    low, high = told["accuracy_95"]
    after = told["calibration"]["after"]["ece"]
    facts = {
        "Right": f"{told['accuracy']:.2%}",
        "95 % interval": f"{low:.1%} to {high:.1%}",
        "Pictures": f"{told['images']} of {told['split']}",
        "Calibration error": f"{after:.3f}",
    }
    boxes = "".join(
        f"<div><small>{name}</small><strong>{escape(value)}</strong></div>" for name, value in facts.items()
    )
    pictures = "".join(
        image_tag(
            folder / f"{name}.png", 1200, alt=name, style="max-width:100%;border-radius:8px;display:block"
        )
        for name in ("confusion", "reliability", "worst")
    )
    _display(
        title,
        f'<div class="fsd-facts">{boxes}</div>{pictures}',
        f"The whole report: {folder / 'report.html'}",
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The markup of a table; its columns are the keys of the first row."""
    if not rows:
        return "Nothing yet."
    columns = list(rows[0])
    head = "".join(f"<th{_side(rows[0][name])}>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_side(row.get(name))}>{_text(row.get(name))}</td>" for name in columns)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="fsd-vit-scroll"><table class="fsd-vit-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def picture_or_note(key: Any) -> str:
    """The thumbnail of a path or picture; a box with words for what is none, such as a web address."""
    try:
        if not isinstance(key, (str, Path)) or Path(key).is_file():
            return image_tag(key, THUMB_PX, alt=Path(str(key)).name if isinstance(key, (str, Path)) else "")
        words = Path(str(key)).name
    except (UserError, OSError) as error:
        words = getattr(error, "message", str(error))
    return f'<div class="fsd-vit-none">{escape(words[:120])}</div>'


def _prediction(one: Any) -> str:
    name = Path(str(one.key)).name
    if one.error:
        return _card(one.key, name, f'<span class="fsd-error">{escape(one.error)}</span>', markup=True)
    scores = "".join(
        f'<div class="fsd-vit-score"><span title="{escape(label, quote=True)}">{escape(label)}</span>'
        f'<div class="fsd-bar"><b style="width:{100 * score:.0f}%"></b></div>'
        f'<div class="fsd-number">{100 * score:.1f} %</div></div>'
        for label, score in list(zip(one.labels, one.scores, strict=True))[:3]
    )
    return _card(one.key, name, scores, markup=True)


def _card(key: Any, head: str, below: str, *, markup: bool = False) -> str:
    title = escape(str(key) if isinstance(key, (str, Path)) else head, quote=True)
    bold = f"<b>{escape(head)}</b>" if head else ""
    words = below if markup else f"<span>{escape(below)}</span>"
    return f'<div class="fsd-tile" title="{title}">{picture_or_note(key)}{bold}{words}</div>'


def _side(value: Any) -> str:
    return ' class="fsd-number"' if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else escape(str(value))


def _display(title: str, body: str, note: str = "") -> None:
    from IPython.display import display

    display(style.card(title, style.html(VIT_STYLES + body), note=note))
