"""Skeletons drawn as ControlNets for poses were taught to read them, from the JSON of OpenPose.

Order of the points, limbs and colours: OpenPose's COCO body of 18 points, hands of 21 and faces of 70
(github.com/CMU-Perceptual-Computing-Lab/openpose, "Output"); widths as in lllyasviel/ControlNet, annotator/openpose.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from fastsd_lib.core.errors import UserError

BODY, HAND, FACE = 18, 21, 70  # points
COLOURS = [
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0),
    (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255),
    (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
]  # fmt: skip
#: Neck to shoulders, arms, neck to hips, legs, neck to nose, eyes, ears.
LIMBS = [
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
]  # fmt: skip
FINGERS = [
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1)
    for finger in range(5)
    for joint in range(4)
]
LIMB_PX, BODY_PX, HAND_PX, FACE_PX = 4, 4, 4, 3  # half widths and radii
LIMB_LIGHT = 0.6  # limbs are darker than the points that they join

Point = tuple[float, float]


@dataclass(frozen=True)
class Person:
    """Points in pixels, or as shares of the canvas when none is above 1; None = not seen."""

    body: Sequence[Point | None] = ()
    left_hand: Sequence[Point | None] = ()
    right_hand: Sequence[Point | None] = ()
    face: Sequence[Point | None] = ()


@dataclass(frozen=True)
class Pose:
    width_px: int
    height_px: int
    people: Sequence[Person] = field(default=())


def points_of(numbers: Sequence[float], count: int, name: str) -> list[Point | None]:
    """[x, y, confidence, ...] -> points; a confidence of 0 is none. UserError for another count of numbers."""
    if not numbers:
        return []
    if len(numbers) % 3 or len(numbers) > 3 * count:
        raise UserError(f"{name} has {len(numbers)} numbers.", fix=f"send {count} times x, y and confidence.")
    triples = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return [(x, y) if seen > 0 else None for x, y, seen in triples]


def draw_pose(pose: Pose) -> Image.Image:
    """RGB, black behind the skeletons."""
    canvas = Image.new("RGB", (pose.width_px, pose.height_px))
    draw = ImageDraw.Draw(canvas)
    for person in pose.people:
        _draw_body(draw, _in_pixels(person.body, canvas.size))
        for hand in (person.left_hand, person.right_hand):
            _draw_hand(draw, _in_pixels(hand, canvas.size))
        for point in _in_pixels(person.face, canvas.size):
            _dot(draw, point, FACE_PX, (255, 255, 255))
    return canvas


def _draw_body(draw: ImageDraw.ImageDraw, points: list[Point | None]) -> None:
    for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
        if _both(points, start, end):
            draw.polygon(_spindle(points[start], points[end]), tuple(int(c * LIMB_LIGHT) for c in colour))
    for point, colour in zip(points, COLOURS, strict=False):
        _dot(draw, point, BODY_PX, colour)


def _draw_hand(draw: ImageDraw.ImageDraw, points: list[Point | None]) -> None:
    for number, (start, end) in enumerate(FINGERS):
        if _both(points, start, end):
            colour = colorsys.hsv_to_rgb(number / len(FINGERS), 1.0, 1.0)
            draw.line([points[start], points[end]], tuple(round(255 * c) for c in colour), 2)
    for point in points:
        _dot(draw, point, HAND_PX, (0, 0, 255))


def _in_pixels(points: Sequence[Point | None], size: tuple[int, int]) -> list[Point | None]:
    shares = all(point is None or max(map(abs, point)) <= 1 for point in points)
    scale = size if shares else (1, 1)
    return [point and (point[0] * scale[0], point[1] * scale[1]) for point in points]


def _both(points: list[Point | None], start: int, end: int) -> bool:
    return max(start, end) < len(points) and points[start] is not None and points[end] is not None


def _spindle(start: Point, end: Point) -> list[Point]:
    """A slim ellipse from one point to the other."""
    along = math.atan2(end[1] - start[1], end[0] - start[0])
    half, middle = math.dist(start, end) / 2, ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    corners = []
    for degree in range(0, 360, 6):
        x, y = half * math.cos(math.radians(degree)), LIMB_PX * math.sin(math.radians(degree))
        corners.append(
            (
                middle[0] + x * math.cos(along) - y * math.sin(along),
                middle[1] + x * math.sin(along) + y * math.cos(along),
            )
        )
    return corners


def _dot(
    draw: ImageDraw.ImageDraw, point: Point | None, radius_px: int, colour: tuple[int, int, int]
) -> None:
    if point is not None:
        x, y = point
        draw.ellipse((x - radius_px, y - radius_px, x + radius_px, y + radius_px), colour)
