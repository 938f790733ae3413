"""Changes of pictures: drawn from seed, epoch and index alone, and doing what they are called."""

from __future__ import annotations

import numpy as np
import torch

from fastsd_lib.vit import augment
from fastsd_lib.vit.augment import STRENGTHS, Mixture, changed, draw_mixture, erase, mix, uniform

MASK = 2**64 - 1


def _pictures(count=6, side=16):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def _slow_uniform(seed, epoch, index, stream, count):
    """The same hash with Python's whole numbers, one at a time."""

    def mixed(value):
        value = (value + 0x9E3779B97F4A7C15) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return value ^ (value >> 31)

    row = mixed(index ^ mixed(seed ^ mixed(epoch ^ mixed(stream))))
    values = (mixed((row + number * 0x9E3779B97F4A7C15) & MASK) for number in range(1, count + 1))
    return [(value >> 11) * 2.0**-53 for value in values]


def test_numbers_are_a_function_of_their_arguments_as_a_slow_twin_finds():
    found = uniform(1337, 4, np.array([0, 7, 1000]), 2, 5)
    assert found.tolist() == [_slow_uniform(1337, 4, index, 2, 5) for index in (0, 7, 1000)]


def test_numbers_are_even_and_do_not_hang_together():
    found = uniform(1, 0, np.arange(20_000), 0, 4)
    assert abs(found.mean() - 0.5) < 0.005 and abs(found.var() - 1 / 12) < 0.002
    others = [uniform(2, 0, np.arange(20_000), 0, 4), uniform(1, 1, np.arange(20_000), 0, 4),
              uniform(1, 0, np.arange(20_000), 1, 4), np.roll(found, 1, 0), np.roll(found, 1, 1)]  # fmt: skip
    assert all(abs(np.corrcoef(found.ravel(), other.ravel())[0, 1]) < 0.02 for other in others)


def test_a_picture_is_changed_alike_in_whatever_batch_it_comes():
    pictures = _pictures()
    whole = changed(pictures, (12, 12), STRENGTHS["strong"], True, 5, 3, np.arange(6))
    for index in range(6):
        alone = changed(pictures[[index]], (12, 12), STRENGTHS["strong"], True, 5, 3, np.array([index]))
        assert torch.equal(whole[index], alone[0])
    later = changed(pictures, (12, 12), STRENGTHS["strong"], True, 5, 4, np.arange(6))
    assert not torch.allclose(whole, later)


def test_without_changes_the_pixels_stay_as_they_are():
    pictures = _pictures()
    found = changed(pictures, (16, 16), STRENGTHS["none"], False, 5, 3, np.arange(6))
    assert torch.equal(found, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255)


def test_about_half_are_mirrored_and_nothing_else_happens_to_them():
    pictures = _pictures(200, 8)
    found = changed(pictures, (8, 8), STRENGTHS["none"], True, 5, 3, np.arange(200))
    plain = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    same = torch.isclose(found, plain, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(found, plain.flip(3), atol=1e-5).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 70 <= int(mirrored.sum()) <= 130


def test_values_stay_in_range_and_light_changes_keep_the_picture():
    pictures = np.repeat(np.repeat(_pictures(50, 4), 4, 1), 4, 2)
    plain = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    for name, strength in STRENGTHS.items():
        found = changed(pictures, (16, 16), strength, False, 1, 0, np.arange(50))
        assert float(found.min()) >= 0 and float(found.max()) <= 1, name
    light = changed(pictures, (16, 16), STRENGTHS["light"], False, 1, 0, np.arange(50))
    assert np.corrcoef(light.numpy().ravel(), plain.numpy().ravel())[0, 1] > 0.5


def test_blended_and_pasted_pictures_keep_the_share_that_their_labels_say():
    own, other = torch.ones(4, 3, 20, 20), torch.zeros(4, 3, 20, 20)
    share = np.array([0.3, 0.9, 0.36, 0.75])
    paste = np.array([False, False, True, True])
    mixture = Mixture(np.arange(4), share, paste, np.array([[0.5, 0.5]] * 3 + [[0.0, 0.99]]))
    found, kept = mix(own, other, mixture)
    assert np.allclose(found.mean((1, 2, 3)).numpy(), kept, atol=1e-6)
    assert np.allclose(kept[:3], share[:3], atol=0.03) and kept[3] > 0.9  # a corner: most of it lies outside
    assert set(found[2].unique().tolist()) == {0.0, 1.0}


def test_partners_are_drawn_from_all_pictures_and_shares_from_beta():
    mixture = draw_mixture(0.4, 0.0, 50, 1, 0, np.arange(2000))
    assert set(mixture.partners) == set(range(50)) and not mixture.paste.any()
    assert abs(mixture.share.mean() - 0.5) < 0.03 and abs(mixture.share.var() - 0.25 / 1.8) < 0.01
    both = draw_mixture(0.4, 1.0, 50, 1, 0, np.arange(2000))
    assert 0.45 < both.paste.mean() < 0.55


def test_a_rectangle_is_blanked_as_often_and_as_large_as_said():
    values = torch.ones(1000, 3, 32, 32)
    found = erase(values, 0.25, 1, 0, np.arange(1000))
    blank = (found[:, 0] == 0).float().mean((1, 2))
    hit = blank > 0
    assert 0.2 < hit.float().mean() < 0.3
    assert float(blank[hit].min()) > 0.01 and float(blank[hit].max()) < 0.36
    assert torch.equal(erase(values[5:6], 0.25, 1, 0, np.array([5])), found[5:6])
    assert augment.STRENGTHS.keys() == {"none", "light", "standard", "strong"}
