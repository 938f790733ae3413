"""What the embedded model does with its ControlNet and with a reference: seen in the pictures."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fastsd_lib.generation.canny import canny
from fastsd_lib.generation.control_request import ControlUnit
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models.registry import EXTRAS_FOLDER, base_model


@pytest.fixture(scope="module")
def engine():
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.resources import Library

    engine = load_engine(base_model("embedded"), device="cpu")
    engine.library = Library.of(LibraryFolders(controlnets=(EXTRAS_FOLDER / "ControlNet",)))
    return engine


def near(edges: np.ndarray) -> np.ndarray:
    """Within a pixel of an edge."""
    padded = np.pad(edges > 0, 1)
    return np.any([padded[y : y + 64, x : x + 64] for y in range(3) for x in range(3)], axis=0)


def agreement(wanted: np.ndarray, drawn: np.ndarray) -> float:
    precision = (near(wanted) & (drawn > 0)).sum() / max((drawn > 0).sum(), 1)
    recall = (near(drawn) & (wanted > 0)).sum() / (wanted > 0).sum()
    return 2 * precision * recall / max(precision + recall, 1e-9)


def shapes() -> list[Image.Image]:
    drawn = []
    for place, kind in enumerate(("ellipse", "rectangle", "triangle")):
        picture = Image.new("RGB", (64, 64), (40, 92, 208))
        pen = ImageDraw.Draw(picture)
        if kind == "triangle":
            pen.polygon([(32, 10), (54, 52), (10, 52)], fill=(214, 39, 40))
        else:
            getattr(pen, kind)((14 + place, 12, 50 + place, 50), fill=(247, 213, 48))
        drawn.append(picture)
    return drawn


@pytest.mark.parametrize(
    ("prompt", "margin"),
    [
        ("a photo of a red circle on a green background", 0.15),
        ("a photo of a teal background", 0.15),
        ("", 0.15),
    ],
    ids=["a circle, whatever the edges show", "colours alone", "nothing"],
)
def test_the_shipped_controlnet_makes_pictures_follow_edges(engine, prompt, margin):
    found = {}
    for weight in (0, 1):
        found[weight] = []
        for seed, condition in enumerate(shapes()):
            unit = ControlUnit(condition, "tiny_canny", preprocessor="canny", weight=weight)
            request = GenerationRequest(prompt, seed=seed, inference_steps=8, control=(unit,))
            drawn = np.asarray(engine.generate(request)[0].image)
            found[weight].append(agreement(canny(np.asarray(condition)), canny(drawn)))
    assert np.mean(found[1]) > np.mean(found[0]) + margin


def test_a_reference_lends_its_colours_and_leaves_the_model_as_it_was(engine):
    def background(picture: Image.Image) -> np.ndarray:
        return np.asarray(picture, dtype=float)[[0, -1]].mean(axis=(0, 1))

    reference = Image.new("RGB", (64, 64), (40, 92, 208))
    ImageDraw.Draw(reference).ellipse((14, 14, 50, 50), fill=(247, 213, 48))
    order = GenerationRequest("a photo of a tree", seed=4, inference_steps=8)

    def drawn(*units: ControlUnit) -> Image.Image:
        return engine.generate(GenerationRequest(**{**vars(order), "control": units}))[0].image

    plain = drawn()
    apart = {
        fidelity: np.abs(
            background(drawn(ControlUnit(reference, preprocessor="reference_only", threshold_a=fidelity)))
            - background(reference)
        ).mean()
        for fidelity in (0, 1)
    }
    before = np.abs(background(plain) - background(reference)).mean()
    assert apart[1] < before / 2
    assert apart[1] < apart[0]  # more fidelity, more of its style
    assert np.array_equal(np.asarray(drawn()), np.asarray(plain))
    assert np.array_equal(
        np.asarray(drawn(ControlUnit(reference, preprocessor="reference_only", weight=0))), np.asarray(plain)
    )
