"""An evaluation as one HTML page that needs nothing else: read on a desk, on a phone, by day and by night."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape

from PIL import Image

from fastsd_lib.core.text import one_line
from fastsd_lib.vit.evaluation import Evaluation
from fastsd_lib.vit.report_words import headline

_CAPTIONS = {
    "confusion": (
        "Confusion matrix",
        "Rows are the truth, columns what the model said; colour is the share of the row.",
    ),
    "reliability": (
        "Calibration",
        "Where bars reach the diagonal, the model is right as often as it claims to be.",
    ),
    "worst": (
        "Worst mistakes",
        "Wrong and sure of it stands first. Often it is the label that is wrong: look.",
    ),
}
_OPEN_CLASSES = 30  # a longer table is folded


def page_of(evaluation: Evaluation, pictures: Mapping[str, Image.Image], notes: Mapping[str, str]) -> str:
    """The page as text. Names of classes and files come from users: all text is escaped, and nothing can run."""
    title = f"{one_line(evaluation.model)}: {evaluation.images} images of {one_line(evaluation.split)}"
    rows = [(name, text) for name, text in notes.items()] + headline(evaluation)
    table = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in rows)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{_CSS}</style></head><body><main>"
        f"<h1>{_text(one_line(evaluation.model))}</h1>"
        f'<p class="lead">{evaluation.images} images of {_text(evaluation.split)}, {len(evaluation.classes)} classes</p>'
        f"{_tiles(evaluation)}"
        f'<section><h2>Figures</h2><div class="card scroll"><table class="facts">{table}</table></div></section>'
        f"{_classes(evaluation)}{_pairs(evaluation)}"
        f"{''.join(_picture(name, picture) for name, picture in pictures.items())}"
        f"{_unreadable(evaluation)}"
        "<footer>Made by fastsd. Figures are of these images on this machine, and of nothing else.</footer>"
        "</main></body></html>\n"
    )


def _tiles(evaluation: Evaluation) -> str:
    found = evaluation.summary()
    low, high = found["accuracy_95"]
    speed = evaluation.images_per_s
    tiles = (
        ("accuracy", f"{evaluation.accuracy:.1%}", f"{low:.1%} to {high:.1%} with 95 % confidence"),
        ("balanced", f"{found['balanced_accuracy']:.1%}", "every class counts the same"),
        (
            "calibration error",
            f"{found['calibration']['after']['ece']:.3f}",
            f"{found['calibration']['before']['ece']:.3f} before",
        ),
        ("images per second", "not measured" if speed is None else f"{speed:.1f}", evaluation.runner),
    )
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="card"><span>{name}</span><strong>{value}</strong><small>{_text(note)}</small></div>'
            for name, value, note in tiles
        )
        + "</div>"
    )


def _classes(evaluation: Evaluation) -> str:
    figures = evaluation.per_class
    order = sorted(range(len(evaluation.classes)), key=lambda at: (figures.support[at] == 0, figures.f1[at]))
    rows = "".join(
        f"<tr><th>{_text(evaluation.classes[at])}</th>{_bar(figures.f1[at], 'f1')}{_bar(figures.precision[at])}"
        f"{_bar(figures.recall[at])}<td>{figures.support[at]}</td></tr>"
        for at in order
    )
    table = (
        '<div class="card scroll"><table class="classes"><thead><tr><th>class</th><td>F1</td><td>precision</td>'
        f"<td>recall</td><td>images</td></tr></thead><tbody>{rows}</tbody></table></div>"
    )
    if len(order) > _OPEN_CLASSES:
        table = f"<details><summary>all {len(order)} classes</summary>{table}</details>"
    return f"<section><h2>Classes, the weakest first</h2>{table}</section>"


def _bar(share: float, kind: str = "") -> str:
    return f'<td class="bar {kind}"><span style="width:{share:.1%}"></span><b>{share:.1%}</b></td>'


def _pairs(evaluation: Evaluation) -> str:
    pairs = evaluation.confused_pairs()
    if not pairs:
        return ""
    rows = "".join(
        f"<tr><th>{_text(truth)}</th><th>{_text(other)}</th><td>{count}</td></tr>"
        for truth, other, count in pairs
    )
    head = "<thead><tr><th>truth</th><th>taken for</th><td>images</td></tr></thead>"
    return (
        '<section><h2>What is taken for what</h2><div class="card scroll">'
        f'<table class="pairs">{head}<tbody>{rows}</tbody></table></div></section>'
    )


def _picture(name: str, picture: Image.Image) -> str:
    held = io.BytesIO()
    picture.save(held, "PNG", optimize=True)
    title, caption = _CAPTIONS[name]
    data = base64.b64encode(held.getvalue()).decode("ascii")
    return (
        f'<section><h2>{title}</h2><figure class="card"><div class="scroll"><img src="data:image/png;base64,{data}" '
        f'width="{picture.width}" height="{picture.height}" alt="{title}"></div>'
        f"<figcaption>{caption}</figcaption></figure></section>"
    )


def _unreadable(evaluation: Evaluation) -> str:
    if not evaluation.errors:
        return ""
    lines = "".join(f"<li>{_text(path)}: {_text(why)}</li>" for path, why in evaluation.errors[:50])
    return f'<section><h2>Not readable: {len(evaluation.errors)}</h2><ul class="card">{lines}</ul></section>'


def _text(value: str) -> str:
    return escape(one_line(str(value)), quote=True)


_CSS = """
:root { color-scheme: light dark; --ink: #16202e; --soft: #52606f; --page: #f3f4f1; --card: #ffffff; --line: #d9dcd8;
  --bar: #bcd3ea; --best: #8fb8de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf1; --soft: #a9b4c0; --page: #11151b; --card: #1b222b;
  --line: #35404c; --bar: #2d4a68; --best: #3a6490; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 ui-sans-serif, system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: clamp(16px, 4vw, 40px) clamp(12px, 4vw, 32px) 64px; }
h1 { margin: 0; font-size: clamp(1.4rem, 5vw, 2rem); line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 36px 0 10px; font-size: 1.1rem; }
.lead, figcaption, footer, small { color: var(--soft); }
.lead { margin: 6px 0 20px; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; margin: 0; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tiles span, .tiles small { display: block; font-size: 0.85rem; overflow-wrap: anywhere; }
.tiles span { color: var(--soft); }
.tiles strong { font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: left; font-weight: 400; border-top: 1px solid var(--line); vertical-align: top; }
tr:first-child > th, tr:first-child > td { border-top: 0; } tbody tr:first-child > * { border-top: 1px solid var(--line); }
thead { color: var(--soft); }
.facts tr:first-child > * { border-top: 0; }
.facts th { color: var(--soft); width: 34%; } .facts td, .classes th, .pairs th { overflow-wrap: anywhere; }
.classes th { min-width: 84px; } .classes td { min-width: 78px; text-align: right; }
.classes td:last-child { min-width: 56px; }
.pairs td { text-align: right; }
.bar { position: relative; } .bar span { position: absolute; left: 6px; top: 4px; bottom: 4px; background: var(--bar);
  border-radius: 4px; max-width: calc(100% - 12px); } .bar.f1 span { background: var(--best); }
.bar b { position: relative; font-weight: 400; }
img { display: block; max-width: 100%; height: auto; border-radius: 8px; }
figcaption { margin-top: 10px; font-size: 0.9rem; }
details summary { cursor: pointer; padding: 8px 0; }
ul { list-style-position: inside; overflow-wrap: anywhere; }
footer { margin-top: 40px; font-size: 0.88rem; }
@media (max-width: 560px) { .facts th { width: 42%; } th, td { padding: 6px 6px; } .card { padding: 12px; }
  .classes th { min-width: 70px; } .classes td { min-width: 58px; }
  .classes td:nth-child(3), .classes td:nth-child(4) { min-width: 62px; } .bar:not(.f1) span { display: none; }
  figure img { max-width: none; width: max(100%, 620px); } }
"""
