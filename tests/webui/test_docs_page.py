"""The page of the API in a real browser: readable, usable, and nobody else is asked for anything."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from api_server import served_api

from fastsd_lib.webui import docs_page

BROWSER = next(
    (found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no browser here")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("root")) as running:
        yield running


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def page(request, browser, served):
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.troubles, page.asked = [], []
    page.on("console", lambda said: page.troubles.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(f"{served.server.url}docs")
    page.wait_for_selector("details.route")
    yield page
    context.close()


def test_the_files_name_no_other_server():
    for file in docs_page.FOLDER.iterdir():
        assert not re.search(r"(https?:)?//[a-z0-9-]+\.", file.read_text()), file.name
        assert "innerHTML" not in file.read_text()


def test_the_page_and_its_parts_are_served_with_their_types(served):
    for path, kind in (
        ("/docs", "text/html"),
        ("/docs/docs.css", "text/css"),
        ("/docs/docs.js", "text/javascript"),
    ):
        reply = served.get(path)
        assert reply.status_code == 200 and reply.headers["content-type"].startswith(kind)
        assert "script-src 'self'" in reply.headers["content-security-policy"]


@needs_browser
def test_every_route_is_there_and_found_by_a_field(page, served):
    paths = served.get("/openapi.json").json()["paths"]
    shown = page.locator("details.route").count()
    assert shown == sum(len(verbs) for verbs in paths.values()) > 60
    page.fill("#search", "controlnet_threshold_a")
    visible = page.locator("details.route:visible .path").all_inner_texts()
    assert visible == ["/controlnet/detect"]
    page.fill("#search", "no such thing at all")
    assert page.locator("#none").is_visible()
    assert page.troubles == [] and all(url.startswith((served.server.url, "data:")) for url in page.asked)


@needs_browser
def test_a_route_is_tried_and_its_pictures_are_seen(page, served):
    page.fill("#search", "/sdapi/v1/txt2img")
    route = page.locator("details.route:visible").first
    route.locator("> summary").click()
    body = route.locator("textarea")
    assert "prompt" in json.loads(body.input_value())
    route.locator("summary", has_text="Fields").click()
    route.get_by_role("button", name="scheduler", exact=True).click()
    assert "scheduler" in json.loads(body.input_value())
    body.fill(json.dumps({"prompt": "a red star", "steps": 2, "width": 64, "height": 64}))
    route.get_by_role("button", name="Send", exact=True).click()
    route.locator(".answer img").wait_for()
    assert route.locator(".status").inner_text().startswith("200")
    width = route.locator(".answer img").evaluate("image => image.decode().then(() => image.naturalWidth)")
    assert width == 64
    body.fill('{"steps": "many"}')
    route.get_by_role("button", name="Send", exact=True).click()
    route.locator(".status.wrong").wait_for()
    assert "steps" in route.locator(".answer pre").inner_text()
    body.fill("{")
    route.get_by_role("button", name="Send", exact=True).click()
    route.locator("p.wrong").wait_for()
    assert [one for one in page.troubles if "422" not in one] == []


@needs_browser
def test_a_stream_is_shown_as_it_comes_and_parameters_are_sent(page, served):
    job = served.post("/fastsd/v1/jobs", {"prompt": "a", "inference_steps": 2}).json()
    page.fill("#search", "events preview_every_s")
    route = page.locator("details.route:visible").first
    route.locator("> summary").click()
    route.get_by_label("job_id").fill(job["id"])
    route.get_by_role("button", name="Send", exact=True).click()
    route.locator("pre", has_text="event: done").wait_for()
    assert "event: progress" in route.locator(".answer pre").inner_text()


@needs_browser
def test_it_fits_a_phone(browser, served, tmp_path: Path):
    context = browser.new_context(viewport={"width": 380, "height": 800})
    page = context.new_page()
    page.goto(f"{served.server.url}docs")
    page.wait_for_selector("details.route")
    page.fill("#search", "/controlnet/detect")
    page.locator("details.route:visible > summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    context.close()
