"""The pictures of webui.md and vit.md, taken anew: `.venv/bin/python docs/screenshots.py` (chromium; a few minutes)."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE_MS = 300_000


def main() -> None:
    from playwright.sync_api import sync_playwright

    from fastsd_lib.workflows.samples import sample_photos
    from fastsd_lib.workflows.webui import WebuiConfig, start

    root = Path(tempfile.mkdtemp(prefix="fastsd-screenshots-"))
    look_inside(root / "digits")
    server = start(WebuiConfig(root=root, folder=root / "webui"), port=None)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            desk = opened(browser, server.url, DESK, "light")
            draw(desk, "a photo of a cat on a yellow background", 4)
            desk.screenshot(path=DOCS / "webui.png")
            phone = opened(browser, server.url, PHONE, "dark")
            draw(phone, "a photo of a red star on a blue background", 1)
            phone.evaluate("window.scrollTo(0, 0)")
            phone.screenshot(path=DOCS / "webui-phone.png")
            train(desk, sample_photos("monster", root / "photos"))
            desk.screenshot(path=DOCS / "webui-train.png", full_page=True)
            browser.close()
    finally:
        server.close()
        shutil.rmtree(root, ignore_errors=True)


def opened(browser: Any, url: str, viewport: dict[str, int], scheme: str) -> Any:
    page = browser.new_page(viewport=viewport, color_scheme=scheme)
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    page.wait_for_function("document.querySelector('#txt2img_prompt .tokens')?.textContent")
    return page


def draw(page: Any, prompt: str, count: int) -> None:
    page.fill("#txt2img_prompt textarea", prompt)
    page.fill("#txt2img_batch_size input[type=number]", str(count))
    page.fill("#txt2img_seed input", "5")
    page.press("#txt2img_seed input", "Tab")
    page.click("#txt2img_generate")
    page.wait_for_function(
        f"document.querySelectorAll('#txt2img_gallery img').length >= {count}"
        " && !document.body.classList.contains('txt2img-busy')"
    )
    page.wait_for_timeout(1500)


def train(page: Any, photos: list[Path]) -> None:
    page.get_by_role("tab", name="Train", exact=True).first.click()
    page.locator("#train_new input, #train_new textarea").first.fill("my-monster")
    page.click("#train_create")
    page.locator("#train_state", has_text="Add photos first").wait_for()
    page.set_input_files("#train_upload input[type=file]", photos)
    page.locator("#train_state", has_text="Ready to train").wait_for()
    choose(page, instance_prompt="a photo of sks monster")
    page.locator("#train_all button").first.click()  # samples come often, so that the picture shows some
    choose(page, unet_steps=120, text_encoder_steps=10, sample_every_steps=20)
    page.locator("#train_all button").first.click()
    page.click("#train_start")
    page.wait_for_function("document.querySelectorAll('#train_samples img').length >= 4")
    page.wait_for_timeout(1000)


def choose(page: Any, **fields: object) -> None:
    for name, value in fields.items():
        place = page.locator(f"#train_{name}").locator("textarea, input").first
        place.fill(str(value))
        place.press("Tab")


def look_inside(digits: Path) -> None:
    """Two digits, and what the embedded ViT looked at, side by side."""
    from PIL import Image

    from fastsd_lib.vit.inside_pictures import explain
    from fastsd_lib.vit.model import open_model
    from fastsd_lib.vit.sample_data import write_digits

    write_digits(digits)
    photos = [sorted((digits / name).glob("*.png"))[3] for name in ("3", "8")]
    looks = [explain(open_model(), photo, ("patches", "rollout", "gradcam")) for photo in photos]
    cards = [card for look in looks for card in look.values()]
    wide, high = max(card.width for card in cards), max(card.height for card in cards)
    sheet = Image.new("RGB", (3 * wide, 2 * high), cards[0].getpixel((2, 2)))
    for at, card in enumerate(cards):
        sheet.paste(card, (at % 3 * wide, at // 3 * high))
    sheet.resize((sheet.width * 2 // 3, sheet.height * 2 // 3)).save(DOCS / "vit-inside.png")


if __name__ == "__main__":
    main()
