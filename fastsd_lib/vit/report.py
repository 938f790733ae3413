"""The report of an evaluation as a folder: a page, its text, its numbers, three pictures. Written whole, file by file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastsd_lib.core.files import atomic_path, plain_disk_errors, write_json, write_text
from fastsd_lib.core.text import one_line
from fastsd_lib.vit.evaluation import Evaluation
from fastsd_lib.vit.report_page import page_of
from fastsd_lib.vit.report_pictures import confusion_picture, reliability_picture, worst_picture
from fastsd_lib.vit.report_words import class_rows, class_table, headline, plain

SCHEMA = 1
MOST_MISTAKES = 200  # in report.json; the pictures show fewer


def write_report(evaluation: Evaluation, folder: Path, notes: Mapping[str, str] | None = None) -> Path:
    """Write report.html, report.md, report.json, confusion.png, reliability.png and worst.png; returns report.html.

    `notes` are further facts for the head of the page, such as {"data": "digits, 15 % for testing"}.
    """
    pictures = {
        "confusion": confusion_picture(evaluation),
        "reliability": reliability_picture(evaluation),
        "worst": worst_picture(evaluation),
    }
    with plain_disk_errors("write the report"):
        for name, picture in pictures.items():
            _save(picture, folder / f"{name}.png")
        write_json(folder / "report.json", as_json(evaluation, notes))
        write_text(folder / "report.md", as_markdown(evaluation, notes))
        write_text(folder / "report.html", page_of(evaluation, pictures, dict(notes or {})))
    return folder / "report.html"


def as_json(evaluation: Evaluation, notes: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Every figure, the per-class table, the confusion matrix and the worst mistakes as plain JSON values."""
    return {
        "schema": SCHEMA,
        **evaluation.summary(),
        "notes": dict(notes or {}),
        "per_class": class_rows(evaluation),
        "classes": list(evaluation.classes),
        "confusion": _cells(evaluation),
        "mistakes": [vars(one) for one in evaluation.mistakes(MOST_MISTAKES)],
        "unreadable_files": [list(one) for one in evaluation.errors],
    }


def _cells(evaluation: Evaluation) -> list[list[int]]:
    """[truth, prediction, images] of every pair that occurs: a thousand classes make a million cells, nearly all 0."""
    rows, columns = np.nonzero(evaluation.confusion)
    return np.stack([rows, columns, evaluation.confusion[rows, columns]], axis=1).tolist()


def as_markdown(evaluation: Evaluation, notes: Mapping[str, str] | None = None) -> str:
    facts = [(name, one_line(text)) for name, text in (notes or {}).items()] + headline(evaluation)
    lines = [f"# {plain(evaluation.model)}: {evaluation.images} images of {plain(evaluation.split)}", ""]
    lines += ["| | |", "|---|---|", *(f"| {plain(name)} | {plain(value)} |" for name, value in facts), ""]
    lines += ["## Classes", "", *class_table(evaluation), ""]
    pairs = evaluation.confused_pairs()
    if pairs:
        lines += ["## What is taken for what", "", "| truth | taken for | images |", "|---|---|---|"]
        lines += [f"| {plain(truth)} | {plain(other)} | {count} |" for truth, other, count in pairs] + [""]
    lines += [f"![{name}]({name}.png)" for name in ("confusion", "reliability", "worst")]
    if evaluation.errors:
        lines += ["", f"## Not readable: {len(evaluation.errors)}", ""]
        lines += [f"- {plain(Path(path).name)}: {plain(why)}" for path, why in evaluation.errors[:20]]
    return "\n".join(lines) + "\n"


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as scratch:
        picture.save(scratch, "PNG", optimize=True)
