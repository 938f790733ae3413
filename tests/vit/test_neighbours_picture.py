"""The grid of a search: each question in front of what was found, from files and from a zip."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.image_search import Neighbour
from fastsd_lib.vit.neighbours_picture import neighbours_picture, short, thumbnail

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200), "pink": (240, 120, 200)}


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    paths = {}
    for name, colour in COLOURS.items():
        paths[name] = tmp_path / f"{name}.png"
        Image.new("RGB", (200, 120), colour).save(paths[name])
    return paths


def amount(page: Image.Image, colour: str) -> int:
    """How many pixels of a page have this colour."""
    return int((np.abs(np.asarray(page).astype(int) - COLOURS[colour]).sum(axis=2) < 12).sum())


def test_the_question_stands_before_what_was_found(files):
    found = [Neighbour("a/red.png", 0.9, 0, files["red"]), Neighbour("a/green.png", 0.8, 1, files["green"])]
    page = neighbours_picture(found, Image.new("RGB", (200, 120), COLOURS["blue"]), cell_px=100)
    cell = 100 * 60
    for colour in ("red", "green", "blue"):
        assert amount(page, colour) == pytest.approx(cell, rel=0.05)
    columns = [int(np.nonzero(np.abs(np.asarray(page).astype(int) - COLOURS[one]).sum(axis=2) < 12)[1].min())
               for one in ("blue", "red")]  # fmt: skip
    assert columns[0] < columns[1]


def test_several_searches_are_rows_and_a_file_that_is_gone_leaves_its_cell_empty(files):
    gone = Neighbour("gone.png", 0.7, 2, None)
    lists = [[Neighbour("red", 0.9, 0, files["red"]), gone], [Neighbour("green", 0.9, 1, files["green"])]]
    page = neighbours_picture(lists, [files["blue"], files["pink"]], cell_px=80)
    assert all(amount(page, colour) == pytest.approx(80 * 48, rel=0.06) for colour in COLOURS)
    rows = [np.nonzero(np.abs(np.asarray(page).astype(int) - COLOURS[one]).sum(axis=2) < 12)[0].min()
            for one in COLOURS]  # fmt: skip
    red, green, blue, pink = rows
    assert red == blue and green == pink and green > red + 80


def test_a_picture_in_a_zip_is_shown_too(files, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(files["red"], "in/red.png")
    key = f"{tmp_path / 'all.zip'}!in/red.png"
    assert amount(neighbours_picture([Neighbour(key, 1.0, 0)], cell_px=100), "red") > 5000
    for wrong in (
        f"{tmp_path / 'all.zip'}!in/none.png",
        f"{tmp_path / 'no.zip'}!in/red.png",
        tmp_path / "nothing.png",
    ):
        assert thumbnail(wrong, 64) is None


def test_nothing_found_is_one_line(files):
    with pytest.raises(UserError, match="no neighbours"):
        neighbours_picture([])
    assert short("C:\\photos\\cats\\1.jpg") == short("/photos/cats/1.jpg") == "cats/1.jpg"
