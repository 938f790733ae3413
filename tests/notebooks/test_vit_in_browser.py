"""The widgets of notebooks/vit.ipynb as a person meets them: JupyterLab, a real browser, real clicks."""

from __future__ import annotations

from pathlib import Path

import browser as web
import nbformat
import pytest
from vit.tiny_vit import make_vit

from fastsd_lib.workflows.vit_experiment import open_experiment

REPOSITORY = Path(__file__).resolve().parents[2]
SETUP = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from fastsd_lib.widgets.vit_forms import training_form
from fastsd_lib.widgets.vit_pictures import VitPictures
from fastsd_lib.widgets.vit_server import VitServer
from fastsd_lib.workflows.vit_experiment import open_experiment
from fastsd_lib.workflows.vit_serve import VitServeConfig

VitPictures(open_experiment("faces", Path({root!r}))).show()
training_form("scratch").show()
"""
SERVE = """
server = VitServer(VitServeConfig({model!r}, port=0))
launched = await server.run(False)
"""
BINARY = web.find_browser()
TEXT = "document.body.innerText"


def write(page: web.Page, element: str, text: str) -> None:
    page.press(element)
    page.js(f"({element}).select()")
    page.type(text)
    page.js(f"({element}).blur()")


@pytest.mark.skipif(BINARY is None, reason="no browser here: install chromium, Chrome or Edge")
def test_pictures_are_chosen_a_recipe_is_mended_and_a_server_stopped_by_clicks(tmp_path):
    folder, root = tmp_path / "notebooks", tmp_path / "root"
    folder.mkdir()
    cells = [SETUP.format(repository=str(REPOSITORY), root=str(root)),
             SERVE.format(model=str(make_vit(tmp_path / "model")))]  # fmt: skip
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "vit.ipynb")

    assert BINARY is not None
    with (
        web.jupyterlab(folder, tmp_path / "home") as lab,
        web.browser(BINARY, tmp_path / "profile", height=2600) as page,
    ):
        web.run_all(lab, page, "vit.ipynb")
        page.wait("document.querySelectorAll('.fsd').length === 3")
        page.wait(f"{TEXT}.includes('The model answers at')")

        field = "document.querySelectorAll('.fsd input[type=text]')[0]"
        write(page, field, "facse")
        page.press_button("Use these", until=f"{TEXT}.includes('did you mean faces?')")
        write(page, field, "faces")
        page.press_button("Use these")
        page.wait(f"{TEXT}.includes('170 train, 30 validation')")
        assert page.js("document.querySelectorAll('.fsd-vit-group img').length") == 16

        rate = (
            "[...document.querySelectorAll('.fsd .fsd-label')].find(e => e.innerText === 'Learning rate')"
            ".closest('.widget-gridbox').querySelector('input')"
        )
        write(page, rate, "quick")
        page.wait(f"{TEXT}.includes('type a number such as')")
        write(page, rate, "0.01")
        page.wait(f"!{TEXT}.includes('type a number such as')")
        page.press_button("Show 4", until=f"{TEXT}.includes('Show fewer choices')")
        clipped = page.js(
            "[...document.querySelectorAll('.fsd .jupyter-button, .fsd .widget-html-content')]"
            ".filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 2).map(e => e.innerText)"
        )
        assert clipped == []
        page.picture(tmp_path / "page.png")
        page.press_button("Stop", until=f"{TEXT}.includes('nothing is left running')")
    assert open_experiment("faces", root).pictures.is_dir()
