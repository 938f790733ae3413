from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.images.grid import PAPER, contact_sheet

COLOURS = [(200, 30, 30), (30, 160, 60), (40, 60, 200), (220, 180, 20), (120, 40, 140), (20, 20, 20)]


def cells(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The edges of everything on the page in exactly this colour."""
    down, across = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return int(across.min()), int(down.min()), int(across.max()) + 1, int(down.max()) + 1


def pictures(size=(64, 64)):
    return [Image.new("RGB", size, colour) for colour in COLOURS]


@pytest.mark.parametrize("cell_px", [64, 200])
def test_pictures_stand_row_by_row_whole_and_apart(cell_px):
    sheet = contact_sheet(pictures(), columns=3, cell_px=cell_px, title="Six", labels=list("abcdef"))
    edges = [cells(sheet, colour) for colour in COLOURS]
    for left, top, right, bottom in edges:
        assert (right - left, bottom - top) == (cell_px, cell_px)
    assert edges[0][2] < edges[1][0] and edges[1][2] < edges[2][0]
    assert edges[0][1] == edges[2][1] and edges[0][3] < edges[3][1]
    assert edges[3][0] == edges[0][0]


def test_a_tall_picture_is_shown_whole_in_the_middle_of_its_cell():
    sheet = contact_sheet([Image.new("RGB", (50, 100), COLOURS[0])], cell_px=200)
    left, top, right, bottom = cells(sheet, COLOURS[0])
    assert (right - left, bottom - top) == (100, 200)
    assert abs((left + right) / 2 - sheet.width / 2) <= 1


def test_small_pictures_grow_smoothly_or_pixel_by_pixel():
    chess = Image.fromarray((np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8))
    sharp = contact_sheet([chess], cell_px=84, pixels=True)
    smooth = contact_sheet([chess], cell_px=84)
    assert (
        len(set(np.asarray(sharp.convert("L")).ravel().tolist()) - {255, 0}) <= 4
    )  # paper, frame, and no half-tones
    assert len(set(np.asarray(smooth.convert("L")).ravel().tolist())) > 50


def ink(sheet: Image.Image) -> int:
    return int((np.abs(np.asarray(sheet, np.int16) - PAPER).max(axis=2) > 60).sum())


@pytest.mark.parametrize(
    "words",
    [{"title": "Before and after"}, {"subtitle": "four seeds"}, {"labels": list("abcdef")},
     {"row_labels": ["before", "after"]}, {"column_labels": ["seed 1", "seed 2", "seed 3"]}],
    ids=lambda words: next(iter(words)),
)  # fmt: skip
def test_every_kind_of_words_is_printed_and_moves_no_picture_off_the_page(words):
    bare, worded = contact_sheet(pictures(), columns=3), contact_sheet(pictures(), columns=3, **words)
    assert ink(worded) > ink(bare) + 50
    for colour in COLOURS:
        left, top, right, bottom = cells(worded, colour)
        assert (right - left, bottom - top) == (256, 256)


def test_words_that_do_not_fit_never_run_into_the_margin():
    sheet = contact_sheet(
        pictures()[:2], labels=["word " * 60, "x" * 300], title="long " * 90, row_labels=["row " * 40], cell_px=120,
        columns=2, column_labels=["column " * 20, "b"],
    )  # fmt: skip
    page = np.asarray(sheet, np.int16)
    for edge in (page[:8], page[-8:], page[:, :8], page[:, -8:]):
        assert (edge == PAPER).all()


def test_without_a_number_of_columns_the_page_is_about_square():
    sheet = contact_sheet(pictures() + pictures()[:3], cell_px=80)
    assert sheet.width == sheet.height


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(UserError, match="no pictures"):
        contact_sheet([])
