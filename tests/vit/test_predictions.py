"""What is told of a picture, and the files that hold it."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.predictions import Prediction, predict, probabilities, write_predictions

LABELS = ("cat", "dog", "fish")
LOGITS = np.array([1.0, 3.0, 0.0], np.float32)
SEEN = [
    Prediction("a.jpg", ("dog", "cat"), (0.75, 0.25), entropy=0.5623351),
    Prediction('b "quoted", ü.jpg', (), (), "b.jpg is damaged (JPEG): broken data stream."),
    Prediction("c.jpg", ("fish",), (1.0,)),
]


def test_probabilities_are_a_softmax_of_logits_over_the_temperature():
    powers = [math.exp(1.0), math.exp(3.0), math.exp(0.0)]
    np.testing.assert_allclose(
        probabilities(LOGITS, multi_label=False), [one / sum(powers) for one in powers]
    )
    halves = [math.exp(0.5), math.exp(1.5), math.exp(0.0)]
    calibrated = probabilities(LOGITS, multi_label=False, temperature=2.0)
    np.testing.assert_allclose(calibrated, [one / sum(halves) for one in halves])
    np.testing.assert_allclose(probabilities(LOGITS, multi_label=True), [0.7310586, 0.9525741, 0.5])
    huge = probabilities(np.array([1e4, -1e4]), multi_label=False)
    np.testing.assert_array_equal(huge, [1, 0])


def test_the_best_classes_come_first_and_weak_ones_are_left_out():
    found = predict("a", LOGITS, LABELS, top_k=2)
    assert found.labels == ("dog", "cat") and found.label == "dog"
    assert found.confidence == found.scores[0] == pytest.approx(0.8437947)
    assert predict("a", LOGITS, LABELS, top_k=9).labels == ("dog", "cat", "fish")
    assert predict("a", LOGITS, LABELS, top_k=9, threshold=0.1).labels == ("dog", "cat")
    several = predict("a", LOGITS, LABELS, top_k=9, threshold=0.6, multi_label=True)
    assert several.labels == ("dog", "cat") and sum(several.scores) > 1
    assert predict("a", np.zeros(3), LABELS, top_k=3).labels == LABELS  # ties keep the order of the classes


def test_entropy_is_that_of_all_classes_whatever_is_told():
    assert predict("a", np.zeros(3), LABELS, top_k=1).entropy == pytest.approx(math.log(3))
    assert predict("a", np.array([1e3, 0, 0]), LABELS, top_k=1).entropy == 0
    assert predict("a", np.zeros(2), LABELS[:2], top_k=1, multi_label=True).entropy == pytest.approx(
        2 * math.log(2)
    )


def test_csv_has_a_pair_of_columns_for_each_place_and_bad_pictures_as_rows(tmp_path):
    summary = write_predictions(iter(SEEN), tmp_path / "out.csv", top_k=2)
    assert (summary.pictures, summary.bad, summary.path) == (3, 1, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["key", "label", "score", "label_2", "score_2", "entropy", "error"]
    assert (rows[0]["label"], rows[0]["score_2"], rows[0]["entropy"]) == ("dog", "0.25", "0.562335")
    assert (rows[1]["key"], rows[1]["label"], rows[1]["error"]) == (SEEN[1].key, "", SEEN[1].error)
    assert (rows[2]["label"], rows[2]["label_2"]) == ("fish", "")


def test_json_lines_and_parquet_hold_the_same(tmp_path):
    from pyarrow import parquet

    write_predictions(SEEN, tmp_path / "out.jsonl")
    write_predictions(SEEN, tmp_path / "out.parquet")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert lines[0] == {
        "key": "a.jpg", "labels": ["dog", "cat"], "scores": [0.75, 0.25], "entropy": 0.562335, "error": None,
    }  # fmt: skip
    assert lines[1]["error"] == SEEN[1].error and lines[1]["entropy"] is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_many_rows_go_to_disk_as_they_come_and_a_failure_leaves_the_old_file(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")

    def broken():
        for number in range(3000):
            yield Prediction(f"{number}.jpg", ("cat",), (1.0,))
        assert list(tmp_path.glob(".out.*")), "nothing is being written"
        raise RuntimeError("the model is gone")

    with pytest.raises(RuntimeError, match="the model is gone"):
        write_predictions(broken(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert write_predictions((one for one in SEEN * 1000), path).pictures == 3000


def test_no_pictures_are_a_file_without_rows(tmp_path):
    from pyarrow import parquet

    for name in ("out.csv", "out.jsonl", "out.parquet"):
        assert write_predictions([], tmp_path / name).pictures == 0
    assert parquet.read_table(tmp_path / "out.parquet").num_rows == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_another_suffix_lists_those_that_there_are(tmp_path):
    with pytest.raises(UserError, match=r"are not written as \.xlsx") as error:
        write_predictions(SEEN, tmp_path / "out.xlsx")
    assert error.value.fix == "name a file that ends in .csv, .jsonl, .parquet."
    assert list(tmp_path.iterdir()) == []
