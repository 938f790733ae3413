"""The widgets as a person meets them: JupyterLab, a real browser, real clicks."""

from __future__ import annotations

from pathlib import Path

import browser as web
import nbformat
import pytest
from PIL import Image

from fastsd_lib.images.captions import read_caption
from fastsd_lib.sessions.checkpoints import write_checkpoint
from fastsd_lib.workflows import dreambooth

REPOSITORY = Path(__file__).resolve().parents[2]
CELL = """
import sys, time
from pathlib import Path
sys.path.insert(0, {repository!r})
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.widgets.caption_editor import CaptionEditor
from fastsd_lib.widgets.training_panel import TrainingPanel
from fastsd_lib.workflows import dreambooth

session = dreambooth.open_session("cat", {root!r})
CaptionEditor(session, "a photo of sks cat").show()
runs = []

def work(report, should_stop):
    runs.append("run")
    steps = 100_000 if len(runs) == 1 else 60  # the first one ends only by being stopped
    for step in range(1, steps + 1):
        report(ProgressEvent("U-Net", step, steps, {{"loss": 1 / step}}))
        time.sleep(0.02)
        if should_stop():
            break

checkpoint = await TrainingPanel().run(work)
"""

BINARY = web.find_browser()


@pytest.mark.skipif(BINARY is None, reason="no browser here: install chromium, Chrome or Edge")
def test_a_caption_is_edited_and_training_stopped_and_resumed_by_clicks(tmp_path):
    session = dreambooth.open_session("cat", tmp_path / "root")
    for name, colour in (("first", "red"), ("second", "blue")):
        Image.new("RGB", (96, 96), colour).save(tmp_path / f"{name}.png")
        dreambooth.add_photos(session, tmp_path / f"{name}.png")
    folder = tmp_path / "notebooks"
    folder.mkdir()
    source = CELL.format(repository=str(REPOSITORY), root=str(tmp_path / "root"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "widgets.ipynb")

    assert BINARY is not None
    with (
        web.jupyterlab(folder, tmp_path / "home") as lab,
        web.browser(BINARY, tmp_path / "profile") as page,
    ):
        web.run_all(lab, page, "widgets.ipynb")
        page.wait("document.querySelectorAll('.fsd').length === 2")

        # Training is busy in its cell; Stop must be heard, and Resume must go on after the cell has ended.
        page.press_button("Stop and save", until="document.body.innerText.includes('what is done is saved')")
        assert "press Resume" in page.js("document.body.innerText")
        page.press_button("Resume", until="document.body.innerText.includes('Finished in')")
        assert page.js("document.querySelector('.fsd svg').getBoundingClientRect().height") > 80
        assert page.js("document.body.innerText.includes('60 / 60')")

        page.press_button("Next ›")
        page.wait("document.querySelector('.fsd select').selectedOptions[0].innerText === 'second.png'")
        page.press("document.querySelector('.fsd textarea')")
        page.type("on a sofa")
        page.wait("document.body.innerText.includes('a photo of sks cat, on a sofa')")
        page.wait("document.querySelector('.fsd select').selectedOptions[0].innerText.startsWith('●')")
        page.press_button("Save")
        page.wait("document.querySelector('.fsd select').selectedOptions[0].innerText === 'second.png'")
        assert nothing_is_clipped(page)
        page.picture(tmp_path / "page.png")
    assert read_caption(session.captions, Path("second.png")) == "on a sofa"
    assert read_caption(session.captions, Path("first.png")) == ""


def nothing_is_clipped(page: web.Page) -> bool:
    """No button or text of a widget is wider than the room it has."""
    clipped = page.js(
        "[...document.querySelectorAll('.fsd .jupyter-button, .fsd .widget-html-content')]"
        ".filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 2).map(e => e.innerText)"
    )
    assert clipped == []
    return True


SPACE = """
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
from fastsd_lib.widgets.free_space import FreeSpace
from fastsd_lib.widgets.session_picker import SessionPicker

root = Path({root!r})
SessionPicker(root, "cat").show()
FreeSpace(root, "cat").show()
"""


@pytest.mark.skipif(BINARY is None, reason="no browser here: install chromium, Chrome or Edge")
def test_a_session_is_created_and_space_freed_by_clicks_that_ask_first(tmp_path):
    root = tmp_path / "root"
    session = dreambooth.open_session("cat", root)
    for step in (10, 20):
        write_checkpoint(
            session.checkpoints, step=step, total_steps=40, stage="U-Net", run="r",
            files={"weights": lambda: [bytes(100_000)]},
        )  # fmt: skip
    folder = tmp_path / "notebooks"
    folder.mkdir()
    source = SPACE.format(repository=str(REPOSITORY), root=str(root))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "space.ipynb")

    assert BINARY is not None
    with (
        web.jupyterlab(folder, tmp_path / "home") as lab,
        web.browser(BINARY, tmp_path / "profile") as page,
    ):
        web.run_all(lab, page, "space.ipynb")
        page.wait("document.querySelectorAll('.fsd').length === 2")
        page.wait("document.querySelector('.fsd select').selectedOptions[0].innerText.startsWith('cat')")
        assert "stopped at step 20 of 40: run step 8 to go on" in page.js("document.body.innerText")
        page.press_button("Free ", until="document.body.innerText.includes('Really free')")
        assert len(list(session.checkpoints.iterdir())) == 2
        page.press_button("Really free", until="document.body.innerText.includes('Nothing to free')")
        assert [path.name for path in session.checkpoints.iterdir()] == ["step_000020"]
        page.js("document.querySelector('.fsd input[type=text]').focus()")
        page.type("Мой пёс")
        page.press_button(
            "Create",
            until="document.querySelector('.fsd select').selectedOptions[0].innerText.startsWith('Мой')",
        )
        assert nothing_is_clipped(page)
    assert dreambooth.open_session("Мой пёс", root, create_if_missing=False).manifest.is_file()
