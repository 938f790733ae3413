"""The widgets of notebooks/models.ipynb: choosing a model and seeing what it costs before; rows that hold no surprise."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER
from fastsd_lib.widgets import model_results
from fastsd_lib.widgets.model_picker import ModelPicker
from fastsd_lib.workflows import models
from fastsd_lib.workflows.model_rows import ModelRow

LORA = EXTRAS_FOLDER / "Lora/tiny_night.safetensors"


@pytest.fixture(autouse=True)
def no_models_of_this_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


@pytest.fixture
def shown(monkeypatch):
    """The markup that is displayed."""
    texts: list[str] = []
    monkeypatch.setattr(
        "IPython.display.display",
        lambda box: texts.append("".join(getattr(child, "value", "") for child in box.children)),
    )
    return texts


def facts(picker: ModelPicker) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]+>", " ", picker._facts.value, flags=re.DOTALL)


# ------------------------------------------------------------------ choosing


def test_without_a_choice_it_is_the_embedded_model_which_needs_no_download():
    picker = ModelPicker()
    assert picker.model == "embedded" and "comes with fastsd" in facts(picker)


def test_an_alias_chooses_its_model_and_what_it_costs_is_told_before_it_is_fetched():
    picker = ModelPicker("1.5")
    (known,) = [one for one in models.known() if "1.5" in one.names]
    assert picker.model == known.name and picker.other.value == ""
    told = facts(picker)
    for words in (
        "SD 1.x",
        "512 px",
        known.licence,
        "training and drawing",
        "GB",
        f"https://huggingface.co/{known.name}",
    ):
        assert words in told, words


def test_of_a_gated_model_it_says_what_has_to_be_done_first():
    gated = next(one for one in models.known() if one.gated)
    told = facts(ModelPicker(gated.name))
    assert "accept the licence at https://huggingface.co/" in told and "HF_TOKEN" in told
    assert "Gated" not in facts(ModelPicker("1.5"))


def test_of_a_model_that_is_for_other_programs_it_says_so():
    other = next(one for one in models.known() if not one.uses)
    assert "other programs" in facts(ModelPicker(other.name))


def test_family_and_use_shorten_the_list_and_a_model_that_left_it_is_not_chosen_any_more():
    picker = ModelPicker("1.5")
    everything = len(picker.list.options)
    picker.family.value = "sdxl"
    assert 0 < len(picker.list.options) < everything and "SDXL" in facts(picker)
    assert all("SDXL" in line for line, _ in picker.list.options)
    picker.family.value, picker.use.value = "", "train"
    names = {name for _, name in picker.list.options}
    assert names == {one.name for one in models.known(use="train")}


def test_a_key_in_an_address_is_not_shown(tmp_path):
    file = tmp_path / "Fast-Dreambooth/models.yaml"
    file.parent.mkdir()
    file.write_text("mine:\n  family: sd1\n  mirrors: ['https://a.org/a.safetensors?token=SECRET']\n")
    picker = ModelPicker("mine", root=tmp_path)
    assert "https://a.org/a.safetensors" in facts(picker) and "SECRET" not in picker._facts.value


def test_a_home_folder_of_nobody_is_said_where_it_is_typed():
    assert "home folder ~nosuchuser" in facts(ModelPicker("~nosuchuser/x"))


def test_a_filter_of_nothing_leaves_nothing_chosen_and_says_what_to_do():
    picker = ModelPicker("embedded", family="flux", use="train")
    assert picker.list.options == ()
    with pytest.raises(UserError, match="No model is chosen") as caught:
        _ = picker.model
    assert "path or link" in str(caught.value)


def test_what_is_typed_below_the_list_counts_and_a_path_is_told_at_once():
    picker = ModelPicker("1.5")
    picker.other.value = str(LORA)
    assert picker.model == str(LORA) and picker.known is None
    assert "LoRA" in facts(picker) and "F16" in facts(picker)
    picker.other.value = "https://example.org/a.safetensors"
    assert "told once it is here" in facts(picker)
    picker.other.value = ""
    assert picker.known is not None and picker.model == picker.known.name


@pytest.mark.parametrize("own", [str(EMBEDDED_FOLDER), "someone/their-model", "https://civitai.com/models/1"])
def test_a_path_id_or_link_in_the_cell_is_taken_as_it_is(own):
    assert ModelPicker(own).model == own


def test_a_family_that_is_not_known_is_a_mistake_with_the_nearest():
    with pytest.raises(UserError, match="family cannot be 'sdlx'") as caught:
        ModelPicker("embedded", family="sdlx")
    assert "did you mean sdxl?" in str(caught.value)
    for wrong in (lambda: ModelPicker(use="trian"), lambda: models.known(use="trian")):
        with pytest.raises(UserError, match="use cannot be 'trian'"):
            wrong()


def test_models_that_users_wrote_down_are_in_the_list(tmp_path):
    file = tmp_path / "Fast-Dreambooth/models.yaml"
    file.parent.mkdir()
    file.write_text("mine:\n  family: sdxl\n  mirrors: ['hf:org/mine']\n  about: '<b>my</b> own'\n")
    picker = ModelPicker("mine", root=tmp_path)
    assert picker.model == "mine" and picker.known.family == "sdxl"
    assert "&lt;b&gt;my&lt;/b&gt; own" in picker._facts.value


# ------------------------------------------------------------------ looking


def test_rows_are_a_table_with_kind_base_size_and_problem_and_good_ones_first(shown, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/cut.safetensors").write_bytes(LORA.read_bytes()[:3000])
    (tmp_path / "models/night.safetensors").write_bytes(LORA.read_bytes())
    model_results.show_rows(models.lying_there(tmp_path), "Here", tmp_path)
    assert "2 models, 1 with a problem" in shown[0]
    assert shown[0].index("models/night.safetensors") < shown[0].index("models/cut.safetensors")
    assert "not a whole" in shown[0] and "540 kB" in shown[0] and str(tmp_path / "models") not in shown[0]


def test_one_row_is_its_facts_and_none_says_so(shown, tmp_path):
    model_results.show_rows(models.identify(LORA), "What it is")
    model_results.show_rows([], "Here", tmp_path)
    assert "Tensor names" in shown[0] and "kohya" in shown[0]
    assert f"No model lies in {tmp_path}" in shown[1]


def test_names_and_titles_of_strangers_are_no_markup(shown):
    evil = ModelRow(
        Path("/x/<img src=x onerror=alert(1)>.pt"), "lora", "<b>", title="<script>", problem="<i>\x1b[31m"
    )
    model_results.show_rows([evil], "One")
    model_results.show_rows([evil, evil], "Two")
    for text in shown:
        assert not re.search(r"<(img|script|i|b)\b", text) and "\x1b" not in text


def test_a_table_of_thousands_is_cut_and_says_so(shown):
    model_results.show_rows([ModelRow(Path(f"/x/{n}.pt"), "lora") for n in range(3000)], "Many")
    assert shown[0].count("<tr>") == model_results.MOST_ROWS + 1 and "2,500 more" in shown[0]
