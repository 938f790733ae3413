"""End to end: what comes out is what transformers' own pipeline says, in order, whatever goes in."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vit import CLASSES, make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.calibration_file import write_facts
from fastsd_lib.vit.classify import Classifier, _even_batch
from fastsd_lib.vit.config import ClassifyConfig, RunnerConfig
from fastsd_lib.vit.model import load_torch, open_model
from fastsd_lib.vit.predictions import write_predictions
from fastsd_lib.vit.transform import VIEWS, Transform

EXACT = RunnerConfig("torch", "fp32", batch_size=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(make_vit(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eleven of mixed sizes: two batches of four and a rest."""
    return photos(tmp_path_factory.mktemp("pictures"), 11)


@pytest.fixture
def classifier(model):
    with Classifier(model, EXACT) as classifier:
        yield classifier


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "swin", "convnext"])
def test_labels_and_scores_are_those_of_transformers_pipeline(tmp_path, pictures, kind):
    """The processor is named because the pipeline would pick its torchvision twin where that is installed."""
    from transformers import AutoImageProcessor, pipeline

    folder = make_vit(tmp_path / kind, kind=kind)
    theirs = pipeline(
        "image-classification", model=str(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder, backend="pil"),
    )([str(path) for path in pictures], top_k=3)  # fmt: skip
    with Classifier(folder, EXACT) as classifier:
        ours = list(classifier.classify([Image.open(path) for path in pictures]))
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine.labels) == [one["label"] for one in other]
        np.testing.assert_allclose(mine.scores, [one["score"] for one in other], atol=1e-5)
    assert len({one.label for one in ours}) > 1  # a model that says one thing of all would prove little


def test_files_folders_and_images_get_the_same_answers_in_order(classifier, pictures):
    by_file = list(classifier.classify(pictures))
    assert [one.key for one in by_file] == [str(path) for path in pictures]
    by_folder = list(classifier.classify(pictures[0].parent))
    assert by_folder == by_file
    by_bytes = list(classifier.classify(path.read_bytes() for path in pictures))
    assert [one.scores for one in by_bytes] == [one.scores for one in by_file]


