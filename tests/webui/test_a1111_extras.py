"""ControlNet, LoRA and learned words over A1111's API, with the files that are shipped for the embedded model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import webuiapi
from api_server import SMALL, encoded, picture, served_api
from PIL import Image, ImageDraw


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("a1111"), extras=True) as served:
        yield served


@pytest.fixture(scope="module")
def star():
    drawn = Image.new("RGB", (64, 64), "gray")
    ImageDraw.Draw(drawn).polygon([(32, 8), (56, 56), (8, 56)], fill="red")
    return drawn


def unit(star, **fields):
    return {"image": encoded(star), "module": "canny", "model": "tiny_canny", "threshold_a": 50, "threshold_b": 100,
            "processor_res": 64, **fields}  # fmt: skip


def draw(api, *units, **fields):
    return api.draw(seed=5, alwayson_scripts={"controlnet": {"args": list(units)}}, **fields)


def pixels(answer, number: int = 0) -> np.ndarray:
    return np.asarray(picture(answer["images"][number]).convert("RGB"), dtype=int)


def test_a_unit_changes_the_picture_and_is_written_down(api, star):
    plain, steered = draw(api), draw(api, unit(star))
    assert np.abs(pixels(steered) - pixels(plain)).mean() > 2
    info = json.loads(steered["info"])
    assert "Module: canny" in info["infotexts"][0] and len(info["infotexts"]) == 1
    assert np.abs(pixels(draw(api, unit(star, weight=0))) - pixels(plain)).max() <= 2


def test_the_map_of_a_unit_comes_after_the_pictures(api, star):
    answer = draw(api, unit(star), batch_size=2)
    assert len(answer["images"]) == 3  # clients count n_iter * batch_size + units
    map_ = pixels(answer, 2)
    assert (
        map_.shape == (64, 64, 3) and set(np.unique(map_)) == {0, 255} and 50 < (map_[..., 0] > 0).sum() < 800
    )
    assert picture(answer["images"][2]).info == {}


def test_no_map_where_none_is_wanted(api, star):
    assert len(draw(api, unit(star, save_detected_map=False))["images"]) == 1


def test_a_model_by_the_title_that_the_list_shows(api, star):
    title = api.get("/controlnet/model_list").json()["model_list"][0]
    assert np.array_equal(pixels(draw(api, unit(star, model=title))), pixels(draw(api, unit(star))))


def test_in_image_to_image_the_first_picture_is_the_units(api, star):
    body = SMALL | {"init_images": [encoded(star)], "denoising_strength": 1, "seed": 5}
    given = {"alwayson_scripts": {"ControlNet": {"args": [unit(star, image=None)]}}}
    named = {"alwayson_scripts": {"ControlNet": {"args": [unit(star)]}}}
    both = [api.post("/sdapi/v1/img2img", body | one).json() for one in (given, named)]
    assert np.array_equal(pixels(both[0]), pixels(both[1]))


def test_the_clients_own_unit(api, star):
    client = webuiapi.WebUIApi(port=api.server.port)
    one = webuiapi.ControlNetUnit(
        image=star, module="canny", model="tiny_canny", processor_res=64, resize_mode="Crop and Resize",
        threshold_a=50, threshold_b=100,
    )  # fmt: skip
    result = client.txt2img(**SMALL, seed=5, controlnet_units=[one])
    assert "ControlNet 0" in result.info["infotexts"][0]
    assert "ControlNet" not in client.txt2img(**SMALL, seed=5).info["infotexts"][0]  # its unit did not stay


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "tiny_cany"}, ["tiny_cany", "tiny_canny"]),
        ({"model": "None"}, ["names no ControlNet", "tiny_canny"]),
        ({"module": "openpose_full"}, ["openpose_full"]),
        ({"image": None}, ["picture"]),
    ],
)
def test_units_that_cannot_be_drawn_with_are_named(api, star, fields, words):
    body = SMALL | {"alwayson_scripts": {"controlnet": {"args": [unit(star, **fields)]}}}
    answer = api.post("/sdapi/v1/txt2img", body)
    assert answer.status_code == 422
    assert all(word in answer.json()["detail"] for word in words), answer.text


def test_a_lora_by_tag_and_the_switch_that_turns_tags_off(api):
    plain = pixels(api.draw(seed=5, steps=4))
    answer = api.draw(seed=5, steps=4, prompt="a red star <lora:tiny_night:1>")
    assert pixels(answer).mean() < plain.mean() - 20  # by night
    assert "Lora hashes" in json.loads(answer["info"])["infotexts"][0]
    off = api.draw(seed=5, steps=4, prompt="a red star <lora:tiny_night:1>", disable_extra_networks=True)
    assert np.abs(pixels(off) - plain).max() <= 2


def test_the_lists_show_them(api):
    (lora,) = api.get("/sdapi/v1/loras").json()
    assert lora["name"] == "tiny_night" and set(lora) == {"name", "alias", "path", "metadata"}
    words = api.get("/sdapi/v1/embeddings").json()
    assert words["loaded"]["tiny_zorp"]["vectors"] == 4 and words["skipped"] == {}
    assert api.post("/sdapi/v1/refresh-loras").json() is None
    assert api.post("/sdapi/v1/refresh-embeddings").json() is None
