"""The report of an evaluation: files that agree with one another, and text of users that stays text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tiny_vit import photos

from fastsd_lib.vit.evaluation import Calibration, Evaluation
from fastsd_lib.vit.report import write_report
from fastsd_lib.vit.report_pictures import MOST_CLASSES, confusion_picture, reliability_picture, worst_picture
from fastsd_lib.vit.report_words import headline, plain

NASTY = '<img src=x onerror="alert(1)">'
BROWSER = next((one for name in ("chromium", "google-chrome", "chrome") if (one := shutil.which(name))), None)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"), 6, sizes=((120, 90),))


def _evaluation(files, classes=("cat", "dog", NASTY), images=60, seed=0, sharp=2.5, **more):
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(classes), images)
    logits = random.normal(size=(images, len(classes)))
    logits[np.arange(images), truth] += sharp
    keys = tuple(str(files[at % len(files)]) for at in range(images))
    calibration = Calibration(1.5, np.full(images, 1.5), "fitted on 90 other images")
    return Evaluation(
        "my **model**", tuple(classes), keys, truth, logits.astype(np.float32), calibration, **more
    )


def test_the_folder_holds_the_same_figures_as_page_text_and_numbers(files, tmp_path):
    found = _evaluation(files, seconds=3.0, runner="torch fp32", errors=(("x/broken.jpg", "is damaged"),))
    page = write_report(found, tmp_path / "report", {"data": f"my {NASTY} photos"})
    names = {"report.html", "report.md", "report.json", "confusion.png", "reliability.png", "worst.png"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names
    numbers = json.loads((tmp_path / "report" / "report.json").read_text())
    assert numbers["accuracy"] == pytest.approx(found.accuracy) and numbers["unreadable"] == 1
    assert sum(cell[2] for cell in numbers["confusion"]) == 60
    assert sum(cell[2] for cell in numbers["confusion"] if cell[0] == cell[1]) == found.right
    assert [row["images"] for row in numbers["per_class"]] == found.confusion.sum(axis=1).tolist()
    losses = [one["loss"] for one in numbers["mistakes"]]
    assert len(losses) == 60 - found.right and losses == sorted(losses, reverse=True)
    text = (tmp_path / "report" / "report.md").read_text()
    for written in (text, page.read_text()):
        assert f"{found.accuracy:.2%} ({found.right} of 60)" in written
        assert "20.0 images/s" in written and "is damaged" in written


def test_what_was_not_measured_is_said_not_to_be(files, tmp_path):
    page = write_report(_evaluation(files), tmp_path).read_text()
    assert "not measured" in page
    assert json.loads((tmp_path / "report.json").read_text())["images_per_s"] is None


def test_a_temperature_that_does_harm_is_told(files):
    found = _evaluation(files, sharp=50)  # all right and sure: any doubt is wrong
    unsure = dataclasses.replace(
        found, calibration=Calibration(9.0, np.full(60, 9.0), "stored with the model")
    )
    assert "does harm here" in dict(headline(unsure))["calibration error"]
    plain_one = dataclasses.replace(
        found, calibration=Calibration(1.0, np.ones(60), "not fitted", fitted=False)
    )
    assert "harm" not in dict(headline(plain_one))["calibration error"]


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.text = [], []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_names_of_users_stay_text_and_the_page_asks_nobody(files, tmp_path):
    tags = _Tags()
    tags.feed(write_report(_evaluation(files), tmp_path, {"note": NASTY}).read_text())
    sources = [attributes["src"] for tag, attributes in tags.found if tag == "img"]
    assert len(sources) == 3 and all(one.startswith("data:image/png;base64,") for one in sources)
    assert not {"script", "link", "iframe", "a"} & {tag for tag, _ in tags.found}
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert tags.text.count(NASTY) >= 2
    assert NASTY not in (tmp_path / "report.md").read_text()


def test_markdown_of_users_is_disarmed():
    assert plain("a|b\n*c* <i>[x](y)</i> &amp;") == "a\\|b \\*c\\* &lt;i&gt;\\[x\\](y)&lt;/i&gt; &amp;amp;"


def test_many_classes_make_a_readable_matrix_and_a_report_of_bounded_size(files, tmp_path):
    found = _evaluation(files, classes=[f"class {one}" for one in range(400)], images=1200, sharp=4.0)
    picture = confusion_picture(found)
    assert max(picture.size) < 1800
    page = write_report(found, tmp_path)
    assert page.stat().st_size < 1_500_000 and (tmp_path / "report.json").stat().st_size < 500_000
    assert (
        found.top5 is not None and f"the {MOST_CLASSES} classes" not in page.read_text()
    )  # that is in the picture


def test_the_matrix_has_the_colours_of_its_shares(files):
    """All right: the diagonal is viridis' last colour, all else is empty."""
    found = _evaluation(files, sharp=50)
    pixels = np.asarray(confusion_picture(found)).reshape(-1, 3)
    assert (pixels == (253, 231, 37)).all(axis=1).any()
    assert not (pixels == (68, 1, 84)).all(axis=1).sum() > 400  # but for the legend's last line


def test_a_split_without_mistakes_shows_what_was_least_sure(files):
    assert _evaluation(files, sharp=50).mistakes() == []
    assert worst_picture(_evaluation(files, sharp=50)).width > 200


def test_pictures_survive_files_that_have_gone_and_names_of_any_length(files, tmp_path):
    found = _evaluation([tmp_path / "gone.jpg"], classes=("a" * 300, "b\x1b[31m", "猫"))
    for draw in (confusion_picture, reliability_picture, worst_picture):
        assert isinstance(draw(found), Image.Image)
    assert confusion_picture(found).width < 1200


@pytest.mark.skipif(BROWSER is None, reason="no browser here")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_the_page_fits_a_desk_and_a_phone_by_day_and_night(files, tmp_path, width, scheme):
    sync = pytest.importorskip("playwright.sync_api")
    long_names = ("a name of a class that goes on and on " * 3, "x" * 120, NASTY)
    page = write_report(_evaluation(files, classes=long_names, seconds=1.0), tmp_path)
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800}).new_page()
        troubles, asked = [], []
        tab.on("console", lambda said: troubles.append(said.text))
        tab.on("dialog", lambda dialog: troubles.append("a dialog"))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        colours = tab.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        assert (sum(_rgb(colours[0])) > sum(_rgb(colours[1]))) == (scheme == "light")
        assert all(tab.evaluate("[...document.images].map(one => one.complete && one.naturalWidth > 0)"))
        browser.close()
    assert troubles == [] and all(one.startswith(("file:", "data:")) for one in asked)


def _rgb(colour: str) -> list[int]:
    return [int(one) for one in colour.removeprefix("rgb(").removesuffix(")").split(",")]
