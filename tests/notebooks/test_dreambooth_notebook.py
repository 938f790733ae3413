"""notebooks/dreambooth.ipynb: what it promises on the page, and that it runs from top to bottom."""

from __future__ import annotations

import dataclasses
import json

import nbformat
import notebook_rules as rules
import pytest

from fastsd_lib.sessions.session import Session, sessions_dir
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.widgets.forms import AUTO
from fastsd_lib.workflows import notebook as runner
from fastsd_lib.workflows.samples import SUBJECTS, sample_subject

PATH = rules.FOLDER / "dreambooth.ipynb"


@pytest.fixture(scope="module")
def code() -> list[str]:
    return rules.code_of(rules.read(PATH.name))


def test_it_keeps_the_rules_of_the_notebooks():
    rules.check(PATH.name)


def test_fields_of_the_recipe_have_its_names_and_leave_its_values(code):
    """AUTO (or "") means: as the recipe of the base model has it. The demo's own prompts stand in full."""
    fields = {field.name: field.default for field in dataclasses.fields(DreamBoothConfig)}
    own = {"repository", "session_name", "storage_folder", "use_drive", "shared_drive", "import_from",
           "demo_subject", "photos_folder", "base_model", "resume", "disconnect_when_done"}  # fmt: skip
    asked = rules.parameters(code)
    assert set(asked) - own <= set(fields)
    demo = sample_subject(str(asked["demo_subject"]))
    for name in set(asked) - own:
        allowed = (fields[name], AUTO, "", getattr(demo, name, AUTO))
        assert asked[name] in allowed, f"{name} = {asked[name]!r}"


def test_the_demo_prompts_are_those_of_its_subject_and_every_subject_can_be_chosen(code):
    asked = rules.parameters(code)
    demo = SUBJECTS[asked["demo_subject"]]
    assert (asked["instance_prompt"], asked["class_prompt"]) == (demo.instance_prompt, demo.class_prompt)
    line = next(line for line in "\n".join(code).splitlines() if line.startswith("demo_subject"))
    assert set(json.loads(line.split("#@param ")[1])) == {"", *SUBJECTS}


def test_it_runs_from_top_to_bottom_and_leaves_a_model_and_a_grid(tmp_path):
    """A short run on the embedded base model: fields rewritten as Colab does, no page, nobody to press anything."""
    values = {
        "session_name": "short", "storage_folder": str(tmp_path), "class_images": 2, "text_encoder_steps": 1,
        "unet_steps": 2, "sample_every_steps": 2,
    }  # fmt: skip
    done = []
    out = runner.execute(PATH, values, tmp_path / "run.ipynb", on_cell=lambda cell: done.append(cell.title))
    assert done[0] == "1 · Setup" and len(done) == 13
    session = Session(sessions_dir(tmp_path) / "short")
    assert session.model_file.stat().st_size > 1_000_000
    assert (session.samples / "before_after.png").is_file()
    assert len(list(session.class_images.glob("*.png"))) == 2
    assert "resolution_px: 64" in session.recipe.read_text() and "unet_steps: 2" in session.recipe.read_text()
    state = json.dumps(nbformat.read(out, as_version=4).metadata.widgets)
    for words in ("Finished in", "Recipe", "a photo of sks monster"):
        assert words in state
    assert "Traceback" not in out.read_text(encoding="utf-8")
