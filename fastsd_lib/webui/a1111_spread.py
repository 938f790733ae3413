"""What a script makes of a request: several bodies, and the picture that shows their pictures side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from fastsd_lib.webui.a1111_models import DrawingBody
from fastsd_lib.webui.api_errors import Refused

SomeBody = TypeVar("SomeBody", bound=DrawingBody)


@dataclass(frozen=True)
class Plot:
    """A grid with named columns, rows and sheets: one cell for each body, in the order column, row, sheet."""

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    sheets: tuple[str, ...] = ("",)
    legend: bool = True
    margin_px: int = 0
    sends_pictures: bool = False  # besides the grid
    sends_sheets: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the infotext of each sheet says of the plot
    more_facts: Mapping[str, Any] = field(default_factory=dict)  # and the grid of all sheets besides

    def named(self, cell: int) -> str:
        across, down = len(self.columns), len(self.rows)
        names = (
            self.columns[cell % across],
            self.rows[cell // across % down],
            self.sheets[cell // across // down],
        )
        return ", ".join(name for name in names if name)


@dataclass(frozen=True)
class Spread:
    """The bodies to draw one after the other, and what is shown of them together."""

    bodies: list[DrawingBody]
    grid_rows: int | None = None  # of a grid without names; None = none
    plot: Plot | None = None
    cells: tuple[int, ...] = ()  # of a plot: the cell of each body, in the order in which they are drawn
    names: tuple[str, ...] = ()  # of a plot: what is said of each body when it cannot be drawn


def changed(body: SomeBody, fields: dict[str, Any], where: str) -> SomeBody:
    """The body with these fields, checked. Refused: values that they cannot have, at `where`."""
    given = {name: getattr(body, name) for name in body.model_fields_set} | {
        "seed": body.seed, "subseed": body.subseed
    }  # fmt: skip
    try:
        return type(body).model_validate(given | fields)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(str(part) for part in first["loc"])
        raise Refused(
            422, f"{where}: {what}: {first['msg']} (there: {str(first['input'])[:50]!r})."
        ) from None


def arguments(body: DrawingBody, *usual: Any) -> list[Any]:
    """The script's arguments by place; what is not sent is as the page has it."""
    given = body.script_args[: len(usual)]
    return [*given, *usual[len(given) :]]
