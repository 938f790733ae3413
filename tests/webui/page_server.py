"""The page on a real port, drawing with the embedded model, and a real browser before it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

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


@dataclass
class ServedPage:
    server: Server
    service: Service
    context: ApiContext

    @property
    def url(self) -> str:
        return self.server.url


@contextmanager
def served_page(folder: Path, door: Door = LOOPBACK, **more: Any) -> Iterator[ServedPage]:
    """The whole page on the library in `folder`; `more`: for `api_app`."""
    from fastsd_lib.webui.app import build_page

    service = Service(Shelf(Library.of(library_folders(folder)), threads=1))
    settings = Options(folder / "config.json")
    app = api_app(service, settings=settings, pictures_dir=folder / "outputs", page=build_page, **more)
    server = serve_app(app, door, None)
    try:
        yield ServedPage(server, service, app.state.context)
    finally:
        server.close()
        service.close()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser; the test is skipped where there is none."""
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
