"""Pictures on disk: numbered, never overwritten, each with its record inside."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.files import draw_to_folder, save_grid
from fastsd_lib.generation.infotext import infotext, read_record
from fastsd_lib.generation.request import GenerationRequest

ORDER = GenerationRequest("a photo of a red star", "cat", inference_steps=2, seed=7, count=2)


def test_pictures_are_numbered_on_and_carry_their_record(tiny_pipeline, tmp_path):
    engine = load_engine(tiny_pipeline, device="cpu")
    first = list(draw_to_folder(engine, [ORDER], tmp_path))
    second = list(draw_to_folder(engine, [replace(ORDER, count=1)], tmp_path))
    assert [path.name for path in first + second] == ["00001-seed7.png", "00002-seed8.png", "00003-seed7.png"]
    assert sorted(tmp_path.iterdir()) == first + second
    record = read_record(first[1])
    assert (record["prompt"], record["seed"], record["model"]) == (ORDER.prompt, 8, "tiny")
    with Image.open(first[1]) as image:
        assert image.size == (64, 64)
        assert image.text["parameters"] == infotext(record)


def test_the_parameters_read_as_other_programs_expect_them():
    record = {
        "prompt": "a cat,\nsitting", "negative_prompt": "dog", "inference_steps": 25, "sampler": "euler_a",
        "guidance_scale": 7.0, "seed": 3, "width_px": 512, "height_px": 768, "model": "sd15",
    }  # fmt: skip
    assert infotext(record) == (
        "a cat,\nsitting\nNegative prompt: dog\n"
        "Steps: 25, Sampler: Euler a, CFG scale: 7.0, Seed: 3, Size: 512x768, Model: sd15, Version: fastsd"
    )
    assert "Negative" not in infotext(record | {"negative_prompt": ""})


def test_a_picture_from_elsewhere_has_no_record(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert read_record(tmp_path / "x.png") is None


def test_pictures_drawn_before_a_wrong_order_stay_and_a_grid_shows_all(tiny_pipeline, tmp_path):
    engine = load_engine(tiny_pipeline, device="cpu")
    drawing = draw_to_folder(engine, [ORDER, replace(ORDER, inference_steps=0)], tmp_path, ".jpg")
    written = [next(drawing), next(drawing)]
    with pytest.raises(UserError, match="inference_steps is 0"):
        next(drawing)
    assert [path.name for path in written] == ["00001-seed7.jpg", "00002-seed8.jpg"]
    grid = save_grid(written, columns=2)
    assert grid == tmp_path / "grid-00002.png"
    with Image.open(grid) as page:
        assert page.width > 2 * 160 and page.height < page.width
