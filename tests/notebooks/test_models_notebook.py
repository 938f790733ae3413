"""notebooks/models.ipynb: what it promises on the page, and that it identifies, converts and verifies top to bottom."""

from __future__ import annotations

import json
import re
import shutil

import nbformat
import notebook_rules as rules
import pytest
import safetensors.numpy

from fastsd_lib.core.errors import UserError
from fastsd_lib.environment import tokens
from fastsd_lib.models.known_models import find_known
from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER
from fastsd_lib.workflows import model_steps, models
from fastsd_lib.workflows import notebook as runner
from fastsd_lib.workflows.model_downloads import model_folders

NAME = "models.ipynb"
LORA = EXTRAS_FOLDER / "Lora/tiny_night.safetensors"


def offered(notebook: str, field: str) -> list[str]:
    code = "\n".join(rules.code_of(rules.read(notebook)))
    line = next(line for line in code.splitlines() if line.startswith(f"{field} ="))
    return re.findall(r'"([^"]*)"', line.split("#@param ")[1].partition("{")[0])


def test_it_keeps_the_rules_of_the_notebooks():
    rules.check(NAME)


def test_its_lists_offer_what_there_is(tmp_path):
    assert tuple(offered(NAME, "dtype")) == models.DTYPES
    assert tuple(offered(NAME, "ema")) == models.EMA
    assert tuple(offered(NAME, "naming")) == models.NAMINGS
    assert offered(NAME, "form") == list(model_steps.FORMS)
    families = {one.family for one in models.known()}
    assert set(offered(NAME, "family")) - {""} <= families
    assert set(offered(NAME, "kind")) - {"auto"} <= set(model_folders(tmp_path))


@pytest.mark.parametrize(
    ("notebook", "field", "use"),
    [(NAME, "model", ""), ("dreambooth.ipynb", "base_model", "train"), ("webui.ipynb", "model", "generate"),
     ("studio.ipynb", "model", "generate")],
)  # fmt: skip
def test_every_model_that_a_notebook_offers_is_known_and_fit_for_what_it_does(notebook, field, use):
    for name in offered(notebook, field):
        known = find_known(name)
        assert known is not None and (not use or use in known.uses), name


def test_no_field_of_it_takes_a_key():
    asked = rules.parameters(rules.code_of(rules.read(NAME)))
    assert not [name for name in asked if re.search("token|key|password|secret", name)]


def test_run_all_tells_converts_and_verifies_the_embedded_model_and_lists_what_it_made(tmp_path, monkeypatch):
    """Nobody presses anything, and no network is there; keys that are kept do not come into the notebook."""
    monkeypatch.setenv("HF_TOKEN", "hf_notforthenotebook")
    monkeypatch.setenv("CIVITAI_TOKEN", "civitai-not-for-the-notebook")
    (tmp_path / "models/Lora").mkdir(parents=True)
    (tmp_path / "models/Lora/cut.safetensors").write_bytes(LORA.read_bytes()[:3000])
    values = {"storage_folder": str(tmp_path), "form": "ckpt", "dtype": "bf16"}
    done = []
    out = runner.execute(
        rules.FOLDER / NAME, values, tmp_path / "run.ipynb", on_cell=lambda cell: done.append(cell.title)
    )
    assert len(done) == len(rules.code_of(rules.read(NAME)))
    made = tmp_path / "models/Stable-diffusion/embedded-bf16.ckpt"
    (row,) = models.identify(made)
    assert (row.kind, row.family, row.dtype, row.problem) == ("checkpoint", "sd1", "BF16", "")
    state = json.dumps(nbformat.read(out, as_version=4).metadata.widgets)
    for words in (
        "comes with fastsd",
        "Finished in",
        str(made),
        "whole",
        "not a whole",
        "2 models, 1 with a problem",
    ):
        assert words in state, words
    text = out.read_text(encoding="utf-8")
    assert "Traceback" not in text
    assert "notforthenotebook" not in text and "not-for-the-notebook" not in text and "found" in state


def test_links_and_paths_go_to_the_folder_of_their_kind_and_a_lora_changes_its_names(tmp_path):
    shutil.copy(LORA, tmp_path / "found.safetensors")
    root = tmp_path / "drive"
    fetched = model_steps.download(root, "embedded", str(tmp_path / "found.safetensors"))
    assert fetched[1].path == root / "models/Lora/found.safetensors"
    made = model_steps.convert(root, fetched, source=str(fetched[1].path), naming="peft")
    assert made.path == root / "models/Lora/found-peft.safetensors"
    renamed = model_steps.convert(root, fetched, source=str(fetched[1].path))
    assert renamed.path == root / "models/Lora/found-converted.safetensors"  # never over its source
    assert any("lora_A" in name for name in safetensors.numpy.load_file(made.path))
    told = model_steps.told_of(made)
    assert told["file"] == made.path and told["kind"] == "lora"


def test_the_convert_cell_can_run_again_and_other_choices_make_other_files(tmp_path):
    first = model_steps.convert(tmp_path, [], source=str(EMBEDDED_FOLDER), form="folder", dtype="bf16")
    assert first.path == tmp_path / "models/Stable-diffusion/embedded-bf16" and not first.notes
    before = {file: file.stat().st_mtime_ns for file in first.path.rglob("*")}
    again = model_steps.convert(tmp_path, [], source=str(EMBEDDED_FOLDER), form="folder", dtype="bf16")
    assert again.path == first.path and "there already" in again.notes[0]
    assert before == {file: file.stat().st_mtime_ns for file in first.path.rglob("*")}
    vae = str(EMBEDDED_FOLDER / "vae")
    baked = model_steps.convert(tmp_path, [], source=str(EMBEDDED_FOLDER), vae=vae)
    assert baked.path.name == "embedded-vae-vae.safetensors" and not baked.notes


def test_steps_before_which_nothing_was_fetched_or_converted_say_so_or_take_their_own_field(tmp_path):
    before: dict = {}
    line = next(line for line in rules.code_of(rules.read(NAME))[0].splitlines() if "fetched, made" in line)
    exec(line, before)
    assert before["fetched"] == [] and before["made"] is None
    (row,) = model_steps.identify(str(LORA), before["fetched"])
    assert row.kind == "lora"
    assert not model_steps.verify(str(LORA), before["made"])[0].problems
    for step in (
        lambda: model_steps.convert(tmp_path, [], source=""),
        lambda: model_steps.identify("", []),
    ):
        with pytest.raises(UserError, match="Nothing was fetched yet") as caught:
            step()
        assert caught.value.fix == "name a source, or run step 4 first."
    with pytest.raises(UserError, match="Nothing was converted yet") as caught:
        model_steps.verify("", None)
    assert caught.value.fix == "name a file, or run step 6 first."


def test_a_form_that_is_not_there_is_a_mistake_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="form cannot be 'safetensor'") as caught:
        model_steps.convert(tmp_path, [], source=str(LORA), form="safetensor")
    assert "did you mean safetensors?" in str(caught.value)


def test_the_token_cell_says_where_to_keep_what_is_missing(tmp_path, monkeypatch):
    for name in (tokens.NAME, *tokens.CIVITAI_NAMES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    found = model_steps.tokens_found(tmp_path)
    assert "secret HF_TOKEN" in found["Hugging Face"] and "secret CIVITAI_TOKEN" in found["CivitAI"]
