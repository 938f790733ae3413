"""Control pictures: edges against a slow twin and a drawn square, formulas, sizes, and wrong orders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.canny import canny
from fastsd_lib.generation.control_modules import MODULES, find_module
from fastsd_lib.generation.preprocessors import PREPROCESSORS, fitted, preprocess


def slow_canny(gray: np.ndarray, low: int, high: int) -> np.ndarray:
    """OpenCV's rule, pixel by pixel: aperture 3, L1 length, borders repeated."""
    height, width = gray.shape

    def at(y: int, x: int) -> int:
        return int(gray[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])

    dx, dy, length = (np.zeros((height, width), int) for _ in range(3))
    for y in range(height):
        for x in range(width):
            for i, weight in ((-1, 1), (0, 2), (1, 1)):
                dx[y, x] += weight * (at(y + i, x + 1) - at(y + i, x - 1))
                dy[y, x] += weight * (at(y + 1, x + i) - at(y - 1, x + i))
            length[y, x] = abs(dx[y, x]) + abs(dy[y, x])

    def of(y: int, x: int) -> int:
        return length[y, x] if 0 <= y < height and 0 <= x < width else 0

    weak = set()
    for y in range(height):
        for x in range(width):
            here = of(y, x)
            if here <= low:
                continue
            angle = np.degrees(np.arctan2(abs(dy[y, x]), abs(dx[y, x])))
            if angle < 22.5:
                peak = here > of(y, x - 1) and here >= of(y, x + 1)
            elif angle > 67.5:
                peak = here > of(y - 1, x) and here >= of(y + 1, x)
            else:
                side = -1 if (dx[y, x] < 0) != (dy[y, x] < 0) else 1
                peak = here > of(y - 1, x - side) and here > of(y + 1, x + side)
            if peak:
                weak.add((y, x))
    stack = [place for place in weak if of(*place) > high]
    found = set(stack)
    while stack:
        y, x = stack.pop()
        for near in [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]:
            if near in weak and near not in found:
                found.add(near)
                stack.append(near)
    edges = np.zeros((height, width), np.uint8)
    for place in found:
        edges[place] = 255
    return edges


@pytest.mark.parametrize("seed", range(4))
def test_canny_finds_what_its_slow_twin_finds(seed):
    from skimage.filters import gaussian

    random = np.random.default_rng(seed)
    gray = gaussian(random.normal(0, 1, (40, 33)), 1.5 + seed / 2)
    gray = ((gray - gray.min()) / np.ptp(gray) * 255).astype(np.uint8)
    edges = canny(gray, 100, 200)
    assert 0.02 < (edges > 0).mean() < 0.5
    assert np.array_equal(edges, slow_canny(gray, 100, 200))
    colours = np.repeat(gray[..., None], 3, axis=2)
    assert np.array_equal(canny(colours, 100, 200), edges)  # gray is the same in every band


def test_canny_draws_the_outline_of_a_square_and_nothing_of_a_faint_one():
    picture = np.full((32, 32, 3), 20, np.uint8)
    picture[8:24, 8:24] = (20, 220, 20)  # in one band alone
    edges = canny(picture) > 0
    assert edges[16, 7:9].sum() == 1 and edges[16, 23:25].sum() == 1
    assert not edges[10:22, 10:22].any() and not edges[:6].any()
    assert 56 <= edges.sum() <= 68  # four sides of 16, one pixel thin
    picture[8:24, 8:24] = (40, 40, 40)  # a step of 20 is a gradient of 80
    assert not canny(picture).any()
    assert canny(picture, 30, 60).any()


def test_hysteresis_follows_a_weak_edge_from_a_strong_one_only():
    picture = np.zeros((32, 64), np.uint8)
    picture[16:, :20] = 90  # a gradient of 360
    picture[16:, 20:] = 40  # of 160: between the thresholds
    assert canny(picture)[15:17, 40].any()
    picture[16:, :20] = 40
    assert not canny(picture).any()


def photo() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.astronaut()).resize((128, 128))


def test_every_preprocessor_is_described_and_makes_a_picture():
    assert set(PREPROCESSORS) == {name for name, module in MODULES.items() if not module.needs}
    for name in PREPROCESSORS:
        made = preprocess(photo(), name, resolution_px=64)
        assert made.mode == "RGB"
        assert min(made.size) == (64 if find_module(name).resolution else 128), name


