"""Grids: where pictures and names stand, and that no name is cut off."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.webui.grids import EMPTY, Album, Sheet, font, grid_of, wrapped

COLOURS = ("red", "green", "blue", "yellow")


def pictures(size=(64, 64)):
    return [Image.new("RGB", size, colour) for colour in COLOURS]


def test_a_plain_grid_is_as_even_as_it_goes():
    assert grid_of(pictures()).size == (128, 128)
    assert grid_of(pictures()[:3]).size == (192, 64)
    assert grid_of(pictures(), rows=4).size == (64, 256)


def test_without_names_a_sheet_is_its_pictures_and_margins_alone():
    sheet = Sheet((64, 48), ("a", "b"), ("c", "d"), legend=False, margin_px=6)
    drawn = sheet.drawn(pictures((64, 48)))
    assert drawn.size == sheet.size == (134, 102)
    assert [drawn.getpixel(spot) for spot in ((0, 0), (133, 0), (0, 101), (133, 101))] == [
        (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0),
    ]  # fmt: skip
    assert drawn.getpixel((66, 50)) == (255, 255, 255)


def test_pictures_stand_under_and_beside_their_names():
    sheet = Sheet((64, 64), ("Steps: 1", "Steps: 2"), ("Sampler: Euler a", "DDIM"))
    drawn = sheet.drawn([*pictures()[:3], None])
    for place, colour in enumerate(((255, 0, 0), (0, 128, 0), (0, 0, 255), EMPTY)):
        x, y = sheet.corner(place % 2, place // 2)
        middle = x + sheet.slot_width // 2, y + sheet.slot_height // 2
        assert drawn.getpixel(middle) == colour
    ink = np.asarray(drawn.convert("L")) < 100
    assert ink[: sheet.head_px, sheet.left_px :].any()  # names over the columns
    assert ink[sheet.head_px :, : sheet.left_px].any()  # and left of the rows
    assert not ink[: sheet.head_px, : sheet.left_px].any()


@pytest.mark.parametrize("cell", [(64, 64), (512, 768)])
def test_names_stay_inside_their_places(cell):
    long = "Checkpoint name: a-very-long-model-name-without-any-space-in-it-v2.1-pruned-emaonly"
    sheet = Sheet(cell, (long, "b"), (long, "d"))
    drawn = np.asarray(sheet.drawn([None] * 4).convert("L")) < 100
    assert not drawn[:2].any() and not drawn[:, :2].any()  # nothing at the edges
    lines = wrapped(long, sheet.letters_px, sheet.slot_width)
    assert all(font(sheet.letters_px).getlength(line) <= sheet.slot_width for line in lines)


def test_long_words_are_broken_and_long_texts_end_in_dots():
    assert "".join(wrapped("x" * 40, 12, 60)) == "x" * 40
    lines = wrapped("word " * 200, 12, 80)
    assert len(lines) == 6 and lines[-1].endswith("...")
    assert wrapped("", 12, 80) == [""]


def test_sheets_stand_side_by_side_under_their_titles():
    sheet = Sheet((64, 64), ("a",), ("",))
    album = Album(sheet.size, ("Seed: 1", "Seed: 2"), sheet.letters_px)
    drawn = album.drawn([sheet.drawn([one]) for one in pictures()[:2]])
    assert drawn.size == album.size and album.head_px > 0
    colours = {drawn.getpixel((x, drawn.height - 3)) for x in range(0, drawn.width, 3)}
    assert {(255, 0, 0), (0, 128, 0)} <= colours
