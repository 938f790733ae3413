"""The judge of subject against class: honest about the photos that it was made from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.subject import (
    Ridge,
    look,
    separation,
    solve,
    train_judge,
    vit_describer,
)


def clouds(distance: float, mine: int = 6, others: int = 30, width: int = 20, seed: int = 0):
    """Vectors of two classes, their labels, and each a group of its own."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(mine + others, width))
    vectors[:mine, 0] += distance
    labels = np.concatenate([np.ones(mine), -np.ones(others)])
    return vectors, labels, np.arange(len(labels))


def by_training_again(vectors, labels, groups, ridge):
    """Each group's margins by a solution made without it: the slow twin of the one-step formula."""
    mean = vectors.mean(axis=0)
    mine = labels > 0
    weights = np.where(mine, 0.5 / mine.sum(), 0.5 / (~mine).sum()) * len(labels)
    rows = np.hstack([vectors - mean, np.ones((len(labels), 1))]) * np.sqrt(weights)[:, None]
    penalty = ridge * np.mean((rows[:, :-1] ** 2).sum(axis=1)) + 1e-9
    margins = np.empty(len(labels))
    for group in set(groups):
        kept = groups != group
        gram = rows[kept].T @ rows[kept] + penalty * np.eye(rows.shape[1])
        found = np.linalg.solve(gram, rows[kept].T @ (labels * np.sqrt(weights))[kept])
        margins[~kept] = Ridge(mean, found).margins(vectors[~kept])
    return margins


@pytest.mark.parametrize("groups", ["alone", "in threes"])
@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_leave_one_out_in_one_step_equals_training_again_without_each(groups, ridge):
    vectors, labels, alone = clouds(2.0)
    chosen = alone if groups == "alone" else alone // 3
    _, held_out = solve(vectors, labels, chosen, ridge)
    assert np.allclose(held_out, by_training_again(vectors, labels, chosen, ridge), atol=1e-8)


def colours(width: int = 12):
    """A describer whose vectors the test chooses: pictures are one pixel high and hold them."""

    def describe(pictures):
        return np.stack([np.asarray(one, np.float64)[0, :, 0] / 255 for one in pictures])

    return {"pixels": describe}


def pictures_of(vectors):
    rows = np.clip(vectors * 30 + 128, 0, 255).astype(np.uint8)
    return [Image.fromarray(np.repeat(row[None, :, None], 3, axis=2)) for row in rows]


def test_scores_of_its_own_photos_are_chance_where_there_is_nothing_to_learn():
    """With 20 numbers for 36 pictures any fit separates them; what is said of each without it must not."""
    areas = []
    for seed in range(12):
        vectors = clouds(0.0, seed=seed)[0]
        pictures = pictures_of(vectors)
        judge = train_judge(pictures[:6], pictures[6:], colours())
        areas.append(judge.separation)
    assert 0.3 <= np.mean(areas) <= 0.7
    fitted = judge.score(pictures)
    assert separation(fitted[:6], fitted[6:]) >= judge.separation


def test_a_real_difference_is_found_and_carries_over_to_new_pictures():
    vectors, _, _ = clouds(4.0)
    pictures = pictures_of(vectors)
    judge = train_judge(pictures[:6], pictures[6:], colours())
    fresh, _, _ = clouds(4.0, seed=99)
    scores = judge.score(pictures_of(fresh))
    assert judge.separation >= 0.95
    assert separation(scores[:6], scores[6:]) >= 0.95
    assert scores.min() > 0 and scores.max() < 1
    assert judge.own.mean() > 0.5 > judge.others.mean()


def test_a_copy_among_the_photos_does_not_vouch_for_itself():
    """An intruder that stands there twice looks like a member, unless twins are left out together."""
    vectors, _, _ = clouds(4.0)
    vectors[5] = vectors[20]  # a class picture among the photos
    pictures = pictures_of(vectors)
    mine = [*pictures[:6], pictures[5]]
    naive = train_judge(mine, pictures[6:], colours())
    honest = train_judge(mine, pictures[6:], colours(), twins=[0, 1, 2, 3, 4, 5, 5])
    assert honest.own[5] < naive.own[5]
    assert honest.own[5] == honest.own[6] < 0.5 < honest.own[:5].min()


def test_the_way_that_separates_better_is_taken_and_both_are_told():
    vectors, _, _ = clouds(4.0)
    pictures = pictures_of(vectors)

    def blind(pictures):
        return np.random.default_rng(1).normal(size=(len(pictures), 8))

    judge = train_judge(pictures[:6], pictures[6:], {"blind": blind, **colours()})
    assert judge.way == "pixels" and set(judge.compared) == {"blind", "pixels"}
    assert judge.compared["pixels"] == judge.separation > judge.compared["blind"]


def test_photographs_of_one_thing_are_told_from_others_by_look_and_by_a_vit(tmp_path):
    whole = [Image.open(path).convert("RGB") for path in photos(tmp_path / "photos", 14)]
    subject = [
        whole[0].resize((96, 96)),
        *(ImageEnhance.Brightness(whole[0]).enhance(by).resize((96, 96)) for by in (0.8, 0.9, 1.1)),
    ]
    others = [one.resize((96, 96)) for at, one in enumerate(whole) if at % 7]
    with vit_describer(open_model(make_vit(tmp_path / "vit"))) as described:
        vectors = described(subject)
        judge = train_judge(subject, others, {"look": look, "vit": described})
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert judge.separation >= 0.95
        assert judge.score([subject[0]])[0] > judge.score([others[0]])[0]
    assert judge.score([]).shape == (0,)


def test_a_vit_without_a_class_token_is_taken_by_its_patches(tmp_path):
    pictures = [Image.open(path) for path in photos(tmp_path / "photos", 3)]
    with vit_describer(open_model(make_vit(tmp_path / "swin", kind="swin"))) as described:
        assert described(pictures).shape == (3, 32)


def test_ties_count_half_and_the_area_is_what_it_says():
    assert separation(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1
    assert separation(np.array([1.0, 0.0]), np.array([0.5])) == 0.5
    assert separation(np.array([1.0]), np.array([1.0])) == 0.5


@pytest.mark.parametrize(("mine", "others", "said"), [(1, 9, "subject"), (9, 1, "class")])
def test_too_few_pictures_are_said(mine, others, said):
    pictures = pictures_of(np.zeros((10, 4)))
    with pytest.raises(UserError, match=said) as refused:
        train_judge(pictures[:mine], pictures[:others], colours())
    assert "add photos" in refused.value.fix or "class images" in refused.value.fix
