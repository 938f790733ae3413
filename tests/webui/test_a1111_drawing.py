"""Drawing over A1111's API: the pictures, their seeds, their texts, and many clients at once."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from api_server import SMALL, encoded, picture, served_api
from PIL import Image

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.infotext import read_infotext
from fastsd_lib.generation.picture_text import read_texts
from fastsd_lib.generation.request import GenerationRequest, Hires
from fastsd_lib.generation.styles import Style, write_styles
from fastsd_lib.models import registry


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a1111")
    write_styles(folder / "styles.csv", [Style("oil", "{prompt}, oil painting")])
    with served_api(folder) as served:
        yield served


@pytest.fixture(scope="module")
def engine():
    model: ModelFiles = registry.base_model(registry.EMBEDDED)
    return load_engine(model)


def drawn(engine, **fields) -> list[np.ndarray]:
    """The same from Python."""
    usual = {"prompt": "a red star", "inference_steps": 2, "guidance_scale": 7.0, "sampler": "euler_a"}
    request = GenerationRequest(**(usual | {"width_px": 64, "height_px": 64} | fields))
    return [np.asarray(one.image) for one in engine.generate(request)]


def same(sent: str, expected: np.ndarray) -> bool:
    """Equal up to the last bit of a pixel: rows of a larger batch may round otherwise."""
    found = np.asarray(picture(sent).convert("RGB"), dtype=int)
    return found.shape == expected.shape and np.abs(found - expected).max() <= 2


def info_of(answer) -> dict:
    return json.loads(answer["info"])


def test_a_picture_is_the_one_that_python_draws(api, engine):
    answer = api.draw(seed=11)
    assert same(answer["images"][0], drawn(engine, seed=11)[0])
    assert not same(answer["images"][0], drawn(engine, seed=12)[0])


def test_a_batch_has_seeds_counted_on_and_each_picture_is_its_seeds(api, engine):
    answer = api.draw(seed=5, batch_size=2, n_iter=2)
    info = info_of(answer)
    assert info["all_seeds"] == [5, 6, 7, 8] and info["seed"] == 5
    assert info["index_of_first_image"] == 0 and len(info["infotexts"]) == 4
    for number, sent in enumerate(answer["images"]):
        assert same(sent, drawn(engine, seed=5 + number)[0])


def test_a_variation_keeps_the_seed_and_counts_the_other_one_on(api, engine):
    answer = api.draw(seed=5, subseed=100, subseed_strength=0.5, batch_size=2)
    info = info_of(answer)
    assert (info["all_seeds"], info["all_subseeds"]) == ([5, 5], [100, 101])
    expected = drawn(engine, seed=5, count=2, variation_seed=100, variation_strength=0.5)
    assert [same(*pair) for pair in zip(answer["images"], expected, strict=True)] == [True, True]


def test_info_says_everything_that_clients_read(api):
    answer = api.draw(seed=5, negative_prompt="dogs", cfg_scale=5.5)
    info = info_of(answer)
    assert isinstance(answer["info"], str)
    expected = {
        "prompt": "a red star", "all_prompts": ["a red star"], "negative_prompt": "dogs",
        "all_negative_prompts": ["dogs"], "seed": 5, "subseed_strength": 0.0, "width": 64, "height": 64,
        "sampler_name": "Euler a", "cfg_scale": 5.5, "steps": 2, "batch_size": 1, "restore_faces": False,
        "face_restoration_model": None, "sd_model_name": "embedded", "sd_vae_name": None, "sd_vae_hash": None,
        "seed_resize_from_w": -1, "seed_resize_from_h": -1, "denoising_strength": None,
        "extra_generation_params": {}, "index_of_first_image": 0, "styles": [], "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
    }  # fmt: skip
    assert {name: info[name] for name in expected} == expected
    assert len(info["sd_model_hash"]) == 10 and len(info["job_timestamp"]) == 14 and info["version"]


def test_parameters_echo_the_request_without_its_pictures(api):
    first = encoded(Image.new("RGB", (64, 64), "red"))
    mask = encoded(Image.new("L", (64, 64), "white"))
    body = SMALL | {"init_images": [first], "mask": mask, "inpaint_full_res": False}
    answer = api.post("/sdapi/v1/img2img", body).json()
    echo = answer["parameters"]
    assert (echo["init_images"], echo["mask"], echo["steps"], echo["prompt"]) == (None, None, 2, "a red star")
    answer = api.post("/sdapi/v1/img2img", body | {"include_init_images": True}).json()
    assert answer["parameters"]["init_images"] == [first]


def test_the_picture_carries_a1111s_text_and_only_that(api):
    answer = api.draw(seed=5, negative_prompt="dogs")
    sent = picture(answer["images"][0])
    assert set(sent.info) == {"parameters"}
    assert sent.info["parameters"] == info_of(answer)["infotexts"][0]
    found = read_infotext(sent.info["parameters"])
    assert (found["Prompt"], found["Negative prompt"], found["Seed"]) == ("a red star", "dogs", "5")
    assert (found["Sampler"], found["CFG scale"], found["Model"]) == ("Euler a", "7.0", "embedded")
    assert len(found["Model hash"]) == 10


def test_a_text_that_comes_back_draws_the_same_picture(api):
    first = api.draw(seed=5, negative_prompt="dogs", scheduler="Karras")
    again = api.post("/sdapi/v1/txt2img", {"infotext": info_of(first)["infotexts"][0]}).json()
    assert np.array_equal(picture(first["images"][0]), picture(again["images"][0]))


@pytest.mark.parametrize(("format_", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("PNG", "PNG")])
def test_pictures_in_the_format_of_the_settings_with_the_text_inside(api, format_, kind):
    answer = api.draw(seed=5, override_settings={"samples_format": format_})
    data = base64.b64decode(answer["images"][0])
    assert picture(answer["images"][0]).format == kind
    assert read_texts(data)["parameters"] == info_of(answer)["infotexts"][0]


def test_no_text_where_it_is_switched_off(api):
    answer = api.draw(seed=5, override_settings={"enable_pnginfo": False})
    assert picture(answer["images"][0]).info == {}


def test_no_pictures_where_none_are_wanted(api):
    answer = api.draw(send_images=False)
    assert answer["images"] == [] and len(info_of(answer)["infotexts"]) == 1


def test_saved_pictures_come_with_their_grid_first(api):
    answer = api.draw(seed=5, batch_size=3, save_images=True, prompt="../../etc/passwd")
    info = info_of(answer)
    assert info["index_of_first_image"] == 1 and len(answer["images"]) == 4
    assert info["infotexts"][0] == info["infotexts"][1]
    assert picture(answer["images"][0]).size == (192, 64)
    saved = sorted(path.relative_to(api.folder / "outputs") for path in (api.folder / "outputs").rglob("*.*"))
    assert [(path.parts[0], path.name) for path in saved] == [
        ("txt2img-grids", "00000-grid.png"),
        ("txt2img-images", "00000-5.png"),
        ("txt2img-images", "00001-6.png"),
        ("txt2img-images", "00002-7.png"),
    ]
    first = Image.open(api.folder / "outputs" / saved[1])
    assert np.array_equal(first, picture(answer["images"][1])) and "parameters" in first.info


def test_one_saved_picture_has_no_grid(api):
    answer = api.draw(seed=5, save_images=True)
    assert len(answer["images"]) == 1 and info_of(answer)["index_of_first_image"] == 0


def test_styles_are_put_into_the_prompt(api):
    info = info_of(api.draw(styles=["oil", "nope"]))
    assert info["prompt"] == "a red star, oil painting" and info["styles"] == ["oil", "nope"]
    assert info["warnings"] == ["there is no style 'nope'; it was left out"]


def test_a_second_pass(api, engine):
    answer = api.draw(seed=5, enable_hr=True, hr_scale=1.5, denoising_strength=0.6, hr_upscaler="Lanczos")
    hires = Hires(scale=1.5, strength=0.6, upscaler="lanczos")
    assert same(answer["images"][0], drawn(engine, seed=5, hires=hires)[0])
    assert "Hires upscaler: Lanczos" in info_of(answer)["infotexts"][0]


def test_drawing_over_a_picture(api, engine):
    first = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    body = SMALL | {"init_images": ["data:image/png;base64," + encoded(first)], "steps": 4, "seed": 3}
    answer = api.post("/sdapi/v1/img2img", body | {"denoising_strength": 0.5}).json()
    expected = drawn(engine, inference_steps=4, seed=3, init=first, strength=0.5)[0]
    assert same(answer["images"][0], expected)
    assert info_of(answer)["denoising_strength"] == 0.5


def test_what_the_mask_leaves_out_stays_as_it_is(api):
    first = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    body = SMALL | {"init_images": [encoded(first)], "mask": encoded(mask), "mask_blur": 0, "seed": 3}
    for whole in (False, True):
        answer = api.post("/sdapi/v1/img2img", body | {"inpaint_full_res": whole}).json()
        found = np.asarray(picture(answer["images"][0]).convert("RGB"))
        assert np.array_equal(found[:, 32:], np.asarray(first)[:, 32:])
        assert not np.array_equal(found[:, :32], np.asarray(first)[:, :32])


def test_several_first_pictures_give_several_pictures(api):
    pictures = [encoded(Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue")]
    answer = api.post("/sdapi/v1/img2img", SMALL | {"init_images": pictures, "denoising_strength": 0}).json()
    colours = [picture(one).convert("RGB").getpixel((5, 5)) for one in answer["images"]]
    assert colours == [(255, 0, 0), (0, 0, 255)]


def test_scripts_send_their_grid_first(api):
    answer = api.draw(seed=5, prompt="a star | red", script_name="prompt matrix")
    info = info_of(answer)
    assert len(answer["images"]) == 3 and info["index_of_first_image"] == 1
    assert info["all_prompts"] == ["a star", "a star, red"] and info["all_seeds"] == [5, 5]
    grid = picture(answer["images"][0])
    assert grid.size == (64, 128)
    assert np.array_equal(np.asarray(grid)[:64], np.asarray(picture(answer["images"][1])))


def test_a_model_by_name_title_and_hash_for_one_request(api):
    model = api.get("/sdapi/v1/sd-models").json()[0]
    for name in (model["title"], model["model_name"], model["hash"], model["sha256"]):
        answer = api.draw(seed=5, override_settings={"sd_model_checkpoint": name})
        assert info_of(answer)["sd_model_hash"] == model["hash"]


def test_settings_of_a_request_are_gone_after_it_unless_they_shall_stay(api):
    api.draw(override_settings={"jpeg_quality": 33})
    assert api.get("/sdapi/v1/options").json()["jpeg_quality"] == 80
    api.draw(override_settings={"jpeg_quality": 33}, override_settings_restore_afterwards=False)
    assert api.get("/sdapi/v1/options").json()["jpeg_quality"] == 33
    refused = {"seed": 2**32 - 1, "n_iter": 2, "override_settings_restore_afterwards": False}
    answer = api.post("/sdapi/v1/txt2img", SMALL | refused | {"override_settings": {"jpeg_quality": 44}})
    assert answer.status_code == 422
    assert api.get("/sdapi/v1/options").json()["jpeg_quality"] == 33
    api.post("/sdapi/v1/options", {"jpeg_quality": 80})


def test_sixteen_clients_at_once_each_get_the_picture_of_their_seed(api, engine):
    expected = {seed: drawn(engine, seed=seed, inference_steps=2 + seed % 3)[0] for seed in range(16)}

    def one(seed: int) -> bool:
        answer = api.draw(seed=seed, steps=2 + seed % 3)
        return same(answer["images"][0], expected[seed]) and info_of(answer)["all_seeds"] == [seed]

    with ThreadPoolExecutor(16) as clients:
        assert list(clients.map(one, range(16))) == [True] * 16
    assert not np.array_equal(expected[0], expected[1])
