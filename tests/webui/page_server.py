"""The page with all its tabs on a real port, drawing with the embedded model, and a real browser before it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastsd_lib.generation.history import History
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui.api import api_app
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.options import Options
from fastsd_lib.webui.server import Server, serve_app
from fastsd_lib.workflows.drawing import library_folders

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LONGEST_MS = 60_000  # a loaded machine takes its time
DESK = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}


@dataclass
class ServedPage:
    server: Server
    service: Service
    context: ApiContext
    folder: Path

    @property
    def url(self) -> str:
        return self.server.url


@contextmanager
def served_page(folder: Path, door: Door = LOOPBACK, **more: Any) -> Iterator[ServedPage]:
    """The whole page on the library in `folder`, where pictures, settings and history lie too; `more`: for `api_app`."""
    from fastsd_lib.webui.app import build_page

    history = History(folder / "history.sqlite")
    service = Service(Shelf(Library.of(library_folders(folder)), device="cpu", threads=1), history)
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    settings = Options(folder / "config.json")
    app = api_app(service, settings=settings, pictures_dir=folder / "outputs", page=build_page, **more)
    server = serve_app(app, door, None)
    try:
        yield ServedPage(server, service, app.state.context, folder)
    finally:
        server.close()
        service.close()
        history.close()


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Debian's chromium; the test is skipped where there is no browser."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no browser here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def browser_at(served: ServedPage, login: tuple[str, str] | None = None, **context: Any) -> Iterator[Page]:
    """A desk's browser that shows the web UI; whatever the page's scripts throw fails the test."""
    faults: list[str] = []
    with running_browser() as browser:
        page = browser.new_context(viewport=DESK, **context).new_page()
        page.set_default_timeout(LONGEST_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(served.url)
        if login:
            for name, text in zip(("username", "password"), login, strict=True):
                page.locator(f"#{name}").fill(text)
            page.locator("button").click()
        page.wait_for_selector("#tabs button[role=tab]")
        yield page
    assert not faults


def open_page(page: Page, url: str) -> Page:
    """Go there and wait until the page listens: kept fields are back, so Generate may be pressed."""
    page.set_default_timeout(LONGEST_MS)
    page.goto(url)
    page.wait_for_selector("#txt2img_generate")
    page.wait_for_function("document.querySelector('#txt2img_prompt .tokens')?.textContent")
    return page


def fill(page: Page, **fields: Any) -> None:
    """Write into fields of txt2img by the ends of their ids: steps=4, prompt="a star"."""
    for name, value in fields.items():
        inner = "textarea" if "prompt" in name else "input[type=number]"
        page.fill(f"#txt2img_{name} {inner}", str(value))
        page.press(f"#txt2img_{name} {inner}", "Tab")


def value(page: Page, elem_id: str) -> str:
    """What a field shows."""
    return page.locator(
        f"#{elem_id} textarea, #{elem_id} input:not([type=range]):not([type=checkbox])"
    ).first.input_value()


def wait_until_done(page: Page, kind: str = "txt2img") -> None:
    page.wait_for_function(f"!document.body.classList.contains('{kind}-busy')")


def open_tab(page: Page, label: str) -> None:
    page.locator("#tabs > div button[role=tab]", has_text=label).first.click()


def reload(page: Page) -> None:
    page.reload()
    page.wait_for_selector("#tabs button[role=tab]")


def toast(page: Page) -> str:
    """The text of the message that comes up."""
    text = page.locator(".toast-body").last.inner_text()
    page.locator(".toast-close").last.click()
    return text
