"""notebooks/vit.ipynb: what it promises on the page, and that it learns digits from top to bottom."""

from __future__ import annotations

import csv
import dataclasses
import json
import re

import nbformat
import notebook_rules as rules

from fastsd_lib.vit.config import ClassifyConfig, Features
from fastsd_lib.vit.train_config import PRESETS, VitTrainConfig
from fastsd_lib.widgets.forms import AUTO
from fastsd_lib.workflows import notebook as runner
from fastsd_lib.workflows.vit_experiment import experiments_dir
from fastsd_lib.workflows.vit_pictures import SAMPLES
from fastsd_lib.workflows.vit_serve import VitServeConfig

NAME = "vit.ipynb"
OWN = {
    "experiment_name", "pictures", "preset", "resume", "split", "what", "picture", "ways", "target", "query",
    "neighbours", "kinds", "format", "precision", "keep_cell_running", "session_name", "disconnect_when_done",
}  # fmt: skip


def test_it_keeps_the_rules_of_the_notebooks():
    rules.check(NAME)


def test_its_fields_have_the_names_and_defaults_of_the_choices():
    """AUTO (or "") means: as the preset has it."""
    asked = rules.parameters(rules.code_of(rules.read(NAME)))
    training = {field.name: field.default for field in dataclasses.fields(VitTrainConfig)}
    known = {
        field.name: field.default
        for kind in (ClassifyConfig, Features, VitServeConfig)
        for field in dataclasses.fields(kind)
    }
    for name in set(asked) - rules.SHARED - OWN:
        allowed = (AUTO, "") if name in training and asked[name] in (AUTO, "") else (known[name],)
        assert asked[name] in allowed, f"{name} = {asked[name]!r}"


def test_its_lists_offer_what_there_is():
    code = "\n".join(rules.code_of(rules.read(NAME)))

    def offered(name: str) -> set[str]:
        line = next(line for line in code.splitlines() if line.startswith(f"{name} ="))
        return set(re.findall(r'"([^"]*)"', line.split("#@param ")[1]))

    assert offered("pictures") == {"", *SAMPLES}
    assert offered("preset") == set(PRESETS)


def test_it_learns_digits_from_top_to_bottom_and_leaves_everything_in_its_folder(tmp_path):
    """A short run: fields rewritten as Colab does, no page, nobody to press anything."""
    values = {
        "storage_folder": str(tmp_path),
        "experiment_name": "short",
        "epochs": 2,
        "batch_size": 128,
        "port": 0,
    }
    done = []
    out = runner.execute(
        rules.FOLDER / NAME, values, tmp_path / "run.ipynb", on_cell=lambda cell: done.append(cell.title)
    )
    assert done[0] == "1 · Setup" and len(done) == len(rules.code_of(rules.read(NAME)))
    folder = experiments_dir(tmp_path) / "short"
    assert (
        "epochs: 2" in (folder / "recipe.yaml").read_text()
        and "model: new" in (folder / "recipe.yaml").read_text()
    )
    told = json.loads((folder / "report" / "report.json").read_text())
    assert (
        told["images"] == 269 and told["accuracy"] > 0.15
    )  # chance is 0.1; two short epochs are no training
    assert len(list(csv.DictReader((folder / "predictions.csv").open()))) == 12
    for part in (
        "inside/rollout.png",
        "inside/gradcam.png",
        "index/index.json",
        "exports/onnx-fp32/model.onnx",
    ):
        assert (folder / part).is_file(), part
    state = json.dumps(nbformat.read(out, as_version=4).metadata.widgets)
    for words in (
        "1528 train, 269 validation",
        "Finished in",
        "Most alike",
        "Odd ones out",
        "No session is named",
    ):
        assert words in state, words
    assert state.count("data:image/") > 60
    text = out.read_text(encoding="utf-8")
    assert "Traceback" not in text and "nothing is left running" not in text
