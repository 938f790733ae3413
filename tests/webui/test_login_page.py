"""A real browser signs in, draws on Gradio's page under our policy, and signs out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from fastsd_lib.webui.door import Door

sys.path.insert(0, str(Path(__file__).parents[1] / "notebooks"))
from browser import browser, find_browser

PASSWORD = "a:b, c"


@pytest.fixture(scope="module")
def server(tiny_pipeline):
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf
    from fastsd_lib.webui.app import start

    service = Service(Shelf.of(load_engine(tiny_pipeline, device="cpu")))
    running = start(service, Door(users={"me": PASSWORD}), port=None)
    yield running
    running.close()
    service.close()


def test_a_browser_signs_in_draws_and_signs_out(server, tmp_path):
    binary = find_browser()
    assert binary, "this test drives chromium"
    with browser(binary, tmp_path / "profile", 1000, 760) as page:
        page.call("Page.enable")
        page.call(
            "Page.addScriptToEvaluateOnNewDocument",
            source="window.refused = []; document.addEventListener('securitypolicyviolation',"
            " e => window.refused.push(e.violatedDirective + ' ' + e.blockedURI))",
        )
        page.open(f"{server.url}?__theme=light")
        page.wait("document.activeElement?.id === 'username'", 20)
        page.picture(tmp_path / "login.png")
        page.type("me")
        page.press("document.querySelector('#password')")
        page.type("wrong")
        page.press("document.querySelector('button')")
        page.wait("document.querySelector('[role=alert]')?.innerText.includes('do not fit')", 20)
        page.wait("document.activeElement?.id === 'password'", 20)
        assert page.js("document.querySelector('#username').value") == "me"
        page.picture(tmp_path / "wrong.png")
        page.type(PASSWORD)
        page.press("document.querySelector('button')")
        page.wait("!!document.querySelector('#txt2img_generate')", 60)
        assert page.js("location.search") == "?__theme=light"
        page.press("document.querySelector('#txt2img_prompt textarea')")
        page.type("a red star")
        for _ in range(6):  # a press before the page listens is lost: a person presses again
            page.press("document.querySelector('#txt2img_generate')")
            with contextlib.suppress(TimeoutError):
                page.wait(
                    "document.querySelector('#html_log_txt2img').innerText.includes('1 picture in')", 20
                )
                break
        page.wait(
            "[...document.querySelectorAll('#txt2img_gallery img')].some(i => i.naturalWidth === 64)", 20
        )
        page.picture(tmp_path / "page.png")
        assert page.js("window.refused") == []  # nothing that the page needs is shut out
        assert page.js("document.cookie") == ""
        page.open(f"{server.url}logout")
        page.press("document.querySelector('main button')")
        page.wait("location.pathname === '/login'", 20)
        page.open(server.url)
        page.wait("location.pathname === '/login'", 20)
