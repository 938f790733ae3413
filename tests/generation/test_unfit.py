"""What is told of a model and a size that do not suit each other, with the picture that is drawn all the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from PIL import Image
from tiny_families import save_sdxl

from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models.registry import base_model

ORDER = GenerationRequest("a red star", inference_steps=1, seed=3)


def told(engine, **changed) -> list[str]:
    (picture,) = engine.generate(replace(ORDER, **changed))
    return [line for line in picture.record["warnings"] if "learned from" in line or "refiner" in line]


@pytest.fixture(scope="module")
def embedded():
    return load_engine(base_model(), device="cpu")


def test_a_size_far_from_the_models_own_is_a_warning_with_the_way_out(embedded):
    assert told(embedded) == told(embedded, width_px=64, height_px=96) == []
    assert told(embedded, width_px=128, height_px=128) == [
        "128 x 128 px is much for SD 1.x, and this model learned from 64 px: things may appear twice; "
        "take 64 px and enlarge it (hires)."
    ]
    assert "is little for SD 1.x" in told(embedded, width_px=32, height_px=32)[0]


def test_nothing_is_said_of_the_size_of_a_picture_that_is_drawn_over(embedded):
    assert told(embedded, init=Image.new("RGB", (128, 128)), strength=0.5) == []


def test_the_refiner_alone_is_told_what_it_is_for_but_not_over_a_picture(tmp_path):
    engine = load_engine(save_sdxl(tmp_path / "refiner", refines=True), device="cpu")
    (line,) = told(engine)
    assert "is SDXL's refiner, made for the last steps of a picture that SDXL began" in line
    assert line.endswith("give its picture to the refiner with a low strength.")
    side = engine.parts.side_px
    assert told(engine, init=Image.new("RGB", (side, side)), strength=0.5) == []
