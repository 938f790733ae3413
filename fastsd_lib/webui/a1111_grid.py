"""The pictures of a request in one: a plain grid, a script's, or the named sheets of a plot. Each with its infotext."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastsd_lib.generation.infotext import infotext
from fastsd_lib.webui.a1111 import Ordered
from fastsd_lib.webui.a1111_spread import Plot
from fastsd_lib.webui.grids import Album, Sheet, grid_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from fastsd_lib.generation.jobs import Job


@dataclass(frozen=True)
class Drawn:
    """A finished picture."""

    image: Image
    record: Mapping[str, Any]
    cell: int = 0  # of a plot

    @property
    def text(self) -> str:
        return infotext(self.record)

    def text_with(self, facts: Mapping[str, Any]) -> str:
        extra = {**self.record.get("extra_parameters", {}), **facts}
        return infotext({**self.record, "extra_parameters": extra})


def by_cell(ordered: Ordered, jobs: Sequence[Job]) -> tuple[Ordered, list[Job]]:
    """A plot's orders and their jobs as the user sees them, whatever came first."""
    places = sorted(range(len(jobs)), key=lambda at: ordered.cells[at])
    cells = tuple(ordered.cells[at] for at in places)
    return replace(ordered, orders=[ordered.orders[at] for at in places], cells=cells), [
        jobs[at] for at in places
    ]


def grids(ordered: Ordered, pictures: Sequence[Drawn]) -> list[tuple[Image, str]]:
    """A script's grid always; another one when pictures are saved and there is more than one. None without pictures."""
    if not pictures:
        return []
    if ordered.plot is not None:
        return _plotted(ordered.plot, pictures)
    images, settings = [one.image for one in pictures], ordered.settings
    if ordered.grid_rows is not None:
        rows, wanted = ordered.grid_rows, len(images) > 1
    else:
        rows = max(settings["n_rows"], 0)
        wanted = ordered.body.save_images and settings["return_grid"]
        wanted = wanted and (len(images) > 1 or not settings["grid_only_if_multiple"])
    return [(grid_of(images, rows), pictures[0].text)] if wanted else []


def _plotted(plot: Plot, pictures: Sequence[Drawn]) -> list[tuple[Image, str]]:
    """The whole first; then, where they are wanted, its sheets. What was not drawn stays empty."""
    cells: dict[int, list[Drawn]] = {}
    for one in pictures:
        cells.setdefault(one.cell, []).append(one)
    images = {
        at: grid_of([one.image for one in those]) if those[1:] else those[0].image
        for at, those in cells.items()
    }
    across, down = zip(*(image.size for image in images.values()), strict=True)
    sheet = Sheet((max(across), max(down)), plot.columns, plot.rows, plot.legend, plot.margin_px)
    each = len(plot.columns) * len(plot.rows)
    sheets = [
        sheet.drawn([images.get(at) for at in range(first, first + each)])
        for first in range(0, each * len(plot.sheets), each)
    ]
    text = pictures[0].text_with({**plot.facts, **plot.more_facts})
    if len(sheets) == 1:
        return [(sheets[0], text)]
    album = Album(sheet.size, plot.sheets, sheet.letters_px, plot.legend, plot.margin_px)
    found = [(album.drawn(sheets), text)]
    if plot.sends_sheets:
        for number, one in enumerate(sheets):
            first = next(
                (those[0] for at, those in sorted(cells.items()) if at // each == number), pictures[0]
            )
            found.append((one, first.text_with(plot.facts)))
    return found


def failures(ordered: Ordered, jobs: Sequence[Job]) -> list[str]:
    """Which cells of a plot could not be drawn, and why."""
    if ordered.plot is None:
        return []
    return [
        f"{ordered.plot.named(cell)}: {job.error.message}"
        for cell, job in zip(ordered.cells, jobs, strict=True)
        if job.error is not None
    ]
