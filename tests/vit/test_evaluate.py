"""Evaluating a classifier: its answers are the model's, and a temperature never judges the images that it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import metrics
from fastsd_lib.vit.calibration_file import write_facts
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.vit.evaluate import _half, calibrate, evaluate
from fastsd_lib.vit.inside import Inside, as_picture
from fastsd_lib.vit.model import open_model

TORCH = RunnerConfig(backend="torch", precision="fp32", batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(make_vit(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"), 9, sizes=((90, 60), (60, 90)))


def test_every_readable_image_gets_the_answer_of_the_model_itself(model, files, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no photo")
    samples = [(path, at % 3) for at, path in enumerate(files)]
    samples[4:4] = [(broken, 0), (tmp_path / "gone.jpg", 1)]
    seen = []
    found = evaluate(model, samples, TORCH, on_progress=lambda event: seen.append((event.done, event.total)))
    inside = Inside.of(model)
    for key, logits in zip(found.keys, found.logits, strict=True):
        np.testing.assert_allclose(logits, inside.logits(inside.pixels(as_picture(key)))[0], atol=1e-4)
    assert found.keys == tuple(str(path) for path in files)
    assert found.truth.tolist() == [at % 3 for at in range(9)]
    assert [Path(path).name for path, _ in found.errors] == ["broken.jpg", "gone.jpg"]
    assert seen[-1] == (11, 11)
    assert found.runner == "torch fp32" and found.images_per_s > 0
    assert found.accuracy == np.mean(found.logits.argmax(1) == found.truth)
    low, high = found.accuracy_interval
    assert low < found.accuracy < high or found.accuracy in (0, 1)


def test_classes_of_a_folder_are_matched_by_name_whatever_their_order(model, files):
    samples = [(path, 0) for path in files[:3]] + [(path, 1) for path in files[3:6]]
    found = evaluate(model, samples, TORCH, classes=("Fish", "cat"))
    assert found.truth.tolist() == [2, 2, 2, 0, 0, 0]


def test_what_cannot_be_evaluated_is_said_before_any_work(model, files):
    with pytest.raises(UserError, match="no images") as error:
        evaluate(model, [], TORCH)
    assert "one folder for each class" in error.value.fix
    with pytest.raises(UserError, match="does not know the class 'horse'") as error:
        evaluate(model, [(files[0], 0)], TORCH, classes=("horse",))
    assert "train on this folder first" in error.value.fix
    with pytest.raises(UserError, match="class number 7, but there are 3"):
        evaluate(model, [(files[0], 7)], TORCH)
    with pytest.raises(UserError, match="None of the 1 images could be read"):
        evaluate(model, [(files[0].with_name("nothing.jpg"), 0)], TORCH)


def test_the_temperature_kept_with_the_model_is_used_unless_other_images_give_one(tmp_path, files):
    folder = make_vit(tmp_path / "model")
    write_facts(folder, temperature=2.5)
    model, samples = open_model(folder), [(path, 0) for path in files]
    found = evaluate(model, samples, TORCH)
    assert found.calibration.temperature == 2.5 and found.calibration.source == "stored with the model"
    np.testing.assert_allclose(found.probabilities, metrics.softmax(found.logits, 2.5))
    other = evaluate(model, samples, TORCH, fit_on=samples * 3)
    assert other.calibration.source == "fitted on 27 other images"
    expected = metrics.fit_temperature(np.tile(found.logits, (3, 1)), np.zeros(27, int))
    assert other.calibration.temperature == pytest.approx(expected, rel=1e-4)


def test_a_half_is_never_judged_by_a_temperature_that_has_seen_it():
    random = np.random.default_rng(0)
    truth, logits = np.repeat(np.arange(4), 30), random.normal(size=(120, 4)) * 4
    found = calibrate(logits, truth)
    half = _half(truth)
    assert half.sum() == 60 and all(half[truth == one].sum() == 15 for one in range(4))
    assert set(found.of_row[half]) == {metrics.fit_temperature(logits[~half], truth[~half])}
    changed = logits.copy()
    changed[half] = random.normal(size=(60, 4))  # what is judged changes, its temperature does not
    np.testing.assert_array_equal(calibrate(changed, truth).of_row[half], found.of_row[half])


def test_too_few_images_are_not_calibrated_and_it_is_said():
    found = calibrate(np.zeros((39, 3)), np.zeros(39, int))
    assert (
        not found.fitted and (found.of_row == 1).all() and found.source == "not fitted: that takes 40 images"
    )
