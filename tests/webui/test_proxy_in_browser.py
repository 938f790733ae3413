"""A real browser signs in at the door and uses pages that are not ours: a Gradio page, events, websockets, forms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from upstreams import upstream, various

from fastsd_lib.webui.door import Door
from fastsd_lib.webui.reverse_proxy import serve_proxy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser on this machine")
DOOR = Door(users={"me": "a:b, c"})


@pytest.fixture
def page() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844})
        opened.set_default_timeout(30_000)
        opened.add_init_script(
            "window.refused = []; document.addEventListener('securitypolicyviolation',"
            " e => window.refused.push(e.violatedDirective + ' ' + e.blockedURI))"
        )
        yield opened
        browser.close()


def sign_in(page, address: str) -> None:
    page.goto(address)
    page.fill("#username", "me")
    page.fill("#password", "a:b, c")
    page.click("button")
    page.wait_for_url(lambda url: "/login" not in url)


def test_events_websockets_and_forms_of_a_page_pass(page):
    with upstream(various) as origin:
        server = serve_proxy(origin, DOOR, None)
        try:
            sign_in(page, server.url)
            events = page.evaluate(
                "new Promise(done => { const got = []; const source = new EventSource('/events?n=4');"
                " source.onmessage = e => { got.push([e.data, performance.now()]);"
                " if (got.length == 4) { source.close(); done(got); } } })"
            )
            assert [one[0] for one in events] == ["0", "1", "2", "3"] and events[3][1] - events[0][1] > 200
            echoed = page.evaluate(
                "new Promise(done => { const line = new WebSocket('ws://' + location.host + '/echo');"
                " line.binaryType = 'arraybuffer'; const got = [];"
                " line.onopen = () => { line.send('hello'); line.send(new Uint8Array(1 << 20)); line.send('bye'); };"
                " line.onmessage = e => got.push(e.data.byteLength ?? e.data);"
                " line.onclose = e => done([...got, e.code, e.reason]); })"
            )
            assert echoed == ["hello", 1 << 20, 4321, "was nice"]
            sent = page.evaluate(
                "fetch('/x', {method: 'POST', body: new URLSearchParams({a: 'b'})}).then(r => r.json())"
            )
            told = dict(sent["headers"])
            assert sent["body"] == "a=b" and told["origin"] == origin and told["referer"] == f"{origin}/"
            assert page.evaluate("document.cookie") == ""
        finally:
            server.close()


def test_a_gradio_page_works_as_it_does_alone(page):
    from fastsd_lib.webui.app import gr  # as our page imports it

    def steps(text: str):
        for number in range(3):
            yield f"{text} {number}"

    with gr.Blocks(analytics_enabled=False) as blocks:
        text = gr.Textbox(label="In", elem_id="in")
        out = gr.Textbox(label="Out", elem_id="out")
        gr.Button("Go", elem_id="go").click(steps, text, out)
    from fastapi import FastAPI

    app = gr.mount_gradio_app(FastAPI(), blocks.queue(), path="/", ssr_mode=False)
    with upstream(app) as origin:
        server = serve_proxy(origin, DOOR, None)
        try:
            sign_in(page, server.url)
            page.fill("#in textarea, #in input", "picture")
            page.click("#go")
            page.wait_for_function(
                "document.querySelector('#out textarea, #out input').value === 'picture 2'"
            )
            assert page.evaluate("window.refused") == []  # nothing that it needs is shut out
        finally:
            server.close()
