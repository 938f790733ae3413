"""`fastsd generate`: every way to draw, from the command line, with one line for what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastsd_lib.cli import main
from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import read_record
from fastsd_lib.workflows.drawing import with_subject


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


def test_a_picture_is_drawn_beyond_its_edges(generate, tmp_path):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    photo.save(tmp_path / "photo.png")
    drawn = generate("--init", str(tmp_path / "photo.png"), "--outpaint", "32", "0", "0", "16")
    assert drawn.size == (96, 80)
    assert (np.asarray(drawn)[:40, 48:] == np.asarray(photo)[:40, 16:]).all()


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


def test_each_line_of_a_file_is_a_prompt_and_a_grid_shows_them(tiny_pipeline, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("# two\na red star\n\na blue cat\n", "utf-8")
    words = ["--from-file", str(tmp_path / "prompts.txt"), "--model", str(tiny_pipeline.path), "--steps", "1"]
    assert main(["generate", *words, "--out", str(tmp_path / "out"), "--grid", "--seed", "5"]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["00001-seed5.png", "00002-seed5.png", "grid-00002.png"]
    prompts = [read_record(tmp_path / "out" / name)["prompt"] for name in names[:2]]
    assert prompts == ["a red star", "a blue cat"]


def test_styles_and_wildcards_are_put_in_for_each_picture(tiny_pipeline, tmp_path, capsys):
    (tmp_path / "wildcards").mkdir()
    (tmp_path / "wildcards" / "thing.txt").write_text("star\ncat\nmonster\n")
    (tmp_path / "styles.csv").write_text("name,prompt,negative_prompt\nred,{prompt} in red,blue\n")
    words = ["--model", str(tiny_pipeline.path), "--steps", "1", "--count", "6", "--library", str(tmp_path)]
    words += ["--style", "red", "--style", "none", "--out", str(tmp_path / "out")]
    assert main(["generate", "a __thing__", *words]) == 0
    said = capsys.readouterr()
    records = [read_record(Path(line)) for line in said.out.splitlines()]
    assert [record["seed"] for record in records] == [42, 43, 44, 45, 46, 47]
    prompts = {record["prompt"] for record in records}
    assert prompts <= {f"a {thing} in red" for thing in ("star", "cat", "monster")} and len(prompts) > 1
    assert {record["negative_prompt"] for record in records} == {"blue"}
    assert "Note: there is no style 'none'" in said.err


def test_a_seed_of_minus_one_is_any_and_said(generate):
    first, second = generate("--seed", "-1"), generate("--seed", "-1")
    seeds = [read_record(Path(picture.filename))["seed"] for picture in (first, second)]
    assert seeds[0] != seeds[1] and min(seeds) >= 0
    assert f"seed{seeds[0]}.png" in first.filename


@pytest.mark.parametrize(
    ("words", "said", "fix"),
    [
        ([], "Neither a prompt nor --from-file", 'generate "a photo of a cat"'),
        (["x", "--from-file", "f.txt"], "Both a prompt and --from-file", "generate"),
        (["--from-file", "none.txt"], "none.txt: No such file", "one prompt per line"),
        (["x", "--session", "s", "--model", "m"], "contradict each other", "give one of the two"),
        (["x", "--control-weight", "1"], "--control-weight is given 1 times for 0 --control", "once for all"),
        (["x", "--outpaint", "8", "0", "0", "0"], "--outpaint goes with --init alone", "--init FILE"),
        (["x", "--format", "gif"], "there is no 'gif' here", "png, jpg, webp"),
        (["x", "--library", "/nowhere"], "There is no folder /nowhere", "models/Lora"),
        (["x", "--session", "nobody", "--root", "."], "nobody", ""),
    ],
)
def test_a_slip_in_the_command_is_one_line_with_the_way_out(words, said, fix, tmp_path):
    words = [str(tmp_path) if word == "." else word for word in words]
    with pytest.raises(UserError) as caught:
        main(["generate", *words, "--out", str(tmp_path / "out")])
    assert said in caught.value.message and fix in caught.value.fix
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("prompt", "drawn"),
    [
        ("{subject} on the moon", "sks cat on the moon"),
        ("a photo of sks cat, smiling", "a photo of sks cat, smiling"),
        ("riding a bike", "sks cat, riding a bike"),
        ("", "sks cat"),
    ],
)
def test_the_words_of_a_session_are_put_into_its_prompts(prompt, drawn):
    assert with_subject(prompt, "a photo of sks cat") == drawn
    assert with_subject("{subject}", "sks") == "sks"
