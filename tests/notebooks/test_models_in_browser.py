"""The widgets of notebooks/models.ipynb as a person meets them: JupyterLab, a real browser, real clicks."""

from __future__ import annotations

import shutil
from pathlib import Path

import browser as web
import nbformat
import pytest

from fastsd_lib.models.registry import EMBEDDED_FOLDER, EXTRAS_FOLDER

REPOSITORY = Path(__file__).resolve().parents[2]
CELL = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from fastsd_lib.widgets import model_results
from fastsd_lib.widgets.model_picker import ModelPicker
from fastsd_lib.workflows import models

root = Path({root!r})
picker = ModelPicker("embedded", root=root)
picker.show()
model_results.show_rows(models.lying_there(root), "What lies on my Drive", root)
"""
BINARY = web.find_browser()
TEXT = "document.body.innerText"


@pytest.mark.skipif(BINARY is None, reason="no browser here: install chromium, Chrome or Edge")
def test_a_model_is_chosen_by_clicks_and_the_table_has_room_for_every_column(tmp_path):
    folder, root = tmp_path / "notebooks", tmp_path / "root"
    folder.mkdir()
    (root / "models/Lora").mkdir(parents=True)
    shutil.copy(EXTRAS_FOLDER / "Lora/tiny_night.safetensors", root / "models/Lora")
    long = "a-lora-with-the-long-name-that-people-give-them-final-v2-pruned-fp16.safetensors"
    (root / "models/Lora" / long).write_bytes(b"<!DOCTYPE html><title>Sign in</title>" + b" " * 500)
    source = CELL.format(repository=str(REPOSITORY), root=str(root))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "models.ipynb")

    assert BINARY is not None
    with (
        web.jupyterlab(folder, tmp_path / "home") as lab,
        web.browser(BINARY, tmp_path / "profile", height=1600) as page,
    ):
        web.run_all(lab, page, "models.ipynb")
        page.wait("document.querySelectorAll('.fsd').length === 2")
        page.wait(f"{TEXT}.includes('comes with fastsd')")
        page.js(
            "(() => { const family = document.querySelectorAll('.fsd select')[0];"
            " family.value = [...family.options].find(o => o.innerText === 'SDXL').value;"
            " family.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )
        page.wait(f"{TEXT}.includes('1024 px') && !{TEXT}.includes('comes with fastsd')")
        page.press("document.querySelector('.fsd input[type=text]')")
        page.type(str(EMBEDDED_FOLDER))
        page.js("document.querySelector('.fsd input[type=text]').blur()")
        page.wait(f"{TEXT}.includes('18.4 MB')")
        assert "2 models, 1 with a problem" in page.js(TEXT) and "web page" in page.js(TEXT)
        clipped = page.js(
            "[...document.querySelectorAll('.fsd .jupyter-button, .fsd .widget-html-content, .fsd-models')]"
            ".filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 2).map(e => e.innerText)"
        )
        assert clipped == []
        page.picture(tmp_path / "page.png")