def test_formulas_by_hand():
    levels = np.array([[0, 100], [200, 255]], np.uint8)
    gray = Image.fromarray(levels)
    assert np.asarray(preprocess(gray, "invert"))[..., 0].tolist() == [[255, 155], [55, 0]]
    assert np.asarray(preprocess(gray, "threshold", a=150))[..., 0].tolist() == [[0, 0], [255, 255]]
    assert np.asarray(preprocess(gray, "recolor_intensity", a=2))[..., 0].tolist() == [[0, 39], [157, 255]]
    assert preprocess(photo(), "tile_resample", a=4).size == (32, 32)
    white = Image.new("RGB", (64, 64), "white")
    assert np.asarray(preprocess(white, "lineart_standard")).max() == 0
    ImageDraw.Draw(white).line((0, 32, 64, 32), fill="black", width=2)
    lines = np.asarray(preprocess(white, "lineart_standard"))
    assert lines[31:33, 32].max() > 100 and lines[:16].max() < 40
    strokes = np.asarray(preprocess(white, "scribble_xdog"))
    assert strokes[32, 32, 0] == 255 and not strokes[:16].any()


def test_a_transparent_drawing_stands_on_black():
    drawing = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    drawing.paste((255, 255, 255, 255), (8, 8, 24, 24))
    made = np.asarray(preprocess(drawing, "none"))
    assert made[0, 0].tolist() == [0, 0, 0] and made[16, 16].tolist() == [255, 255, 255]


def test_a_depth_map_of_16_bits_keeps_its_levels():
    deep = Image.fromarray(np.array([[0, 32768], [49152, 65535]], np.uint16))
    assert np.asarray(preprocess(deep, "none"))[..., 0].tolist() == [[0, 128], [191, 255]]


def test_lines_stay_lines_when_they_are_made_smaller():
    drawing = Image.new("RGB", (512, 256))
    ImageDraw.Draw(drawing).rectangle((64, 64, 448, 192), outline="white")
    small = np.asarray(fitted(drawing, (64, 32), "stretch"))[..., 0]
    assert set(np.unique(small)) == {0, 255}
    # A row of the rectangle has its two sides, one pixel each.
    assert (small[16] > 0).sum() == 2
    assert np.asarray(fitted(drawing, (64, 32), "stretch")).shape == (32, 64, 3)


def test_resize_modes_stretch_crop_or_fill():
    wide = Image.new("RGB", (200, 100), (0, 90, 0))
    wide.paste((200, 0, 0), (0, 0, 50, 100))
    wide.paste((0, 0, 200), (150, 0, 200, 100))
    stretched, cropped, filled = (
        np.asarray(fitted(wide, (64, 64), mode)) for mode in ("stretch", "crop", "fill")
    )
    assert stretched[32, 4, 0] > 150 and stretched[32, 60, 2] > 150
    assert cropped[32, 4, 1] == 90 and cropped[32, 60, 1] == 90  # the middle square: green alone
    assert filled[32, 4, 0] > 150 and filled[2, 4, 0] > 150  # the margins continue the edge
    assert {one.shape for one in (stretched, cropped, filled)} == {(64, 64, 3)}


@pytest.mark.parametrize(
    ("typed", "name"),
    [("Canny", "canny"), ("None", "none"), ("lineart_standard (from white bg & black line)", "lineart_standard"),
     ("tile", "tile_resample"), ("reference_only", "reference_only"), ("depth_anything_v2", "depth")],
)  # fmt: skip
def test_names_of_a1111_are_known(typed, name):
    assert find_module(typed).name == name


def test_sliders_are_said_as_a1111_says_them():
    resolution, low, high = MODULES["canny"].sliders
    assert resolution == {"name": "Preprocessor Resolution", "value": 512, "min": 64, "max": 2048}
    assert (low["value"], high["value"]) == (100, 200)
    assert MODULES["none"].detail == {"model_free": False, "sliders": []}
    assert MODULES["reference_only"].detail["model_free"] is True
    assert MODULES["reference_only"].sliders[0] is None


@pytest.mark.parametrize(
    ("name", "numbers", "fix"),
    [
        ("cany", {}, "nearest: canny"),
        ("openpose_full", {}, "draw the pose with another program"),
        ("softedge_hed", {}, "take scribble_xdog"),
        ("canny", {"a": 300}, "take 1 to 255; 100 is usual"),
        ("canny", {"resolution_px": 9}, "take 16 to 4096; 512 is usual"),
        ("depth_midas", {}, "put a transformers folder"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(name, numbers, fix):
    with pytest.raises(UserError) as refused:
        preprocess(photo(), name, **numbers)
    assert fix in refused.value.fix


def test_depth_is_read_from_a_folder_of_the_library(tmp_path):
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, image_size=32,
        patch_size=8, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 16, 16],
        fusion_hidden_size=16, reassemble_factors=[4, 2, 1, 0.5], is_hybrid=False,
    )  # fmt: skip
    place = tmp_path / "annotators" / "depth"
    DPTForDepthEstimation(config).save_pretrained(place)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)
    made = preprocess(photo(), "depth", resolution_px=64, folders=[tmp_path])
    assert made.size == (64, 64) and made.mode == "RGB"
    assert np.ptp(np.asarray(made)) > 0
