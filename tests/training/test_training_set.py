from dataclasses import replace

import pytest
import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.training_set import TrainingSet, rows_of_step

CONFIG = DreamBoothConfig("a", "b", batch_size=2)


def test_every_picture_is_seen_once_per_epoch_in_an_order_that_changes():
    steps = [rows_of_step("U-Net", step, CONFIG, 6, 4) for step in range(6)]
    first, second = ([row for step in part for row in step[:2]] for part in (steps[:3], steps[3:]))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second
    assert all(6 <= row < 10 for step in steps for row in step[2:])


def test_what_a_step_sees_depends_on_nothing_but_seed_stage_and_step():
    torch.manual_seed(1)
    once = rows_of_step("U-Net", 7, CONFIG, 5, 5)
    torch.manual_seed(2)
    assert rows_of_step("U-Net", 7, CONFIG, 5, 5) == once
    others = [rows_of_step("U-Net", 7, replace(CONFIG, seed=seed), 50, 50) for seed in range(5)]
    assert len({tuple(rows) for rows in others}) > 1


def test_pixels_are_square_upright_and_in_range(training_set):
    for row in range(6):
        pixels = training_set.pixels(row, 48)
        assert pixels.shape == (3, 48, 48)
        assert -1 <= pixels.min() < pixels.max() <= 1


def test_the_fingerprint_changes_with_a_prompt_a_crop_and_a_picture(training_set, tmp_path):
    first = training_set.instances[0]
    other_prompt = replace(first, prompt="another")
    other_crop = replace(
        first, crop=replace(first.crop, left=first.crop.left + 1, right=first.crop.right + 1)
    )
    other_picture = replace(first, path=training_set.instances[1].path)
    prints = {
        replace(training_set, instances=(one, *training_set.instances[1:])).fingerprint
        for one in (first, other_prompt, other_crop, other_picture)
    }
    assert len(prints) == 4


def test_no_photos_is_said_before_anything_is_loaded():
    with pytest.raises(UserError, match="no photo to learn from") as caught:
        TrainingSet(())
    assert "add-images" in caught.value.fix
