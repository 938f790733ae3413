"""The studio as a person meets it: JupyterLab, a real browser, real clicks, a real upload."""

from __future__ import annotations

import base64
from pathlib import Path

import browser as web
import nbformat
import pytest

from fastsd_lib.generation.picture_text import read_texts

REPOSITORY = Path(__file__).resolve().parents[2]
CELL = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from fastsd_lib.widgets.studio import StudioConfig, studio_panel

studio = studio_panel(StudioConfig(), Path({root!r}))
studio.show()
"""
PROMPT = "document.querySelector('.fsd-prompt textarea')"
STEPS = "document.querySelectorAll('.fsd-studio .fsd-fields input[type=number]')[0]"
LARGE = "document.querySelector('.fsd-stage img')"
BINARY = web.find_browser()


def write(page: web.Page, element: str, text: str) -> None:
    page.press(element)
    page.js(f"({element}).select()")
    page.type(text)
    page.js(f"({element}).blur()")


def choose_file(page: web.Page, name: str, content: bytes) -> None:
    """What the browser's file dialog does, which no page may open by itself."""
    coded = base64.b64encode(content).decode()
    page.js(
        "HTMLInputElement.prototype.click = function() { const files = new DataTransfer();"
        f" files.items.add(new File([Uint8Array.from(atob('{coded}'), c => c.charCodeAt(0))], '{name}',"
        " {type: 'image/png'})); this.files = files.files; this.dispatchEvent(new Event('change')) }; true"
    )
    page.press_button("Upload a picture")


def text(page: web.Page) -> str:
    return page.js("document.querySelector('.fsd-studio').innerText")


@pytest.mark.skipif(BINARY is None, reason="no browser here: install chromium, Chrome or Edge")
def test_a_picture_is_drawn_stopped_and_read_back_by_clicks(tmp_path):
    folder, root = tmp_path / "notebooks", tmp_path / "root"
    folder.mkdir()
    root.mkdir()
    source = CELL.format(repository=str(REPOSITORY), root=str(root))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "studio.ipynb")

    assert BINARY is not None
    with (
        web.jupyterlab(folder, tmp_path / "home") as lab,
        web.browser(BINARY, tmp_path / "profile") as page,
    ):
        web.run_all(lab, page, "studio.ipynb")
        page.wait(f"!!({PROMPT})")
        write(page, PROMPT, "a photo of a blue heart")
        write(page, STEPS, "60")
        page.press_button("Generate")
        page.wait("document.querySelector('.fsd-studio .fsd-bar b')?.offsetWidth > 0")
        page.wait(f"!!({LARGE})")  # the preview: nothing is finished yet
        page.wait("document.querySelector('.fsd-studio').innerText.includes('1 picture in')")
        (made,) = (root / "studio").rglob("*.png")
        said = read_texts(made)["parameters"]
        assert said.startswith("a photo of a blue heart\nSteps: 60,") and "Steps: 60" in text(page)
        assert page.js(f"({LARGE}).naturalWidth") == 64

        write(page, STEPS, "1000")
        page.press_button("Generate")
        page.wait("document.querySelector('.fsd-studio').innerText.includes('of 1000')")
        page.press_button("Stop")
        page.wait("document.querySelector('.fsd-studio').innerText.includes('Stopped')")

        write(page, PROMPT, "something else")
        page.press_button("PNG info")
        choose_file(page, "made.png", made.read_bytes())
        page.wait(f"({PROMPT}).value === 'a photo of a blue heart'")
        page.press_button("Settings")
        page.wait(f"({STEPS}).value === '60'")

        page.press_button("LoRA")
        page.press_button("tiny_night")
        page.wait(f"({PROMPT}).value === 'a photo of a blue heart <lora:tiny_night:1>'")
        clipped = page.js(
            "[...document.querySelectorAll('.fsd .jupyter-button, .fsd .widget-html-content')]"
            ".filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 2).map(e => e.innerText)"
        )
        assert clipped == []
        page.picture(tmp_path / "page.png")
