"""The table of compressed models: for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastsd_lib.core.files import write_json, write_text

TABLE, TABLE_JSON = "table.md", "table.json"


@dataclass(frozen=True)
class Row:
    """One kind. None where a figure could not be measured here."""

    kind: str  # what was asked: "openvino:int8"
    format: str
    precision: str  # what was written: after a fall-back another than asked
    size_mib: float | None = None
    images_per_s_b1: float | None = None
    images_per_s_b16: float | None = None
    accuracy: float | None = None  # 0 to 1, on the user's labelled pictures
    change_points: float | None = None  # against float32, percentage points; negative = worse
    flips: float | None = None  # share of the pictures whose best class is another than in float32
    max_abs_logit_error: float | None = None
    kept_layers: int = 0
    checked: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Table:
    model: str
    parameters: int
    pictures: str  # "240 of 300 labelled pictures, calibrated on 60 others"
    reference_accuracy: float | None
    threads: int
    rows: tuple[Row, ...]

    def write(self, folder: Path) -> None:
        write_json(folder / TABLE_JSON, self.as_json())
        write_text(folder / TABLE, self.markdown())

    def as_json(self) -> dict[str, Any]:
        return {"machine": _machine(), **asdict(self)}

    def markdown(self) -> str:
        """A table whose columns line up in a terminal as well."""
        cells = [[name for name, _ in _COLUMNS], *([show(row) for _, show in _COLUMNS] for row in self.rows)]
        widths = [max(len(line[at]) for line in cells) for at in range(len(_COLUMNS))]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        notes = [f"- {row.kind}: {text}" for row in self.rows for text in [_remark(row)] if text]
        return "\n".join([*self._head(), "", *lines, *(["", *notes] if notes else []), ""])

    def _head(self) -> list[str]:
        accuracy = (
            ""
            if self.reference_accuracy is None
            else f", {100 * self.reference_accuracy:.2f} % right in float32"
        )
        threads = f"{self.threads} threads" if self.threads else "all cores"
        return [
            f"{self.model} ({self.parameters / 1e6:.2f} million parameters), judged on {self.pictures}{accuracy}.",
            f"Speeds: the model alone, median of interleaved rounds, {_machine()}, {threads}.",
        ]


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _remark(row: Row) -> str:
    structure_only = row.checked if row.size_mib is not None and row.images_per_s_b1 is None else ""
    return " ".join(filter(None, (structure_only, row.note)))


def _or_dash(show: Callable[[Any], str], name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value = getattr(row, name)
        return "–" if value is None else show(value)

    return cell


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("kind", lambda row: row.kind),
    ("written", lambda row: "" if row.size_mib is None else row.precision),
    ("MiB", _or_dash(lambda value: f"{value:.2f}" if value < 10 else f"{value:.0f}", "size_mib")),
    ("pictures/s b1", _or_dash(_speed, "images_per_s_b1")),
    ("b16", _or_dash(_speed, "images_per_s_b16")),
    ("accuracy %", _or_dash(lambda value: f"{100 * value:.2f}", "accuracy")),
    ("change pp", _or_dash(lambda value: f"{value:+.2f}", "change_points")),
    ("flips %", _or_dash(lambda value: f"{100 * value:.2f}", "flips")),
    ("max logit error", _or_dash(lambda value: f"{value:.1e}", "max_abs_logit_error")),
    ("kept layers", lambda row: str(row.kept_layers or "")),
]
