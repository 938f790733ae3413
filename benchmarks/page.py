"""The weight of the page and how soon it can be used, in a real browser: `fastsd benchmark page`.

A server of its own on the embedded model (64 px); each round is a browser with nothing kept, then the same browser once
more. "Bytes" are those that came over the wire, packed as they were sent.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._serving import machine_state

STEPS = 20
LISTENS = (
    "document.querySelector('#txt2img_prompt .tokens')?.textContent"  # counted by the page's own scripts
)


class Visit(NamedTuple):
    kib: float
    requests: int
    button_s: float  # until Generate is there
    listens_s: float  # until what was kept is back in the fields and a press does something
    preview_s: float  # from the press to the first live preview
    picture_s: float  # and to the picture


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="fastsd benchmark page", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        print("There is no chromium here.\n  -> install it: apt-get install chromium")
        return 2
    from playwright.sync_api import sync_playwright

    from fastsd_lib.workflows.webui import WebuiConfig, start

    print(machine_state())
    with tempfile.TemporaryDirectory() as folder:
        server = start(WebuiConfig(folder=Path(folder), library=Path(folder)), port=None)
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox"])
                pairs = [_twice(browser, server.url) for _ in range(options.rounds)]
                browser.close()
        finally:
            server.close()
    for name, visits in zip(("first visit", "again"), zip(*pairs, strict=True), strict=True):
        middle = Visit(*(statistics.median(values) for values in zip(*visits, strict=True)))
        print(
            f"{name:<12} {middle.kib:7.0f} KiB in {middle.requests:.0f} requests; Generate is there after"
            f" {middle.button_s:.2f} s and listens after {middle.listens_s:.2f} s; click to first preview"
            f" {middle.preview_s:.2f} s, to the picture {middle.picture_s:.2f} s (64 px, {STEPS} steps)"
        )
    return 0


def _twice(browser: Any, url: str) -> tuple[Visit, Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    try:
        return _visit(context, url), _visit(context, url)
    finally:
        context.close()


def _visit(context: Any, url: str) -> Visit:
    page = context.new_page()
    page.set_default_timeout(120_000)
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    sizes: list[float] = []
    wire.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    began = time.perf_counter()
    page.goto(url, wait_until="commit")
    page.wait_for_selector("#txt2img_generate")
    button_s = time.perf_counter() - began
    page.wait_for_function(LISTENS)
    listens_s = time.perf_counter() - began
    seen = -1
    while seen != len(sizes):  # the page's own connection for news never ends, so the network is never idle
        seen = len(sizes)
        page.wait_for_timeout(1000)
    loaded = [size for size in sizes if size > 0]  # what the browser had kept is 0
    page.fill("#txt2img_prompt textarea", "a photo of a red star")
    shown = "document.querySelector('.live-preview, #txt2img_gallery img')?.naturalWidth > 0"
    page.evaluate("document.querySelectorAll('#txt2img_gallery img').forEach((one) => one.remove())")
    pressed = time.perf_counter()
    page.click("#txt2img_generate")
    page.wait_for_function(shown)
    preview_s = time.perf_counter() - pressed
    page.wait_for_function("!document.body.classList.contains('txt2img-busy')")
    picture_s = time.perf_counter() - pressed
    page.evaluate("localStorage.clear()")
    page.close()
    return Visit(sum(loaded) / 1024, len(loaded), button_s, listens_s, preview_s, picture_s)


if __name__ == "__main__":
    raise SystemExit(main())
