"""The inner tab Batch, in a real browser: each file is drawn, or named with what is wrong with it."""

from __future__ import annotations

import zipfile

import httpx
import numpy as np
import pytest
from page_driver import OnPage, in_base64, noise, pixels
from page_server import running_browser, served_page
from PIL import Image


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def url(root):
    with served_page(root) as served:
        yield served.url


@pytest.fixture(scope="module")
def chromium():
    with running_browser() as running:
        yield running


@pytest.fixture
def on_page(chromium, url):
    with OnPage.open(chromium, url) as opened:
        opened.show("img2img", "batch")
        opened.set(prompt="a red star", steps=3, seed=7)
        yield opened


def give(on_page, field, files):
    place = on_page.page.locator(f"#img2img_batch_{field} input[type=file]")
    place.set_input_files(files)
    on_page.page.wait_for_selector(f"#img2img_batch_{field} .file-preview")


def drawn(root):
    (folder,) = (root / "outputs" / "img2img-batch").iterdir()
    return folder


@pytest.fixture(autouse=True)
def _cleared(root):
    yield
    for path in sorted((root / "outputs").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def test_of_three_files_the_bad_one_is_named_and_the_others_are_drawn_under_their_names(
    on_page, root, tmp_path
):
    files = [
        noise(tmp_path / "first.png", 64, 64, 1),
        tmp_path / "bad.png",
        noise(tmp_path / "third one.png", 64, 64, 2),
    ]
    files[1].write_bytes(b"\x89PNG and then nothing")
    give(on_page, "pictures", files)
    on_page.press("img2img_generate")  # means the batch here
    on_page.page.get_by_text("Done: 2 of 3 drawn").wait_for()
    (note,) = on_page.page.locator("#img2img_batch_said .note").all_inner_texts()
    assert note == "bad.png: bad.png is no picture that can be read. Take a PNG, JPEG or WEBP."
    assert sorted(path.name for path in drawn(root).glob("*.png")) == ["first.png", "third one.png"]
    same = on_page.api(prompt="a red star", steps=3, seed=7, sampler_name="Euler a", cfg_scale=4, width=64,
                       height=64, init_images=[in_base64(files[2])])  # fmt: skip
    assert (pixels(Image.open(drawn(root) / "third one.png")) == pixels(same[0])).all()
    with on_page.page.expect_download() as download:
        on_page.page.locator("#img2img_batch_archive a").first.click()
    assert sorted(zipfile.ZipFile(download.value.path()).namelist()) == ["first.png", "third one.png"]


def test_masks_of_the_same_names_say_what_is_drawn(on_page, root, tmp_path):
    files = [noise(tmp_path / f"{name}.png", 64, 64, seed) for seed, name in enumerate(("one", "two"))]
    masks = tmp_path / "masks"
    masks.mkdir()
    sides = {"one": (0, 0, 32, 64), "two": (32, 0, 64, 64)}
    for name, box in sides.items():
        mask = Image.new("L", (64, 64))
        mask.paste(255, box)
        mask.save(masks / f"{name}.png")
    give(on_page, "pictures", files)
    on_page.page.get_by_role("button", name="Masks: one for all").click()
    give(on_page, "masks", sorted(masks.iterdir()))
    on_page.press("img2img_batch_go")
    on_page.page.get_by_text("Done: 2 of 2 drawn").wait_for()
    for file in files:
        changed = (pixels(Image.open(file)) != pixels(Image.open(drawn(root) / file.name))).any(axis=2)
        left, _, right, _ = sides[file.stem]
        inside = np.zeros((64, 64), bool)
        inside[:, left:right] = True
        assert changed[inside].mean() > 0.9 and not changed[~inside].any()


def test_an_interrupted_batch_keeps_what_is_drawn_and_a_reload_finds_it(on_page, root, tmp_path):
    give(on_page, "pictures", [noise(tmp_path / f"{number}.png", 64, 64, number) for number in range(20)])
    on_page.set(steps=40)
    on_page.press("img2img_batch_go")
    on_page.page.wait_for_selector("#img2img_batch_gallery img")
    on_page.page.reload()
    on_page.page.wait_for_selector("#tab_img2img-button")
    on_page.show("img2img", "batch")
    on_page.page.get_by_text("of 20").first.wait_for()
    on_page.press("img2img_batch_interrupt")
    on_page.page.get_by_text("Interrupted with").wait_for()
    kept = len(list(drawn(root).glob("*.png")))
    said = on_page.page.locator("#img2img_batch_said").inner_text()
    assert 1 <= kept < 20 and f"Interrupted with {kept} of 20 drawn" in said
    assert httpx.get(f"{on_page.url}sdapi/v1/progress", timeout=60, trust_env=False).json()["progress"] == 0


def test_an_empty_batch_is_refused(on_page):
    on_page.press("img2img_batch_go")
    on_page.page.get_by_text("There are no pictures in the batch.").wait_for()
