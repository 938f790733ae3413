"""`fastsd generate`: every way to draw, from the command line, with one line for what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastsd_lib.cli import main
from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import read_record


@pytest.fixture
def generate(tiny_pipeline, tmp_path, capsys):
    def run(*words: str) -> Image.Image:
        before = set(tmp_path.glob("out/*"))
        common = [
            "--model",
            str(tiny_pipeline.path),
            "--out",
            str(tmp_path / "out"),
            "--inference-steps",
            "2",
        ]
        assert main(["generate", "a red star", *common, *words]) == 0
        (path,) = set(tmp_path.glob("out/*")) - before
        capsys.readouterr()
        return Image.open(path)

    return run


def test_a_picture_is_drawn_over_inside_its_mask(generate, tmp_path):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((8, 8, 39, 39), fill=255)
    photo.save(tmp_path / "photo.png")
    mask.save(tmp_path / "mask.png")
    files = ["--init", str(tmp_path / "photo.png"), "--mask", str(tmp_path / "mask.png")]
    drawn = generate(*files, "--strength", "0.9", "--mask-fill", "latent_noise", "--mask-blur-px", "2")
    changed = (np.asarray(drawn) != np.asarray(photo)).any(axis=2)
    assert not changed[np.asarray(mask) == 0].any() and changed[np.asarray(mask) > 0].mean() > 0.9
    assert "Denoising strength: 0.9" in drawn.text["parameters"]
    other = generate(*files, "--strength", "0.9", "--mask-invert", "--only-masked", "--mask-padding-px", "0")
    assert not (np.asarray(other) != np.asarray(photo)).any(axis=2)[np.asarray(mask) > 0].any()


def test_samplers_schedules_variations_and_a_second_pass_are_recorded(generate):
    picture = generate(
        "--sampler", "DPM++ 2M SDE", "--schedule", "Beta", "--subseed", "7", "--subseed-strength", "0.25",
        "--hires-scale", "1.5", "--hires-upscaler", "lanczos", "--clip-skip", "2", "--tiling", "--eta", "0.5",
    )  # fmt: skip
    record = read_record(Path(picture.filename))
    assert picture.size == (96, 96)
    known = {
        "sampler": "dpmpp_2m_sde", "schedule": "beta", "variation_seed": 7, "variation_strength": 0.25,
        "clip_skip": 2, "tiling": True, "eta": 0.5,
    }  # fmt: skip
    assert {key: record[key] for key in known} == known
    for words in ("Sampler: DPM++ 2M SDE, Schedule type: Beta", "Variation seed: 7", "Hires upscale: 1.5"):
        assert words in picture.text["parameters"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampler", "eulr"], "No sampler 'eulr'"),
        (["--init", "nowhere.png"], "nowhere.png"),
        (["--mask", "MASK"], "no picture under it"),
        (["--hires-scale", "99"], "hires.scale is 99"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_model_is_loaded(words, said, tmp_path):
    Image.new("L", (64, 64), 255).save(tmp_path / "mask.png")
    words = [str(tmp_path / "mask.png") if word == "MASK" else word for word in words]
    with pytest.raises(UserError, match=said):
        main(["generate", "x", "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
