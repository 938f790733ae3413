"""Where users exist, each sees on the page what is theirs alone."""

from __future__ import annotations

import base64
import io

import httpx
from page_server import browser_at, open_tab, served_page
from PIL import Image

from fastsd_lib.webui.door import Door

DRAWN = {"width": 64, "height": 64, "steps": 2, "sampler_name": "Euler a", "seed": 11, "save_images": True}


def test_one_user_sees_nothing_of_another(tmp_path):
    users = {"anna": "annas: long one", "ben": "bens: long one"}
    with served_page(tmp_path, Door(users=users)) as served:
        body = {**DRAWN, "prompt": "anna's secret star"}
        made = httpx.post(
            f"{served.url}sdapi/v1/txt2img", json=body, auth=("anna", users["anna"]), timeout=60
        )
        assert made.is_success and Image.open(io.BytesIO(base64.b64decode(made.json()["images"][0])))
        for name, sees in (("anna", True), ("ben", False)):
            with browser_at(served, login=(name, users[name])) as page:
                open_tab(page, "History")
                page.locator("#history_where", has_text="job").wait_for()
                assert (page.locator(".tile").count() == 1) is sees
                open_tab(page, "Queue")
                page.wait_for_function(
                    "document.querySelector('.queue-state').textContent.includes('waiting')"
                )
                page.wait_for_timeout(1500 if not sees else 0)  # what is over is asked for after the queue
                page.locator(".queue-past").wait_for(state="visible" if sees else "detached")
                open_tab(page, "Settings")
                page.locator("#settings_user", has_text=name).wait_for()
