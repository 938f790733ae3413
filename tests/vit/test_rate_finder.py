"""A learning rate is found between too small to move and too large to learn."""

from __future__ import annotations

import numpy as np
from vit_runs import base_config, make_pictures

from fastsd_lib.vit.rate_finder import RateSearch, find_learning_rate
from fastsd_lib.vit.train_config import VitTrainConfig


def test_the_steepest_fall_and_the_lowest_point_are_found():
    rates = tuple(np.logspace(-7, 0, 71))
    falls = 2.0 - 1.8 / (1 + np.exp(-3 * (np.log10(rates) + 3)))  # steepest at 1e-3
    search = RateSearch(rates, tuple(falls + 5 * np.array(rates) ** 2))
    assert 5e-4 <= search.steepest <= 2e-3
    lowest = rates[int(np.argmin(search.losses))]
    assert search.largest == lowest / 10 and search.suggested <= search.largest * 1.05


def test_it_suggests_a_rate_that_teaches_and_leaves_nothing_behind(tmp_path):
    data = make_pictures(tmp_path / "pictures")
    config = VitTrainConfig(**base_config(data, augment="none", max_grad_norm=0.0))
    search = find_learning_rate(config, steps=60)
    assert list(search.rates) == sorted(search.rates) and len(search.rates) == len(search.losses) >= 30
    assert 1e-5 < search.suggested < 0.1
    assert min(search.losses) < 0.9 * search.losses[0]
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
