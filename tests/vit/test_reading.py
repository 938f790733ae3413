"""Pictures from everywhere, in order, ahead of who asks, in bounded memory; bad ones are told and harm no other."""

from __future__ import annotations

import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_vit import photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import reading
from fastsd_lib.vit.geometry import Geometry
from fastsd_lib.vit.reading import picture_of, read_ahead
from fastsd_lib.vit.sources import Item, count_of, items_of
from fastsd_lib.vit.transform import Transform

TRANSFORM = Transform(Geometry((32, 32), (32, 32), 2, (0.5,) * 3, (0.5,) * 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve photos, four of them in inner folders; beside them what lies in folders."""
    top = tmp_path_factory.mktemp("pictures")
    photos(top, 8, sizes=((60, 40), (30, 50)))
    photos(top / "b" / "c", 2, sizes=((60, 40),))
    photos(top / "a", 2, sizes=((60, 40),))
    (top / "notes.txt").write_text("no picture")
    (top / ".hidden.jpg").write_bytes(b"x")
    (top / "Thumbs.db").write_bytes(b"x")
    Image.new("RGB", (9, 9)).save(top / "without_suffix", format="PNG")
    return top


def keys(what, **more):
    return [item.key for item in items_of(what, **more)]


def names(what, **more):
    return [Path(key).name for key in keys(what, **more)]


PHOTOS = [f"photo_{number:04d}.jpg" for number in range(8)]


def test_a_folder_is_read_by_name_folders_after_files_and_only_its_pictures(folder):
    assert names(folder) == [*PHOTOS, "without_suffix", *PHOTOS[:2], *PHOTOS[:2]]
    assert names(str(folder), recursive=False) == [*PHOTOS, "without_suffix"]
    assert keys(folder)[-1] == str(folder / "b" / "c" / "photo_0001.jpg")


def test_files_patterns_lists_and_streams_mean_what_they_say(folder):
    assert names(folder / PHOTOS[3]) == [PHOTOS[3]]
    assert names(f"{folder}/photo_000[1-3].jpg") == PHOTOS[1:4]
    assert len(keys(f"{folder}/**/*.jpg")) == 12
    assert names([folder / PHOTOS[5], str(folder / PHOTOS[1])]) == [PHOTOS[5], PHOTOS[1]]
    assert names(path for path in (folder / "a", folder / PHOTOS[0])) == [*PHOTOS[:2], PHOTOS[0]]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "cat[1].png")
    assert names(tmp_path / "cat[1].png") == ["cat[1].png"]


def test_images_arrays_and_bytes_get_numbers_for_names(folder):
    with Image.open(folder / PHOTOS[0]) as opened:
        given = [
            Image.new("RGB", (5, 5)),
            np.zeros((4, 4, 3), np.uint8),
            b"data",
            np.zeros((2, 3, 8, 8)),
            opened,
        ]
        found = list(items_of(given))
    assert [item.key for item in found] == [
        "picture 1", "picture 2", "picture 3", "picture 4", "picture 5", str(folder / PHOTOS[0]),
    ]  # fmt: skip
    assert found[2].source == b"data" and found[4].source.shape == (3, 8, 8)
    assert keys(Item("mine", b"")) == ["mine"]


def test_a_zip_is_read_by_name_with_only_its_pictures(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as packed:
        for name in reversed(PHOTOS):
            packed.write(folder / name, f"inner/{name}")
        packed.writestr("readme.txt", "no picture")
        packed.writestr("__MACOSX/._photo.jpg", "junk")
    found = list(items_of(tmp_path / "some.zip"))
    assert [item.key for item in found] == [f"{tmp_path / 'some.zip'}!inner/{name}" for name in PHOTOS]
    assert found[2].source == (folder / PHOTOS[2]).read_bytes()
    assert count_of(tmp_path / "some.zip") == 8


@pytest.mark.parametrize("what", ["folder", "pattern", "list", "zip", "array", "image"])
def test_what_is_counted_is_what_there_is(folder, tmp_path, what):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as packed:
        packed.write(folder / PHOTOS[0], "one.jpg")
    given = {
        "folder": folder, "pattern": f"{folder}/*.jpg", "list": [folder, b"", tmp_path / "some.zip"],
        "zip": tmp_path / "some.zip", "array": np.zeros((5, 8, 8, 3), np.uint8), "image": Image.new("L", (3, 3)),
    }[what]  # fmt: skip
    assert count_of(given) == len(keys(given))
    assert count_of(iter([folder])) is None


@pytest.mark.parametrize(
    ("what", "said", "way_out"),
    [
        ("none.jpg", "There is no file or folder none.jpg", "check the path"),
        (["none.jpg"], "There is no file or folder none.jpg", "check the path"),
        ("none/*.jpg", r"No file fits none/\*.jpg", "check the pattern"),
        ("http://example.org/a.jpg", "http://example.org/a.jpg is not fetched", "https address"),
        ("ftp://example.org/a.jpg", "is not fetched", "https address"),
        (7, "int is nothing that has pictures", "give a file, a folder"),
        (None, "NoneType is nothing that has pictures", "an image or an array"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_read(what, said, way_out):
    with pytest.raises(UserError, match=said) as error:
        keys(what)
    assert way_out in error.value.fix


def test_a_folder_or_zip_without_pictures_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match="There are no pictures in"):
        keys(tmp_path)
    photos(tmp_path / "inner", 1)
    with pytest.raises(UserError, match=r"\(folders in it were not entered\)"):
        keys(tmp_path, recursive=False)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as packed:
        packed.writestr("a.txt", "text")
    with pytest.raises(UserError, match=r"There are no pictures in some\.zip"):
        keys(tmp_path / "some.zip")
    (tmp_path / "no.zip").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"no\.zip is not a zip: it is a web page"):
        keys(tmp_path / "no.zip")


def test_addresses_are_told_apart_from_files_and_private_ones_are_not_read():
    (item,) = items_of("https://127.0.0.1/cat.jpg")
    assert item.source == item.key == "https://127.0.0.1/cat.jpg"
    (read,) = read_ahead("https://127.0.0.1/cat.jpg", TRANSFORM)
    assert read.views is None and "leads to this machine or its network" in read.error


# ---------------------------------------------------------------- reading ahead


def test_pictures_come_in_order_and_bad_ones_are_told(folder, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<html>")
    what = [folder / PHOTOS[0], bad, tmp_path / "gone.jpg", folder / PHOTOS[1], b"", np.zeros((2, 2, 7))]
    assert count_of(what) == 6
    found = list(read_ahead(what, TRANSFORM, readers=3))
    assert [read.index for read in found] == list(range(6))
    assert [read.views is not None for read in found] == [True, False, False, True, False, False]
    assert found[1].error == "bad.jpg is not a photo: it is a web page."
    assert found[2].error == "gone.jpg is not there."
    assert found[4].error == "picture 5 is an empty file (0 bytes)."
    assert found[5].error == "An array of 2x2x7 is no picture."
    np.testing.assert_array_equal(found[3].views[0], TRANSFORM.open_and_apply(folder / PHOTOS[1]))
    assert found[3].views.shape == (1, 3, 32, 32)


def test_order_is_kept_when_the_first_picture_takes_longest():
    large = np.random.default_rng(0).integers(0, 255, (2000, 3000, 3)).astype(np.uint8)
    small = [np.full((4, 4, 3), number, np.uint8) for number in range(40)]
    found = list(read_ahead([large, *small], TRANSFORM, readers=4))
    assert [read.index for read in found] == list(range(41))
    assert [round((read.views[0, 0, 0, 0] + 1) * 127.5) for read in found[1:]] == list(range(40))


def test_no_more_than_asked_for_is_read_ahead():
    taken = []

    def stream():
        for number in range(100):
            taken.append(number)
            yield np.zeros((4, 4, 3), np.uint8)

    found = read_ahead(stream(), TRANSFORM, ahead=10, readers=2)
    for number in range(20):
        assert next(found).index == number
        time.sleep(0.005)
        assert number + 10 <= len(taken) <= number + 12
    found.close()


def test_reading_ahead_holds_no_more_bytes_than_allowed(monkeypatch):
    monkeypatch.setattr(reading, "MAX_AHEAD_BYTES", 5 * 10 * 3 * 32 * 32 * 4)  # five pictures with ten views
    taken = []

    def stream():
        for number in range(100):
            taken.append(number)
            yield np.zeros((40, 40, 3), np.uint8)

    found = read_ahead(stream(), TRANSFORM, augment="ten_crop", ahead=64)
    next(found)
    assert len(taken) <= 7
    found.close()
    taken.clear()
    packed = ((taken.append(number), Item("zipped", bytes(400_000)))[1] for number in range(100))
    found = read_ahead(packed, TRANSFORM, ahead=64)
    next(found)
    assert len(taken) <= 4
    found.close()


def test_threads_end_when_nobody_asks_any_more_and_when_somebody_presses_ctrl_c(folder):
    def readers():
        return [one for one in threading.enumerate() if one.name.startswith("vit-reader")]

    found = read_ahead([folder] * 10, TRANSFORM, readers=3)
    next(found)
    assert readers()
    found.close()
    assert not readers()
    with pytest.raises(KeyboardInterrupt):
        for _ in read_ahead([folder] * 10, TRANSFORM, readers=3):
            raise KeyboardInterrupt
    import gc

    gc.collect()
    assert not readers()


def test_several_views_of_a_picture_stay_together(folder):
    (read,) = read_ahead(folder / PHOTOS[0], TRANSFORM, augment="ten_crop")
    assert read.views.shape == (10, 3, 32, 32)


# ---------------------------------------------------------------- arrays


def test_arrays_of_every_layout_are_the_same_picture():
    shades = np.random.default_rng(2).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    for array in (
        shades, np.moveaxis(shades, -1, 0), shades / 255.0, np.moveaxis(shades / np.float32(255), -1, 0),
        np.dstack([shades, np.full((6, 8), 255, np.uint8)]),
    ):  # fmt: skip
        np.testing.assert_array_equal(np.asarray(picture_of(array).convert("RGB")), shades)
    grey = shades[..., 0]
    for array in (grey, grey[..., None], grey[None], grey / 255.0):
        np.testing.assert_array_equal(np.asarray(picture_of(array)), grey)
    np.testing.assert_array_equal(np.asarray(picture_of(grey > 100)), (grey > 100) * 255)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.full((4, 4, 3), 7.0), "must lie in 0 to 1; this one has 7 to 7"),
        (np.full((4, 4, 3), -0.1), "must lie in 0 to 1"),
        (np.full((4, 4, 3), np.nan), "must lie in 0 to 1"),
        (np.zeros((4, 4, 3), np.int64), "An array of int64 is no picture"),
        (np.zeros((6, 6, 5), np.uint8), "An array of 6x6x5 is no picture"),
        (np.zeros((0, 4, 3), np.uint8), "An array of 0x4x3 is no picture"),
        (np.zeros(4, np.uint8), "An array of 4 is no picture"),
    ],
)
def test_arrays_that_are_no_pictures_are_told_what_to_be(array, said):
    with pytest.raises(UserError, match=said) as error:
        picture_of(array)
    assert error.value.fix
