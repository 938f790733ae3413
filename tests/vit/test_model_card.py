"""The model card: what is known is in it, what is not known is said not to be."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import yaml
from tiny_vit import make_vit

from fastsd_lib.vit.evaluation import Calibration, Evaluation
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.model_card import CardFacts, model_card, write_model_card


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_model(make_vit(tmp_path_factory.mktemp("model") / "tiny"))


def _evaluation(split="test"):
    truth = np.array([0, 1, 2, 2])
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]] * 3
    return Evaluation(
        "tiny",
        ("cat", "dog", "fish"),
        ("a", "b", "c", "d"),
        truth,
        logits,
        Calibration(1.0, np.ones(4), "not fitted"),
        split,
    )


def _metadata(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_of_which_nothing_is_known_invents_nothing(model):
    card = model_card(model)
    assert "Accuracy: not measured. Calibration: not measured. Speed: not measured." in card
    assert card.count("ot stated") >= 4
    assert set(_metadata(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "cat, dog, fish" in card and f"{model.parameters:,} weights" in card


def test_figures_settings_and_hash_are_those_of_the_model(model):
    facts = CardFacts(
        licence="cc-by-4.0", base_model="google/vit", data="my: photos\n---\nx: 1", images={"train": 1200},
        recipe={"learning_rate": 2e-5, "note": "<b>|"}, train_seconds=61.2, intended_use="Telling cats from dogs.",
    )  # fmt: skip
    card = write_model_card(model, _evaluation(), facts).read_text()
    metadata = _metadata(card)
    assert (metadata["license"], metadata["base_model"]) == ("cc-by-4.0", "google/vit")
    result = metadata["model-index"][0]["results"][0]
    assert result["metrics"][0] == {"type": "accuracy", "name": "accuracy", "value": 0.75}
    assert result["dataset"]["name"] == "my: photos --- x: 1"
    for text in (
        "75.00% (3 of 4)",
        "| train | 1,200 |",
        "2e-05",
        "&lt;b&gt;\\|",
        "61 seconds",
        "Telling cats",
    ):
        assert text in card
    digest = hashlib.sha256((model.path / "model.safetensors").read_bytes()).hexdigest()
    assert digest in card
    assert "speed | not measured" in card


def test_figures_of_training_images_are_called_that(model):
    assert "TRAINED on" in model_card(model, _evaluation("train"))
    assert "TRAINED on" not in model_card(model, _evaluation("test"))
