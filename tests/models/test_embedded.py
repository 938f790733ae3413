"""The embedded model as it ships: what it promises offline."""

import pytest
import torch
from PIL import Image

from fastsd_lib.core.config import load_config
from fastsd_lib.generation import judge as judges
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models.registry import EMBEDDED_FOLDER, base_model
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows.samples import SUBJECTS


@pytest.fixture(scope="module")
def judge():
    return judges.load_judge(EMBEDDED_FOLDER)


def test_it_is_a_pipeline_that_diffusers_loads_and_draws_with():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED_FOLDER)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a photo of a cat",
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    assert theirs.size == (64, 64)
    ours = load_engine(base_model("embedded")).generate(
        GenerationRequest("a photo of a cat", inference_steps=10, guidance_scale=4.0, seed=3)
    )[0]
    difference = judges.as_batch([theirs]) - judges.as_batch([ours.image])
    assert difference.abs().max() < 0.02


def test_everything_that_ships_is_at_most_24_mb():
    assert sum(path.stat().st_size for path in EMBEDDED_FOLDER.rglob("*") if path.is_file()) <= 24e6


def test_it_draws_what_it_is_asked_for(judge):
    engine = load_engine(base_model("embedded"))
    asked = {
        "a photo of a cat on a blue background": {"subject": "cat", "background": "blue"},
        "a photo of a red star on a white background": {
            "subject": "star",
            "colour": "red",
            "background": "white",
        },
        "a photo of a green monster on a yellow background": {
            "subject": "monster",
            "colour": "green",
            "background": "yellow",
        },
    }
    right = total = 0
    for prompt, wanted in asked.items():
        pictures = [one.image for one in engine.generate(GenerationRequest(prompt, count=6, seed=50))]
        for answer in judges.answers(judge, pictures):
            right += sum(answer[name] == value for name, value in wanted.items())
            total += len(wanted)
    assert right / total >= 0.85


def test_the_judge_sees_the_sample_character_in_each_of_its_photos_and_in_no_cat(judge):
    traits = SUBJECTS["monster"].traits
    photos = [Image.open(path) for path in sorted((EMBEDDED_FOLDER / "sample_photos/monster").glob("*.png"))]
    assert len(photos) == 5
    assert judges.finds(judge, photos, traits).all()
    assert not judges.finds(judge, photos, {**traits, "eyes": "3"}).any()


def test_its_recipe_is_a_valid_one_for_64_pixels():
    recipe = load_config(DreamBoothConfig, EMBEDDED_FOLDER / "recipe.yaml")
    assert recipe.resolution_px == 64 and recipe.conflicts() == []
