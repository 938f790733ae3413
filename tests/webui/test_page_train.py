"""The Train tab in a real browser: from photos to a picture of the trained model, on the embedded model."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import pytest
from page_driver import OnPage, pixels
from page_server import PHONE, running_browser

from fastsd_lib.workflows.samples import sample_photos

PROMPT = "a photo of sks monster"
SHORT = {
    "unet_steps": 80, "text_encoder_steps": 3, "batch_size": 1, "sample_every_steps": 20, "sample_count": 1,
    "save_every_steps": 10, "warmup_steps": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    with running_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    from fastsd_lib.generation.resources import Library
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf
    from fastsd_lib.webui.app import build_page, start
    from fastsd_lib.workflows.drawing import library_folders
    from fastsd_lib.workflows.trainings import SessionTrainings

    folder = tmp_path_factory.mktemp("drive")
    service = Service(Shelf(Library.of(library_folders(folder))))
    trainings = SessionTrainings(service, folder)
    page = functools.partial(build_page, trainings=trainings)
    server = start(service, port=None, pictures_dir=folder / "outputs", page=page)
    try:
        yield server.url
    finally:
        server.close()
        trainings.close()
        service.close()


class TrainTab:
    """The tab as somebody uses it."""

    def __init__(self, on: OnPage) -> None:
        self.page = on.page

    def show(self) -> None:
        self.page.get_by_role("tab", name="Train", exact=True).first.click()
        self.page.wait_for_selector("#train_session input", state="visible")

    def fill(self, name: str, value: object) -> None:
        place = self.page.locator(f"#train_{name}").locator("textarea, input").first
        place.fill(str(value))
        place.press("Tab")

    def press(self, name: str) -> None:
        self.page.locator(f"#train_{name}").click()

    def step(self) -> int:
        found = re.search(r"step ([\d,]+) of", self.page.locator("#train_state").inner_text())
        return int(found[1].replace(",", "")) if found else 0

    def wait_for(self, selector: str, text: str = "") -> None:
        self.page.locator(selector, has_text=text).first.wait_for(state="visible", timeout=120_000)


def test_from_photos_to_a_picture_of_the_trained_model(chromium, address, tmp_path):
    photos = sample_photos("monster", tmp_path / "photos")
    (tmp_path / "letter.jpg").write_text("Dear cat, this is no photo.")
    with OnPage.open(chromium, address) as on:
        tab = TrainTab(on)
        tab.show()
        tab.fill("new", "../x")
        tab.press("create")
        tab.wait_for(".toast-body", "A session cannot be called")
        tab.fill("new", "my-monster")
        tab.press("create")
        tab.wait_for("#train_state", "Add photos first")

        on.page.set_input_files("#train_upload input[type=file]", [*photos, tmp_path / "letter.jpg"])
        tab.wait_for("#train_report", "5 photos added, 1 refused")
        tab.wait_for("#train_report", "letter.jpg")
        tab.wait_for("#train_state", "Ready to train")
        assert on.page.locator("#train_photos img").count() == 5

        tab.fill("instance_prompt", PROMPT)
        on.page.locator("#train_photos .thumbnail-item").nth(1).click()
        tab.wait_for("#train_caption")
        tab.fill("caption", "on a hill")
        tab.wait_for("#train_training_prompt", f"{PROMPT}, on a hill")
        tab.press("save_caption")
        tab.wait_for("#train_photos", "on a hill")

        on.page.locator("#train_all button").first.click()
        for name, value in SHORT.items():
            tab.fill(name, value)
        tab.press("start")
        tab.wait_for("#train_loss svg")
        on.page.reload()  # the state lives in the server
        tab.show()
        tab.wait_for("#train_loss svg")
        tab.wait_for("#train_stop")
        tab.press("stop")
        tab.wait_for("#train_resume")
        stopped = tab.step()
        assert 2 <= stopped < 83 and "Stopped, saved at step" in on.page.locator("#train_state").inner_text()

        tab.press("resume")
        tab.wait_for("#train_state", "Trained to the end: 83 steps")
        assert on.page.locator("#train_samples img").count() >= 3
        tab.press("use")
        on.page.wait_for_function(
            "document.querySelector('#setting_sd_model_checkpoint input').value === 'my-monster'"
        )
        on.kind = "txt2img"
        assert on.page.input_value("#txt2img_prompt textarea") == PROMPT
        on.set(steps=2)
        picture = on.generate()
        assert picture.size == (64, 64) and pixels(picture).std() > 5
        assert "Model: my-monster" in on.info()


def test_on_a_phone_nothing_is_wider_than_the_screen(chromium, address):
    with OnPage.open(chromium, address, PHONE) as on:
        tab = TrainTab(on)
        more = on.page.locator("#tabs .overflow-menu > button")
        if more.count():
            more.first.click()
            on.page.locator("#tabs .overflow-dropdown button", has_text="Train").first.click()
            on.page.wait_for_selector("#train_session input", state="visible")
        else:
            tab.show()
        if on.page.locator("#train_state").inner_text():  # the session of the other test
            tab.wait_for("#train_photos img")
        wide = on.page.evaluate(
            "[...document.querySelectorAll('#train *')].filter((one) => one.checkVisibility()"
            " && one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.id || one.className)"
        )
        assert wide == []
