"""The whole way of somebody elsewhere: a public address of a real tunnel, the log-in page, a prompt, a picture."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tunnel_hosts import Unavailable, localtunnel_server, sshd

from fastsd_lib.webui.door import open_door
from fastsd_lib.workflows.webui import WebuiConfig
from fastsd_lib.workflows.webui_launch import LaunchConfig, Launched, launch

sys.path.insert(0, str(Path(__file__).parents[1]))
from page_server import fill, open_page, running_browser, wait_until_done

FETCHED = "async address => [...new Uint8Array(await (await fetch(address)).arrayBuffer())]"
USER, PASSWORD = "visitor", "a:b, c"


@pytest.fixture(scope="module", params=["ssh", "localtunnel"])
def launched(request, tmp_path_factory) -> Iterator[Launched]:
    """The web UI as `fastsd webui --tunnel` opens it."""
    folder = tmp_path_factory.mktemp("root")
    try:
        with sshd() if request.param == "ssh" else localtunnel_server() as (_, config):
            running = launch(
                LaunchConfig(tunnels=request.param, port=None),
                serve=WebuiConfig(folder=folder / "webui", root=folder, threads=1),
                door=open_door(user=USER, password=PASSWORD, tunnel=True),
                tunnel_config=config,
                root=folder,
            )
            try:
                yield running
            finally:
                running.stop()
    except Unavailable as reason:
        pytest.skip(str(reason))


def test_a_visitor_signs_in_at_the_public_address_and_draws(launched, tmp_path):
    assert launched.public_url and launched.public_url != launched.url.rstrip("/")
    with running_browser() as browser:
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(launched.public_url)
        page.wait_for_selector("#username", timeout=60_000)
        page.fill("#username", USER)
        page.fill("#password", "wrong")
        page.click("button")
        page.wait_for_selector("[role=alert]")
        page.fill("#password", PASSWORD)
        page.click("button")
        open_page(page, launched.public_url)
        fill(page, prompt="a red star", steps=4, seed=7)
        page.click("#txt2img_generate")
        shown = page.locator("#txt2img_gallery img").first
        shown.wait_for(timeout=60_000)
        wait_until_done(page)
        address = shown.get_attribute("src")
        assert address.startswith(launched.public_url)
        data = page.evaluate(FETCHED, address)  # the browser knows *.localhost, Python does not
        assert Image.open(io.BytesIO(bytes(data))).size == (64, 64)
        page.screenshot(path=tmp_path / "phone.png")
    stranger = httpx.get(
        launched.url + address.removeprefix(launched.public_url).lstrip("/"), trust_env=False
    )
    assert stranger.status_code == 401