def test_one_bad_picture_among_good_ones_is_told_and_changes_nothing_else(classifier, pictures, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(pictures[0].read_bytes()[:2000])
    good = list(classifier.classify(pictures))
    mixed = list(classifier.classify([bad, *pictures[:5], bad, bad, bad, bad, bad, *pictures[5:], bad]))
    assert [one for one in mixed if not one.error] == good
    assert [bool(one.error) for one in mixed] == [True, *[False] * 5, *[True] * 5, *[False] * 6, True]
    assert mixed[0].error == "bad.jpg ends too early: a part of the JPEG is missing."
    assert mixed[0].labels == () and mixed[0].confidence == 0
    only_bad = list(classifier.classify([bad] * 40))
    assert len(only_bad) == 40 and all(one.error for one in only_bad)
    assert list(classifier.classify([])) == []


@pytest.mark.parametrize("augment", VIEWS)
def test_views_of_a_picture_are_averaged(model, pictures, augment):
    """The witness runs each picture's views by itself."""
    transform, plain = Transform.of(model), load_torch(model)
    with Classifier(model, EXACT, ClassifyConfig(augment=augment)) as classifier:
        found = [logits for _, logits in classifier.logits(pictures)]
    for path, logits in zip(pictures, found, strict=True):
        views = np.stack(transform.views(transform.open(path, augment=augment), augment))
        assert len(views) == VIEWS[augment]
        with torch.inference_mode():
            expected = plain(torch.from_numpy(views)).logits.mean(dim=0).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_known_temperature_makes_probabilities_calibrated_and_changes_no_order(tmp_path, pictures):
    folder = make_vit(tmp_path / "tiny")
    with Classifier(folder, EXACT) as classifier:
        raw = list(classifier.classify(pictures))
        logits = [found for _, found in classifier.logits(pictures)]
    write_facts(folder, temperature=2.5)
    with Classifier(folder, EXACT) as classifier:
        calibrated = list(classifier.classify(pictures))
    for before, after, row in zip(raw, calibrated, logits, strict=True):
        assert before.labels == after.labels and after.confidence < before.confidence
        shares = np.exp(row.astype(np.float64) / 2.5)
        np.testing.assert_allclose(sorted(shares / shares.sum())[::-1], after.scores, atol=1e-9)


def test_a_multi_label_model_tells_every_class_that_reaches_the_threshold(tmp_path, pictures):
    folder = make_vit(tmp_path / "tiny")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    with Classifier(folder, EXACT, ClassifyConfig(threshold=0.5)) as classifier:
        logits = [found for _, found in classifier.logits(pictures)]
        told = list(classifier.classify(pictures))
    for row, one in zip(logits, told, strict=True):
        assert set(one.labels) == {CLASSES[number] for number in range(3) if row[number] >= 0}
        assert list(one.scores) == sorted(one.scores, reverse=True)
    assert {len(one.labels) for one in told} != {1}


def test_progress_goes_from_nothing_to_all_and_counts_the_bad(classifier, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"")
    events = []
    list(classifier.classify([*pictures, tmp_path / "bad.jpg"], events.append))
    assert (events[0].done, events[0].total) == (0, 12)
    assert (events[-1].done, events[-1].total, events[-1].facts["bad"]) == (12, 12, 1)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert [event.done >= event.total for event in events].count(True) == 1
    stream = []
    list(classifier.classify(iter(pictures), stream.append))
    assert (stream[-1].done, stream[-1].total) == (11, 11)
    assert [event.done >= event.total for event in stream].count(True) == 1


def test_classes_without_names_are_told_with_the_last_event(tmp_path, pictures):
    folder = make_vit(tmp_path / "tiny", classes=("LABEL_0", "LABEL_1"))
    events = []
    with Classifier(folder, EXACT) as classifier:
        list(classifier.classify(pictures, events.append))
    assert "names its classes LABEL_0 to LABEL_1: what they mean is not written" in events[-1].facts[""]
    assert "" not in events[0].facts


def test_answers_come_while_pictures_are_still_read(classifier, pictures):
    """Nothing waits for the end: with 4,000 pictures asked for, the first answer comes after a few dozen."""
    taken = []

    def endless():
        for number in range(4000):
            taken.append(number)
            yield pictures[number % len(pictures)]

    answers = classifier.classify(endless())
    next(answers)
    assert len(taken) < 60
    answers.close()


def test_more_pictures_than_fit_ahead_are_written_to_a_file(classifier, pictures, tmp_path):
    summary = write_predictions(classifier.classify(pictures * 20), tmp_path / "out.csv")
    assert summary.pictures == 220 and len((tmp_path / "out.csv").read_text().splitlines()) == 221


def test_ctrl_c_ends_a_program_at_once_and_leaves_no_thread_behind(model, pictures):
    program = (
        "import itertools, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever runs in the background inherits none
        "from fastsd_lib.vit.classify import Classifier\n"
        "from fastsd_lib.vit.config import RunnerConfig\n"
        "with Classifier(sys.argv[1], RunnerConfig('torch')) as classifier:\n"
        "    for number, _ in enumerate(classifier.classify(itertools.repeat(sys.argv[2]))):\n"
        "        if number == 20: print('at work', flush=True)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, str(model.path), str(pictures[0])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert running.stdout.readline() == "at work\n"
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode != 0 and told.strip().splitlines()[-1] == "KeyboardInterrupt"
    assert told.count("Traceback") == 1


@pytest.mark.parametrize(
    ("views", "most", "size"),
    [(None, 16, 16), (0, 16, 16), (1, 16, 1), (2, 16, 1), (20, 16, 10), (100, 16, 13), (32, 16, 16)],
)
def test_batches_are_even_so_that_two_that_compute_at_once_end_together(views, most, size):
    assert _even_batch(views, most) == size
    if views:
        assert -(-views // size) % 2 == 0 or views == 1


def test_openvino_says_what_pytorch_says(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Classifier(model, EXACT) as one, Classifier(model, RunnerConfig("openvino", "fp32")) as other:
        for mine, theirs in zip(one.logits(pictures), other.logits(pictures), strict=True):
            np.testing.assert_allclose(mine[1], theirs[1], atol=1e-3)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ClassifyConfig(top_k=0), "top_k is 0"),
        (ClassifyConfig(threshold=2), "threshold is 2"),
        (ClassifyConfig(fit="stretch"), "There is no fit 'stretch'"),
        (ClassifyConfig(augment="twist"), "There is no augmentation 'twist'"),
        (ClassifyConfig(readers=-1), "readers is -1"),
    ],
)
def test_choices_that_cannot_be_are_refused_before_a_picture_is_read(model, config, said):
    with pytest.raises(UserError, match=said) as error:
        Classifier(model, EXACT, config)
    assert error.value.fix
