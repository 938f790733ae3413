"""Pictures of looks into a model: every way for every kind of model, with heat where the map has it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from tiny_vit import make_vit, photos

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit import cards, colours, inside_pictures
from fastsd_lib.vit.inside import Inside
from fastsd_lib.vit.inside_pictures import WAYS, explain, ways_for
from fastsd_lib.vit.model import open_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        kind: open_model(make_vit(folder / kind, kind=kind))
        for kind in ("vit", "deit", "dinov2", "swin", "convnext")
    }


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("photos"), 1)[0]


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "swin", "convnext"])
def test_every_way_that_fits_the_model_gives_a_picture_in_the_order_asked_for(models, photo, kind):
    ways = ways_for(models[kind])
    assert {"patches", "gradcam", "occlusion"} <= set(ways)
    assert ("rollout" in ways) == (kind not in ("swin", "convnext"))
    seen = []
    drawn = explain(models[kind], photo, ways, on_progress=lambda event: seen.append(event.done))
    assert tuple(drawn) == ways and seen == list(range(len(ways) + 1))
    for picture in drawn.values():
        assert picture.mode == "RGB" and 200 < picture.width < 1300 and len(picture.getcolors(1 << 20)) > 20


def test_without_ways_the_quick_ones_are_shown_and_the_same_call_gives_the_same_pictures(models, photo):
    inside = Inside.of(models["vit"])
    assert ways_for(inside) == ways_for(models["vit"]) == tuple(WAYS)
    first, second = explain(inside, photo), explain(inside, photo.read_bytes())
    assert tuple(first) == ("patches", "attention", "rollout", "gradcam")
    assert tuple(explain(models["convnext"], photo)) == ("patches", "gradcam")
    for way in first:
        assert np.array_equal(np.asarray(first[way]), np.asarray(second[way]))


def test_the_class_asked_for_is_the_class_explained(models, photo, monkeypatch):
    titles = []
    plain = cards.heat_card
    monkeypatch.setattr(cards, "heat_card", lambda *told: titles.append(told[2]) or plain(*told))
    pictures = [explain(models["vit"], photo, ("gradcam",), one)["gradcam"] for one in ("dog", "fish")]
    assert [title.split(",")[0] for title in titles] == ["Grad-CAM for dog", "Grad-CAM for fish"]
    assert not np.array_equal(*(np.asarray(one) for one in pictures))


def test_what_cannot_be_shown_is_said_in_a_line(models, photo):
    for asked, says, fix in (
        (dict(ways=("x-ray",)), "no way 'x-ray'", "take of: patches, positions, attention"),
        (dict(target="horse"), "does not know the class 'horse'", "type one of its classes"),
        (dict(ways=("heads",), layer=2), "2 layers: there is no layer 2", "take 0 to 1."),
    ):
        with pytest.raises(UserError, match=says) as error:
            explain(models["vit"], photo, **asked)
        assert fix in error.value.fix
    with pytest.raises(UserError, match="no attention maps"):
        explain(models["swin"], photo, ("rollout",))


def test_heat_lies_where_the_map_has_it():
    heat = np.zeros((4, 4))
    heat[1, 3] = 1
    laid = np.asarray(cards.overlay(Image.new("RGB", (160, 80), (128, 128, 128)), heat), int)
    yellow = laid[..., 0] - laid[..., 2]
    y, x = np.unravel_index(yellow.argmax(), yellow.shape)
    assert 20 <= y < 40 and 120 <= x < 160
    assert (
        np.asarray(cards.stretched(np.full((3, 3), 5.0), (9, 9))).max() == 0
    )  # the same everywhere: nothing stands out


@pytest.mark.parametrize("fit", ["model", "crop", "squash", "pad"])
@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2", "convnext"])
def test_the_picture_under_the_heat_is_what_the_model_sees_only_finer(models, photo, kind, fit):
    inside = Inside.of(models[kind], fit)
    image = Image.open(photo).convert("RGB").filter(ImageFilter.GaussianBlur(6))
    shown = inside.seen(image)
    assert max(shown.size) == 448
    height, width = inside.transform.size
    coarse = np.asarray(shown.resize((width, height), Image.Resampling.BOX), float)
    told = np.asarray(inside.transform.seen(image), float)
    assert np.abs(coarse - told).mean() < 3
    assert np.abs(coarse[:, ::-1] - told).mean() > 20


def test_the_colours_are_viridis():
    from matplotlib import colormaps

    table = np.array(colormaps["viridis"].colors) * 255
    assert np.abs(colours.viridis(np.arange(256) / 255).astype(float) - table).max() < 7
    assert colours.viridis(np.array([np.nan, -3, 7])).tolist()[1:] == [[68, 1, 84], [253, 231, 37]]


def test_a_model_of_any_size_makes_pages_that_fit_a_screen():
    random = np.random.default_rng(0)
    page = cards.grid_of_maps(random.random((24, 16, 24, 24)), "Attention", "ViT-L/16-384")
    assert max(page.size) < 1400
    page = cards.tiles_of_tiles(random.random((24, 24, 24, 24)), "Positions", "", ("-1", "1"), (-1, 1))
    assert max(page.size) < 1300
    assert inside_pictures._cell_px(_Fake((384, 384), (16, 16))) == 32


class _Fake:
    """The two sizes of an Inside."""

    def __init__(self, size, patch_px):
        self.transform, self.patch_px = type("Sized", (), {"size": size}), patch_px
