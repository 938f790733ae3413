"""Skeletons: the right joints in the right colours where they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.openpose import BODY, COLOURS, FINGERS, LIMBS, Person, Pose, draw_pose, points_of

STANDING = {0: (50, 10), 1: (50, 25), 2: (40, 25), 3: (32, 40), 4: (28, 55), 5: (60, 25), 6: (68, 40), 7: (72, 55),
            8: (44, 60), 9: (42, 78), 10: (40, 95), 11: (56, 60), 12: (58, 78), 13: (60, 95)}  # fmt: skip


def body(points=STANDING) -> list:
    return [points.get(number) for number in range(BODY)]


def test_each_point_has_its_colour_and_each_limb_the_colour_of_its_place():
    drawn = draw_pose(Pose(100, 110, [Person(body())]))
    assert drawn.size == (100, 110) and drawn.mode == "RGB"
    for number, point in STANDING.items():
        assert drawn.getpixel(point) == COLOURS[number], number
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        if start in STANDING and end in STANDING:
            middle = tuple(round((a + b) / 2) for a, b in zip(STANDING[start], STANDING[end], strict=True))
            assert drawn.getpixel(middle) in [tuple(int(0.6 * c) for c in colour), *COLOURS], (start, end)
    assert drawn.getpixel((5, 5)) == (0, 0, 0)


def test_shares_of_the_canvas_are_the_same_picture_as_pixels():
    shares = {number: (x / 100, y / 110) for number, (x, y) in STANDING.items()}
    in_pixels = np.asarray(draw_pose(Pose(100, 110, [Person(body())])), dtype=int)
    in_shares = np.asarray(draw_pose(Pose(100, 110, [Person(body(shares))])), dtype=int)
    assert (in_pixels != in_shares).mean() < 0.01


def test_what_is_not_seen_is_not_drawn():
    alone = {4: (50, 50)}
    drawn = np.asarray(draw_pose(Pose(100, 100, [Person(body(alone))])))
    ys, xs = np.nonzero(drawn.any(axis=2))
    assert abs(xs - 50).max() <= 4 and abs(ys - 50).max() <= 4
    assert not np.asarray(draw_pose(Pose(16, 16, [Person(), Person(body({}))]))).any()


def test_hands_and_faces_are_drawn():
    hand = [(10.0 + 3 * number, 20.0) for number in range(21)]
    face = [(5.0, 60.0)] + [None] * 69
    drawn = draw_pose(Pose(100, 100, [Person(left_hand=hand, face=face)]))
    assert drawn.getpixel((10, 20)) == (0, 0, 255) and drawn.getpixel((5, 60)) == (255, 255, 255)
    assert FINGERS[:5] == [(0, 1), (1, 2), (2, 3), (3, 4), (0, 5)] and FINGERS[-1] == (19, 20)


def test_numbers_become_points_and_a_wrong_count_is_refused():
    assert points_of([1, 2, 1, 3, 4, 0], BODY, "x") == [(1, 2), None]
    assert points_of([], BODY, "x") == []
    for numbers in ([1.0, 2.0], [1.0] * 57):
        with pytest.raises(UserError, match=f"x has {len(numbers)} numbers") as error:
            points_of(numbers, BODY, "x")
        assert error.value.fix == "send 18 times x, y and confidence."
