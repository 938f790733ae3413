"""The sample pictures: real, whole, the same each time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.sample_data import write_digits, write_faces, write_scenes


def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def test_digits_are_the_scans_of_scikit_learn_in_ten_folders(tmp_path):
    folder = write_digits(tmp_path / "digits")
    assert sorted(path.name for path in folder.iterdir()) == list("0123456789")
    files = sorted(folder.rglob("*.png"), key=lambda path: path.stem)
    data = load_digits()
    assert [int(path.parent.name) for path in files] == data.target.tolist()
    with Image.open(files[17]) as picture:
        grey = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=float)
    assert np.corrcoef(grey.ravel(), data.images[17].ravel())[0, 1] > 0.95


def test_faces_are_a_hundred_of_each(tmp_path):
    folder = write_faces(tmp_path / "faces")
    assert {path.name: len(list(path.iterdir())) for path in folder.iterdir()} == {
        "face": 100,
        "no_face": 100,
    }
    with Image.open(folder / "face" / "000.png") as picture:
        assert picture.size == (25, 25) and np.asarray(picture).std() > 10


def test_no_pixel_of_a_scene_is_in_training_and_in_test(tmp_path):
    folder = write_scenes(tmp_path / "scenes", train_per_class=3, test_per_class=2)
    for part, count in (("train", 3), ("test", 2)):
        counts = {path.name: len(list(path.glob("*.jpg"))) for path in (folder / part).iterdir()}
        assert len(counts) == 20 and set(counts.values()) == {count}


@pytest.mark.parametrize(
    "write", [write_faces, lambda folder: write_scenes(folder, train_per_class=2, test_per_class=1)]
)
def test_the_same_bytes_each_time_and_a_folder_that_stands_is_left_alone(write, tmp_path):
    first = _hash_of(write(tmp_path / "a"))
    assert _hash_of(write(tmp_path / "b")) == first
    stamp = (tmp_path / "a").stat().st_mtime_ns
    assert _hash_of(write(tmp_path / "a")) == first and (tmp_path / "a").stat().st_mtime_ns == stamp
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.png").write_bytes(b"x")
    with pytest.raises(UserError, match="holds something else"):
        write_faces(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["photo.png"]
