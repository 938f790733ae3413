"""The tab ViT: what its models and indexes are called, what it never opens, and how it works in a real browser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from page_server import browser_at, open_tab, served_page, toast

sys.path.insert(0, str(Path(__file__).parents[1] / "vit"))

from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.classify import Classifier
from fastsd_lib.vit.config import Features, RunnerConfig
from fastsd_lib.vit.embed import embed
from fastsd_lib.vit.index import build_index
from fastsd_lib.vit.model import open_model
from fastsd_lib.webui.tabs import vit
from fastsd_lib.webui.vit_looks import VitLooks

EXACT = RunnerConfig(backend="torch", precision="fp32", threads=1)
CLASSES = ("tabby cat", "<b>dog</b>", "clown fish")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """A library with a model and an index of 9 photographs that lie elsewhere."""
    root = tmp_path_factory.mktemp("library")
    folder = root / "models" / "ViT"
    model = open_model(make_vit(folder / "animals", classes=CLASSES))
    photos(root / "collection", 9)
    store = embed(model, root / "collection", Features(), EXACT, out=root / "store")
    build_index(store).save(folder / "holidays" / "summer")
    return root


@pytest.fixture
def looks(library) -> VitLooks:
    return VitLooks([library / "models" / "ViT"], EXACT)


def test_models_and_indexes_are_called_by_their_folders_in_the_library(looks):
    assert [name for name in looks.models() if name != "embedded"] == ["animals"]
    assert looks.indexes() == ["holidays/summer"]


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        "../../collection",
        "animals/../animals",
        "",
        "..",
        "models/ViT",
        "https://a/b",
        "a/b/c",
    ],
)
def test_no_visitor_opens_a_folder_by_its_path(looks, library, monkeypatch, name):
    monkeypatch.chdir(library)
    with pytest.raises(UserError, match="no ViT") as caught:
        looks.opened(name)
    assert "models/ViT" in caught.value.fix


def test_it_tells_what_the_classifier_tells_and_finds_the_picture_itself_first(looks, library):
    file = sorted((library / "collection").iterdir())[4]
    with Classifier(library / "models" / "ViT" / "animals", EXACT) as classifier:
        (wanted,) = classifier.classify(file)
    found = looks.labels("animals", file.read_bytes())
    assert found.labels == wanted.labels and found.scores == pytest.approx(wanted.scores)
    near = looks.neighbours("animals", "holidays/summer", file.read_bytes(), 3)
    assert near[0].key == file.name and near[0].place == file and near[0].score > 0.999
    assert set(looks.inside("animals", file.read_bytes(), ["rollout", "gradcam"])) == {"rollout", "gradcam"}


def test_an_index_is_searched_with_the_model_that_made_it_whichever_is_chosen(looks, library, tmp_path):
    other = make_vit(library / "models" / "ViT" / "others", seed=5)
    try:
        file = sorted((library / "collection").iterdir())[2]
        assert looks.neighbours("others", "holidays/summer", file.read_bytes(), 1)[0].key == file.name
    finally:
        for one in other.iterdir():
            one.unlink()
        other.rmdir()
    with pytest.raises(UserError, match="no index"):
        looks.neighbours("animals", "../holidays", file.read_bytes(), 1)


def test_names_of_classes_are_shown_as_text(looks, library):
    file = sorted((library / "collection").iterdir())[0]
    shown = vit.bars(looks.labels("animals", file.read_bytes()))
    assert "&lt;b&gt;dog&lt;/b&gt;" in shown and "<b>dog" not in shown


def test_only_so_many_models_stay_in_memory(looks, library):
    file = sorted((library / "collection").iterdir())[0].read_bytes()
    made = [make_vit(library / "models" / "ViT" / f"spare{n}", seed=n) for n in range(2)]
    try:
        for name in ("animals", "spare0", "spare1", "animals"):
            assert looks.labels(name, file).labels
        assert len(looks._opened) == 2
    finally:
        for folder in made:
            for one in folder.iterdir():
                one.unlink()
            folder.rmdir()


def test_in_a_browser_a_picture_is_named_explained_and_finds_its_like(library):
    file = sorted((library / "collection").iterdir())[3]
    with served_page(library) as served, browser_at(served) as page:
        open_tab(page, "ViT")
        page.locator("#vit_go").click()
        assert "There is no picture" in toast(page)
        page.set_input_files("#vit_image input[type=file]", file)
        page.wait_for_selector("#vit_image img")
        _choose(page, "vit_model", "animals")
        _choose(page, "vit_index", "holidays/summer")
        page.locator("#vit_go").click()
        page.wait_for_function("document.querySelector('#vit_state').textContent.includes('animals looked')")
        names = page.locator("#vit_labels .name").all_inner_texts()
        assert sorted(names) == sorted(CLASSES)
        assert page.locator("#vit_inside img").count() == len(vit.TICKED)
        near = page.locator("#vit_neighbours .thumbnail-item")
        assert near.count() == 9
        near.nth(0).click()
        page.wait_for_selector("#vit_chosen >> text=" + file.name)
        page.locator("#vit_send_to_extras").click()
        page.wait_for_selector("#extras_image img")
        # a path that somebody types is no model
        open_tab(page, "ViT")
        page.locator("#vit_model input").fill("/etc")
        page.locator("#vit_model input").press("Enter")
        assert "There is no ViT '/etc' here" in toast(page)


def _choose(page, dropdown: str, name: str) -> None:
    page.locator(f"#{dropdown} input").click()
    page.get_by_role("option", name=name, exact=True).click()
