"""A folder becomes sets that share nothing; what is wrong with it is said in a line."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.folder_data import open_image_folder


def _fill(folder, counts, seed=0):
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return folder


def _names(samples):
    return {path for path, _ in samples}


def test_each_class_gives_its_share_and_nothing_is_in_two_sets(tmp_path):
    _fill(tmp_path, {"cat": 40, "dog": 20, "fish": 10})
    found = open_image_folder(tmp_path, validation=0.2, test=0.1)
    assert found.classes == ("cat", "dog", "fish")
    assert found.counts("validation") == {"cat": 8, "dog": 4, "fish": 2}
    assert found.counts("test") == {"cat": 4, "dog": 2, "fish": 1}
    sets = [_names(part) for part in (found.train, found.validation, found.test)]
    assert sum(map(len, sets)) == 70 and len(set.union(*sets)) == 70
    assert all(path.parent.name == found.classes[label] for path, label in found.train + found.test)


def test_the_split_is_the_seeds_and_does_not_depend_on_where_the_folder_lies(tmp_path):
    _fill(tmp_path / "a", {"cat": 20, "dog": 20})
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def held_out(folder, seed):
        found = open_image_folder(folder, seed=seed)
        return {path.relative_to(folder).as_posix() for path, _ in found.validation}

    assert held_out(tmp_path / "a", 1) == held_out(tmp_path / "b", 1)
    assert held_out(tmp_path / "a", 1) != held_out(tmp_path / "a", 2)


def test_a_picture_more_moves_hardly_any_other_to_the_other_side(tmp_path):
    _fill(tmp_path, {"cat": 50, "dog": 50})
    before = _names(open_image_folder(tmp_path).validation)
    _fill(tmp_path / "more", {"cat": 1}, seed=9)
    shutil.move(tmp_path / "more" / "cat" / "000.png", tmp_path / "cat" / "999.png")
    shutil.rmtree(tmp_path / "more")
    assert len(before ^ _names(open_image_folder(tmp_path).validation)) <= 3


def test_groups_are_never_separated(tmp_path):
    random = np.random.default_rng(0)
    for name in ("glad", "sad"):
        (tmp_path / name).mkdir()
        for person in range(12):
            for shot in range(3):
                pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / f"person{person:02d}_{shot}.png")
    found = open_image_folder(tmp_path, validation=0.25, group_by=r"person\d+")
    sides = [{path.stem[:8] for path, _ in part} for part in (found.train, found.validation)]
    assert sides[0] & sides[1] == set() and len(sides[1]) == 3
    assert len(found.validation) == 18


def test_copies_stay_on_one_side_and_are_told(tmp_path):
    _fill(tmp_path, {"cat": 20, "dog": 20})
    for number in range(10):
        shutil.copy(tmp_path / "cat" / f"{number:03d}.png", tmp_path / "cat" / f"copy_{number}.png")
    found = open_image_folder(tmp_path, validation=0.3)
    content = [{path.read_bytes() for path, _ in part} for part in (found.train, found.validation)]
    assert content[0] & content[1] == set()
    assert "10 pictures are copies of others; copies stay on one side of the split" in found.notes


def test_copies_across_folders_that_the_user_split_are_told_by_name(tmp_path):
    _fill(tmp_path / "train", {"cat": 6, "dog": 6})
    _fill(tmp_path / "val", {"cat": 3, "dog": 3}, seed=1)
    shutil.copy(tmp_path / "train" / "cat" / "002.png", tmp_path / "val" / "cat" / "leaked.png")
    found = open_image_folder(tmp_path)
    assert len(found.train) == 12 and len(found.validation) == 7 and found.test == ()
    assert any(
        "1 pictures of val/ are also in train/" in note and "leaked.png" in note for note in found.notes
    )


def test_one_picture_in_two_classes_is_told(tmp_path):
    _fill(tmp_path, {"cat": 5, "dog": 5})
    shutil.copy(tmp_path / "cat" / "000.png", tmp_path / "dog" / "same.png")
    assert any(
        "in several classes at once: cat and dog" in note for note in open_image_folder(tmp_path).notes
    )


def test_given_folders_are_taken_as_they_are_and_what_lacks_is_drawn_from_train(tmp_path):
    _fill(tmp_path / "train", {"cat": 20, "dog": 20})
    _fill(tmp_path / "test", {"cat": 4, "dog": 4}, seed=1)
    found = open_image_folder(tmp_path, validation=0.1)
    assert (len(found.train), len(found.validation), len(found.test)) == (36, 4, 8)
    assert {path.parents[1].name for path, _ in found.test} == {"test"}


def test_broken_files_are_left_out_and_named(tmp_path):
    _fill(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "dog" / "empty.png").write_bytes(b"")
    (tmp_path / "dog" / "readme.txt").write_text("not a picture, and no fault either")
    (tmp_path / "dog" / ".hidden.png").write_bytes(b"junk")
    found = open_image_folder(tmp_path)
    assert sorted(path.name for path, _ in found.bad) == ["broken.jpg", "empty.png"]
    assert len(found.train) + len(found.validation) == 10
    assert "2 files are left out" in found.notes[0] and "empty.png is an empty file" in found.notes[0]


@pytest.mark.parametrize(
    "counts, said",
    [
        ({}, "no folders with pictures"),
        ({"cat": 3}, "only pictures of 'cat'"),
        ({"cat": 5, "dog": 1}, "too few pictures of dog 1; each class needs 2"),
    ],
)
def test_what_cannot_be_learned_from_is_said_with_a_way_out(tmp_path, counts, said):
    _fill(tmp_path, counts)
    with pytest.raises(UserError, match=said) as caught:
        open_image_folder(tmp_path)
    assert caught.value.fix


def test_a_missing_folder_and_a_wrong_pattern_are_said(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        open_image_folder(tmp_path / "nowhere")
    _fill(tmp_path, {"cat": 5, "dog": 5})
    with pytest.raises(UserError, match="is no pattern"):
        open_image_folder(tmp_path, group_by="(")
    with pytest.raises(UserError, match="copies of one another, or one group"):
        open_image_folder(tmp_path, group_by="cat|dog")


def test_the_fingerprint_changes_with_any_picture(tmp_path):
    _fill(tmp_path, {"cat": 5, "dog": 5})
    before = open_image_folder(tmp_path).fingerprint
    assert open_image_folder(tmp_path).fingerprint == before
    (tmp_path / "cat" / "000.png").rename(tmp_path / "cat" / "other.png")
    assert open_image_folder(tmp_path).fingerprint != before
    assert Counter(label for _, label in open_image_folder(tmp_path).train)[0] >= 3
