from __future__ import annotations

import base64
import io
import re

import pytest
from PIL import Image

from fastsd_lib.widgets import show
from fastsd_lib.widgets.pictures import data_uri, image_tag, tiles


@pytest.fixture
def shown(monkeypatch):
    """The markup of what was displayed."""
    import IPython.display

    made = []
    monkeypatch.setattr(IPython.display, "display", lambda box: made.append(markup(box)))
    return made


def markup(box) -> str:
    return getattr(box, "value", "") + "".join(markup(child) for child in getattr(box, "children", ()))


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_large_picture_travels_small_and_a_tiny_one_pixel_by_pixel(tmp_path):
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "large.png")
    assert decoded(data_uri(tmp_path / "large.png", 320)).size == (320, 160)
    tiny = Image.effect_noise((64, 64), 80).convert("RGB")
    assert decoded(data_uri(tiny)).tobytes() == tiny.tobytes()
    assert 'class="fsd-small"' in image_tag(tiny) and "fsd-small" not in image_tag(tmp_path / "large.png")


def test_a_long_grid_and_a_small_sample_are_pictures_too(tmp_path):
    Image.new("RGB", (1000, 40), "red").save(tmp_path / "strip.png")
    assert decoded(data_uri(tmp_path / "strip.png", 500)).size == (500, 20)


def test_names_are_shown_as_text_whatever_they_hold():
    assert "<script>" not in tiles([(Image.new("RGB", (8, 8)), '"><script>x</script>')])


def test_pictures_get_their_labels_or_their_names(shown, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    show.show_pictures([tmp_path / "one.png"])
    show.show_pictures([tmp_path / "one.png"], labels=["before"], title="Look")
    assert "one.png" in shown[0] and "before" in shown[1] and "Look" in shown[1]
    with pytest.raises(ValueError, match="1 pictures but 2 labels"):
        show.show_pictures([tmp_path / "one.png"], labels=["a", "b"])


def test_a_folder_shows_the_first_few_and_counts_all(shown, tmp_path):
    for number in range(5):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{number}.png")
    show.show_folder(tmp_path, "Class images", limit=2)
    assert "Class images (5)" in shown[0] and shown[0].count("<img") == 2
    show.show_folder(tmp_path / "missing", "Class images")
    assert "Class images (0)" in shown[1] and "No pictures yet" in shown[1]


def test_a_grid_and_a_banner_show_what_they_were_given(shown, tmp_path):
    Image.new("RGB", (300, 100)).save(tmp_path / "grid.png")
    show.show_grid(tmp_path / "grid.png", "Before and after")
    show.banner("Your model", "Ready.", {"file": "<a>.safetensors"})
    assert "Before and after" in shown[0] and re.search(r'src="data:image/\w+;base64,', shown[0])
    assert "Ready." in shown[1] and "&lt;a&gt;.safetensors" in shown[1]
