"""What is trained on what: told before anything is loaded or written, and a broken list of models hides no page."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_families import save_sdxl

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.models.registry import base_model
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import dreambooth, training_recipes
from fastsd_lib.workflows.dreambooth import _check_base

CONFIG = DreamBoothConfig("photo of zwx cat", resolution_px=64)


class NoShelf:
    """A shelf with nothing on it."""

    def models(self) -> list:
        return []


def refused(base: ModelFiles, config: DreamBoothConfig, folder: Path) -> UserError:
    session = dreambooth.open_session("cat", folder)
    before = sorted(session.path.rglob("*"))
    with pytest.raises(UserError) as error:
        dreambooth.train(session, base, config)
    assert sorted(session.path.rglob("*")) == before  # nothing was begun
    return error.value


def test_a_model_of_another_family_and_a_size_that_it_cannot_do_are_told_in_one_message(tmp_path):
    base = save_sdxl(tmp_path / "xl")
    error = refused(base, DreamBoothConfig("photo of zwx cat", resolution_px=8), tmp_path)
    assert "is a sdxl model; only SD 1.x models are trained here." in error.message
    assert "SDXL cannot do 8 x 8 px: it learned from pictures of" in error.message
    assert error.fix.startswith("take an SD 1.x model")


def test_an_inpainting_model_is_not_trained_for_pictures_from_words(tiny_pipeline, tmp_path):
    folder = tmp_path / "inpainting"
    shutil.copytree(tiny_pipeline.path, folder)  # the fixture is every test's
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = np.zeros((first.shape[0], 9, 3, 3), first.dtype)
    save_file(weights, file)
    error = refused(replace(tiny_pipeline, path=folder), CONFIG, tmp_path)
    assert "is a model for inpainting; only text-to-image models are trained here." in error.message
    assert "such as 1.5" in error.fix


def test_a_size_far_from_the_models_own_is_told_and_trained():
    told = []
    _check_base(base_model(), CONFIG, told.append)
    assert told == []
    _check_base(base_model(), DreamBoothConfig("photo of zwx cat", resolution_px=512), told.append)
    assert [event.facts[""] for event in told] == [
        "512 x 512 px is much for SD 1.x, and this model learned from 64 px: things may appear twice; "
        "take 64 px and enlarge it (hires), or a model for 512 px such as SD 1.x (1.5)."
    ]


def test_the_page_offers_what_can_be_trained_and_says_when_a_users_list_is_broken(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    names = [name for _, name in training_recipes.base_models(NoShelf(), tmp_path)]
    assert names[:2] == ["embedded", "stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert not [name for name in names if "xl" in name or "inpainting" in name]
    mine = tmp_path / "Fast-Dreambooth" / "models.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine:\n  family: sd1\n  mirrors: [hf:me/mine]\n  uses: [train, generate]\n")
    assert training_recipes.base_models(NoShelf(), tmp_path)[-1][1] == "mine"
    mine.write_text("mine:\n  famly: sd1\n")
    text, name = training_recipes.base_models(NoShelf(), tmp_path)[-1]
    assert name == "" and "famly is not a setting (did you mean family?)" in text
