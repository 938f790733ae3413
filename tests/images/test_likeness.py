import numpy as np
import pytest
from PIL import Image, ImageFilter

from fastsd_lib.images.likeness import describe, likeness
from fastsd_lib.workflows.samples import CAT_PHOTOS, _cat, held_back_cat


def test_a_picture_is_wholly_like_itself_and_unlike_its_negative():
    cat = held_back_cat()[0]
    negative = Image.fromarray(255 - np.asarray(cat))
    same, other = likeness([cat, negative], [cat])
    assert same == pytest.approx(1.0)
    assert other < 0.75
    assert np.linalg.norm(describe(cat)) == pytest.approx(1.0)


def test_colour_and_edges_each_lower_the_likeness_by_themselves():
    cat = held_back_cat()[0]
    grey, blurred = cat.convert("L").convert("RGB"), cat.filter(ImageFilter.GaussianBlur(25))
    assert likeness([grey], [cat])[0] < 0.9
    assert likeness([blurred], [cat])[0] < 0.9


def test_it_tells_photos_of_the_cat_from_other_photographs():
    from importlib.util import find_spec
    from pathlib import Path

    data = Path(find_spec("skimage").origin).parent / "data"
    others = [
        Image.open(data / name).convert("RGB")
        for name in ("astronaut.png", "coffee.png", "rocket.jpg", "ihc.png")
    ]
    assert likeness(_cat(CAT_PHOTOS), held_back_cat()).min() > likeness(others, held_back_cat()).max() + 0.1


def test_a_plain_picture_has_no_edges_and_does_not_divide_by_zero():
    assert np.isfinite(
        likeness([Image.new("RGB", (64, 64), "red")], [Image.new("RGB", (64, 64), "red")])
    ).all()
