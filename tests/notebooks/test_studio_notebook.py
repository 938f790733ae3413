"""notebooks/studio.ipynb: what it promises on the page, and that it draws from top to bottom without any server."""

from __future__ import annotations

import dataclasses
import json

import nbformat
import notebook_rules as rules
from PIL import Image

from fastsd_lib.generation.picture_text import read_texts
from fastsd_lib.workflows import notebook as runner
from fastsd_lib.workflows.studio import StudioConfig
from fastsd_lib.workflows.studio_choices import StudioChoices


def test_it_keeps_the_rules_of_the_notebooks():
    rules.check("studio.ipynb")


def test_its_fields_have_the_names_and_defaults_of_the_choices():
    asked = rules.parameters(rules.code_of(rules.read("studio.ipynb")))
    known = {
        entry.name: entry.default
        for kind in (StudioChoices, StudioConfig)  # both have `model`: the notebook's is the config's
        for entry in dataclasses.fields(kind)
    }
    own = rules.SHARED | {"close_studio"}
    assert {name: asked[name] for name in set(asked) - own} == {
        name: known[name] for name in set(asked) - own
    }


def test_it_says_what_colab_allows_and_where_the_web_ui_is():
    text = "\n".join(cell.source for cell in rules.read("studio.ipynb").cells)
    assert "terms of service" in text and "paid compute units" in text and "webui.ipynb" in text


def test_it_draws_from_top_to_bottom_and_leaves_pictures_that_say_how_they_were_made(tmp_path):
    values = {
        "storage_folder": str(tmp_path),
        "inference_steps": 2,
        "count": 2,
        "seed": 7,
        "close_studio": True,
    }
    done = []
    out = runner.execute(rules.FOLDER / "studio.ipynb", values, tmp_path / "run.ipynb", on_cell=done.append)
    assert [cell.title for cell in done][-1] == "5 · Close"
    files = sorted((tmp_path / "studio").rglob("*.png"))
    assert len(files) == 2
    for number, file in enumerate(files):
        assert Image.open(file).size == (64, 64)
        assert "Steps: 2, Sampler: Euler a" in read_texts(file)["parameters"]
        assert f"Seed: {7 + number}," in read_texts(file)["parameters"]
    state = json.dumps(nbformat.read(out, as_version=4).metadata.widgets)
    assert "2 pictures in" in state or "Closed" in state
    assert "data:image/png;base64" in state and "Traceback" not in out.read_text("utf-8")
