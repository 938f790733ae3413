"""notebooks/dreambooth.ipynb: what it promises on the page, and that it runs from top to bottom."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from pathlib import Path

import nbformat
import pytest

from fastsd_lib.sessions.session import Session, sessions_dir
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.widgets.forms import AUTO
from fastsd_lib.workflows import notebook as runner
from fastsd_lib.workflows.samples import SUBJECTS, sample_subject

PATH = Path(__file__).resolve().parents[2] / "notebooks" / "dreambooth.ipynb"
PARAMETER = re.compile(r"^([a-z_]+) = (.+?)  #@param (.+)$")
LINES_AT_MOST = 15


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def code(notebook) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def parameters(code: list[str]) -> dict[str, object]:
    found = {}
    for line in "\n".join(code).splitlines():
        if "#@param" in line:
            match = PARAMETER.match(line)
            assert match, f"Colab cannot rewrite this line: {line}"
            found[match[1]] = ast.literal_eval(match[2])
    return found


def test_it_is_a_valid_notebook_with_cell_ids_and_colabs_metadata(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab.gpuType == "T4" and notebook.metadata.colab.private_outputs is True


def test_it_is_stored_without_outputs_and_counts(notebook):
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None


def test_every_cell_is_a_short_form(notebook, code):
    for number, (source, cell) in enumerate(
        zip(code, [c for c in notebook.cells if c.cell_type == "code"], strict=True), 1
    ):
        assert source.startswith(f"#@title {number} · ")
        assert cell.metadata.cellView == "form"
        assert len(source.splitlines()) <= LINES_AT_MOST, source


def test_no_cell_decides_repeats_asks_or_calls_a_shell(code):
    forbidden = (
        ast.If,
        ast.IfExp,
        ast.For,
        ast.While,
        ast.ListComp,
        ast.GeneratorExp,
        ast.Try,
        ast.FunctionDef,
    )
    for source in code:
        assert not re.search(r"^\s*[!%]", source, re.MULTILINE), source
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
        for node in ast.walk(compile(source, "cell", "exec", flags=flags)):
            assert not isinstance(node, forbidden), ast.unparse(node)
            assert not (isinstance(node, ast.Name) and node.id == "input")


def test_fields_of_the_recipe_have_its_names_and_leave_its_values(code):
    """AUTO (or "") means: as the recipe of the base model has it. The demo's own prompts stand in full."""
    fields = {field.name: field.default for field in dataclasses.fields(DreamBoothConfig)}
    own = {"repository", "session_name", "storage_folder", "use_drive", "shared_drive", "import_from",
           "demo_subject", "photos_folder", "base_model", "resume", "disconnect_when_done"}  # fmt: skip
    asked = parameters(code)
    assert set(asked) - own <= set(fields)
    demo = sample_subject(str(asked["demo_subject"]))
    for name in set(asked) - own:
        allowed = (fields[name], AUTO, "", getattr(demo, name, AUTO))
        assert asked[name] in allowed, f"{name} = {asked[name]!r}"


def test_the_demo_prompts_are_those_of_its_subject_and_every_subject_can_be_chosen(code):
    asked = parameters(code)
    demo = SUBJECTS[asked["demo_subject"]]
    assert (asked["instance_prompt"], asked["class_prompt"]) == (demo.instance_prompt, demo.class_prompt)
    line = next(line for line in "\n".join(code).splitlines() if line.startswith("demo_subject"))
    assert set(json.loads(line.split("#@param ")[1])) == {"", *SUBJECTS}


def test_the_table_of_contents_leads_to_every_step(notebook, code):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    linked = re.findall(r"^\d+\. \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [name for name, _ in linked] == [runner.title_of(source).split(" · ")[1] for source in code]
    assert all(f'<a id="{anchor}"></a>' in text for _, anchor in linked)
    assert (
        "colab.research.google.com/github/fastsd-project/fastsd/blob/main/notebooks/dreambooth.ipynb" in text
    )


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
