from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from fastsd_lib.core.curve import HEIGHT, WIDTH, Curve, _smoothed, _ticks


def lines(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall(r'<polyline points="([^"]*)"', svg)
    ]


def test_the_chart_is_well_formed_and_every_point_lies_inside_it():
    curve = Curve()
    for step in range(1, 1001):
        curve.add("text <encoder>", step, 1000.0 if step == 500 else 1 / step)
        curve.add("U-Net", step, 0.3)
    svg = curve.svg()
    ElementTree.fromstring(svg)
    assert len(lines(svg)) == 4  # each stage raw and smoothed
    for x, y in (point for line in lines(svg) for point in line):
        assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    assert len(svg) < 30_000


def test_a_falling_loss_falls_on_the_page():
    curve = Curve()
    for step in range(1, 50):
        curve.add("U-Net", step, 1 - step / 100)
    heights = [y for _, y in lines(curve.svg())[1]]
    assert heights == sorted(heights)  # y grows downwards


def test_stages_stand_side_by_side_as_wide_as_they_are_long():
    curve = Curve()
    for step in range(1, 101):
        curve.add("text encoder", step, 0.5)
    for step in range(1, 301):
        curve.add("U-Net", step, 0.5)
    first, _, second, _ = lines(curve.svg())
    assert first[-1][0] <= second[0][0]
    assert (second[-1][0] - second[0][0]) / (first[-1][0] - first[0][0]) == pytest.approx(3, rel=0.05)


def test_a_step_done_again_after_resuming_replaces_its_old_loss():
    curve = Curve()
    for step in (1, 2, 3, 2, 3, 4):
        curve.add("U-Net", step, step / 10)
    assert len(lines(curve.svg())[0]) == 4


def test_nothing_is_drawn_of_one_point_or_of_losses_that_are_no_numbers():
    curve = Curve()
    curve.add("U-Net", 1, 0.5)
    curve.add("U-Net", 2, float("nan"))
    curve.add("U-Net", 3, float("inf"))
    assert curve.svg() == ""


def test_the_moving_average_has_no_bias_to_the_first_loss():
    assert _smoothed([(1, 2.0), (2, 2.0)]) == [(1, pytest.approx(2.0)), (2, pytest.approx(2.0))]
    assert _smoothed([(1, 1.0), (2, 3.0)])[1][1] == pytest.approx((0.09 * 1 + 0.1 * 3) / 0.19)


@pytest.mark.parametrize("high", [1e-6, 0.017, 0.3, 1.0, 7.0, 12345.0])
def test_ticks_are_few_and_inside(high):
    ticks = _ticks(0.0, high)
    assert 3 <= len(ticks) <= 6
    assert ticks[0] == 0 and ticks[-1] <= high * 1.0001
