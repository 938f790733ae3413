"""The page with all its tabs on a real port, and a real browser before it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fastsd_lib.generation.history import History
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui.api import api_app
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.options import Options
from fastsd_lib.webui.server import Server, serve_app

WAIT_MS = 10_000
LOAD_MS = 60_000  # of the page, on a busy machine


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
def served_page(
    folder: Path, door: Door = LOOPBACK, folders: LibraryFolders | None = None
) -> Iterator[ServedPage]:
    """The page on the embedded model; pictures, settings and history lie in `folder`."""
    from fastsd_lib.webui.app import build_page

    history = History(folder / "history.sqlite")
    service = Service(Shelf(Library.of(folders or LibraryFolders.under(folder)), device="cpu"), history)
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    app = api_app(
        service, settings=Options(folder / "config.json"), pictures_dir=folder / "outputs", page=build_page
    )
    server = serve_app(app, door, None)
    try:
        yield ServedPage(server, service, app.state.context, folder)
    finally:
        server.close()
        service.close()
        history.close()


@contextmanager
def browser_at(served: ServedPage, login: tuple[str, str] | None = None, **context: Any) -> Iterator[Any]:
    """A page of playwright's that shows the web UI; whatever its scripts throw fails the test."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    faults: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            page = browser.new_context(viewport={"width": 1280, "height": 900}, **context).new_page()
            page.set_default_timeout(WAIT_MS)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto(served.url)
            if login:
                for name, text in zip(("username", "password"), login, strict=True):
                    page.locator(f"#{name}").fill(text)
                page.locator("button").click()
            page.wait_for_selector("#tabs button[role=tab]", timeout=LOAD_MS)
            yield page
        finally:
            browser.close()
    assert not faults


def open_tab(page: Any, label: str) -> None:
    page.locator("#tabs > div button[role=tab]", has_text=label).first.click()


def reload(page: Any) -> None:
    page.reload()
    page.wait_for_selector("#tabs button[role=tab]", timeout=LOAD_MS)


def toast(page: Any) -> str:
    """The text of the message that comes up."""
    text = page.locator(".toast-body").last.inner_text()
    page.locator(".toast-close").last.click()
    return text
