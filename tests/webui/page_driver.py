"""Hands on the page: tabs, fields, canvases, strokes, and what comes of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from page_server import DESK, LONGEST_MS
from PIL import Image


@dataclass
class OnPage:
    """One browser tab on the page; `kind`: the form that is worked on."""

    page: Any
    url: str
    kind: str = "img2img"

    @classmethod
    @contextmanager
    def open(cls, chromium: Any, url: str, viewport: dict[str, int] = DESK) -> Iterator[OnPage]:
        touch = viewport["width"] < 600
        context = chromium.new_context(viewport=viewport, has_touch=touch, is_mobile=touch)
        context.set_default_timeout(LONGEST_MS)
        page, troubles = context.new_page(), []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#tabs")
        yield cls(page, url)
        context.close()
        assert troubles == []

    def show(self, tab: str, inner: str = "") -> None:
        self.page.evaluate(f"document.getElementById('tab_{tab}-button').click()")
        self.kind = tab
        self.page.wait_for_selector(f"#{tab}_generate", state="visible")
        if inner:
            self.page.evaluate(f"document.getElementById('img2img_{inner}_tab-button').click()")
            if inner != "batch":
                self.page.wait_for_selector(f"#img2img_{inner}_picture .view", state="visible")

    def set(self, **fields: Any) -> None:
        """Numbers and texts by the ids that A1111 gives them, without the form's name."""
        for name, value in fields.items():
            place = self.page.locator(f"#{self.kind}_{name}").locator(
                "textarea, input[type=number]" if name != "seed" else "input"
            )
            place.first.fill(str(value))
            place.first.press("Tab")

    def choose(self, group: str, label: str) -> None:
        self.page.locator(f"#{group}").get_by_text(label, exact=True).click()

    def pick(self, dropdown: str, label: str) -> None:
        self.page.locator(f"#{dropdown} input").click()
        self.page.get_by_role("option", name=label, exact=True).click()

    def give(self, canvas: str, file: Path, size: tuple[int, int] | None = None) -> None:
        """A file for the canvas of this id, as the file chooser hands it over; waits until the server has it."""
        self.page.set_input_files(f"#{canvas} input[type=file]", file)
        if size:
            self.holds(canvas, size)

    def holds(self, canvas: str, size: tuple[int, int]) -> None:
        self.page.wait_for_function(
            "([id, text]) => document.querySelector(`#${id} .what`)?.textContent === text",
            arg=[canvas, f"{size[0]} × {size[1]} px"],
        )

    def point(self, canvas: str, at: tuple[float, float]) -> tuple[float, float]:
        """Shares of the picture -> pixels of the window."""
        self.page.locator(f"#{canvas} .view").scroll_into_view_if_needed()
        box = self.page.locator(f"#{canvas} .stage img").bounding_box()
        return box["x"] + at[0] * box["width"], box["y"] + at[1] * box["height"]

    def stroke(self, canvas: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        self.page.mouse.move(*self.point(canvas, start))
        self.page.mouse.down()
        self.page.mouse.move(*self.point(canvas, end), steps=6)
        self.page.mouse.up()

    def press(self, id_: str) -> None:
        self.page.locator(f"#{id_}").click()

    def generate(self) -> Image.Image:
        """Press Generate, wait for the end, and fetch the first picture."""
        self.press(f"{self.kind}_generate")
        self.page.wait_for_function(f"!document.body.classList.contains('{self.kind}-busy')")
        return self.pictures()[0]

    def pictures(self) -> list[Image.Image]:
        self.page.wait_for_selector(f"#{self.kind}_gallery img")
        places = self.page.eval_on_selector_all(
            f"#{self.kind}_gallery img", "all => [...new Set(all.map((one) => one.src))]"
        )
        return [self.fetched(place) for place in places]

    def fetched(self, address: str) -> Image.Image:
        picture = Image.open(io.BytesIO(httpx.get(address, timeout=60, trust_env=False).content))
        picture.load()
        return picture

    def info(self) -> str:
        return self.page.input_value(f"#html_info_{self.kind} textarea")

    def toast(self) -> str:
        """The text of the error that has just been shown."""
        return self.page.locator(".toast-body").last.inner_text()

    def layer(self, canvas: str) -> np.ndarray:
        """Where something is drawn on a canvas, (height, width) of booleans, as the browser holds it."""
        address = self.page.evaluate(f"document.querySelector('#{canvas} canvas').toDataURL('image/png')")
        layer = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        return np.asarray(layer.convert("RGBA"))[..., 3] > 127

    def api(self, **body: Any) -> list[Image.Image]:
        """What the API draws for a body."""
        answer = httpx.post(f"{self.url}sdapi/v1/{self.kind}", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200, answer.text
        return [Image.open(io.BytesIO(base64.b64decode(one))) for one in answer.json()["images"]]


def noise(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """A picture no two pixels of which are alike."""
    levels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"))
