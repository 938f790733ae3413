"""The client that most Python programs use, `webuiapi` from PyPI, as it is: every method of it that A1111 answers."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
import webuiapi
from api_server import served_api
from PIL import Image

from fastsd_lib.webui.door import Door

SMALL = {"width": 64, "height": 64, "steps": 2, "prompt": "a red star"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("a1111")) as api:
        yield api


@pytest.fixture
def api(served):
    return webuiapi.WebUIApi(host="127.0.0.1", port=served.server.port, sampler="Euler a", steps=2)


@pytest.fixture(scope="module")
def photo():
    shades = np.linspace(0, 255, 64, dtype=np.uint8)
    return Image.fromarray(np.stack([np.tile(shades, (64, 1))] * 3, axis=2))


def test_it_finds_controlnet_and_none_of_the_other_extensions(api):
    assert (api.has_controlnet, api.has_adetailer, api.has_animatediff) == (True, False, False)


def test_text_to_image_with_all_that_it_sends(api):
    result = api.txt2img(**SMALL, seed=5, batch_size=2, styles=["None"], negative_prompt="dogs")
    assert [image.size for image in result.images] == [(64, 64)] * 2
    assert result.info["all_seeds"] == [5, 6] and result.info["sampler_name"] == "Euler a"
    assert result.parameters["scheduler"] == "automatic" and result.parameters["eta"] == 1.0
    assert result.image.info["parameters"] == result.info["infotexts"][0]


def test_its_high_resolution_pass(api):
    result = api.txt2img(
        **SMALL,
        seed=5,
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler=webuiapi.HiResUpscaler.Latent,
        denoising_strength=0.5,
    )
    assert result.image.size == (96, 96)


def test_image_to_image_and_inpainting(api, photo):
    result = api.img2img(images=[photo], **SMALL, seed=5, denoising_strength=0.5)
    assert result.image.size == (64, 64) and result.info["denoising_strength"] == 0.5
    mask = Image.new("RGB", (64, 64), "black")
    mask.paste("white", (0, 0, 32, 64))
    result = api.img2img(images=[photo], mask_image=mask, mask_blur=0, inpainting_fill=1, **SMALL, seed=5)
    assert np.array_equal(np.asarray(result.image.convert("RGB"))[:, 32:], np.asarray(photo)[:, 32:])


def test_its_asynchronous_calls(api):
    async def both():
        calls = [api.txt2img(**SMALL, seed=seed, use_async=True) for seed in (5, 6)]
        return await asyncio.gather(*calls)

    assert [one.info["seed"] for one in asyncio.run(both())] == [5, 6]


def test_units_do_not_stay_for_later_calls(api):
    """Its `alwayson_scripts={}` is one dictionary for all calls: it empties ControlNet itself where it sees one."""
    api.txt2img(**SMALL)
    assert api.txt2img(**SMALL).parameters["alwayson_scripts"] == {"ControlNet": {"args": []}}


def test_a_refusal_is_an_error_there_with_our_sentence(api):
    with pytest.raises(RuntimeError) as failed:
        api.txt2img(**SMALL, sampler_name="Oiler")
    assert failed.value.args[0] == 404 and "'Oiler'" in failed.value.args[1]


def test_progress_interrupt_and_skip(api):
    assert api.interrupt() == {} and api.skip() is None
    told = []
    drawing = threading.Thread(
        target=lambda: told.append(api.txt2img(**{**SMALL, "steps": 1000}, seed=5)), daemon=True
    )
    drawing.start()
    end = time.monotonic() + 30
    while not (progress := api.get_progress())["state"]["sampling_step"]:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert 0 < progress["progress"] < 1 and progress["state"]["job_count"] == 1
    api.interrupt()
    drawing.join(30)
    assert told and told[0].info["seed"] == 5
    api.util_wait_for_ready(check_interval=0.1)


def test_options_and_flags(api):
    assert api.get_options()["CLIP_stop_at_last_layers"] == 1
    assert api.set_options({"CLIP_stop_at_last_layers": 1}) is None
    assert api.get_cmd_flags()["api"] is True


def test_models(api):
    title = api.get_sd_models()[0]["title"]
    assert title.startswith("embedded [") and api.util_get_model_names() == [title]
    api.util_set_model("embeded")  # it takes the closest title itself
    assert api.util_get_current_model() == title
    assert api.refresh_checkpoints() is None


def test_samplers_and_schedulers(api):
    names = api.util_get_sampler_names()
    assert {"Euler a", "DPM++ 2M", "DDIM", "UniPC"} <= set(names)
    assert "k_euler_a" in next(one for one in api.get_samplers() if one["name"] == "Euler a")["aliases"]
    schedulers = {one["name"]: one for one in api.get_schedulers()}
    assert set(api.util_get_scheduler_names()) == set(schedulers)
    assert schedulers["karras"]["label"] == "Karras" and schedulers["karras"]["default_rho"] == 7.0
    assert set(schedulers["karras"]) == {"name", "label", "aliases", "default_rho", "need_inner_model"}


def test_the_other_lists(api):
    modes = [one["name"] for one in api.get_latent_upscale_modes()]
    assert modes == [
        "Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)",
        "Latent (nearest-exact)",
    ]  # fmt: skip
    upscalers = {one["name"]: one for one in api.get_upscalers()}
    assert {"None", "Lanczos", "Nearest"} <= set(upscalers)
    assert set(upscalers["None"]) == {"name", "model_name", "model_path", "model_url", "scale"}
    assert api.get_hypernetworks() == api.get_face_restorers() == api.get_realesrgan_models() == []
    assert api.get_artists() == api.get_artist_categories() == []
    assert api.get_sd_vae() == [] and api.get_prompt_styles() == []
    assert api.get_loras() == [] and api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_memory()["ram"]["total"] > 0
    scripts = api.get_scripts()
    assert scripts["txt2img"] == [name.lower() for name in scripts["txt2img"]]
    assert {"controlnet", "controlnet m2m"} <= set(scripts["img2img"])


def test_extras_png_info_and_interrogate(api, photo):
    assert api.extra_single_image(photo, upscaler_1="Lanczos", upscaling_resize=2).image.size == (128, 128)
    both = api.extra_batch_images([photo, photo], upscaler_1=webuiapi.Upscaler.Nearest, upscaling_resize=1.5)
    assert [image.size for image in both.images] == [(96, 96)] * 2
    drawn = api.txt2img(**SMALL, seed=5)
    told = api.png_info(drawn.image)
    assert told.info == drawn.info["infotexts"][0] and told.parameters["Seed"] == "5"
    with pytest.raises(RuntimeError) as failed:
        api.interrogate(photo, model="nobody")
    assert failed.value.args[0] == 404


def test_controlnets_routes(api, photo):
    assert api.controlnet_version() == 3
    assert isinstance(api.controlnet_model_list(), list)
    assert "canny" in api.controlnet_module_list()
    found = api.controlnet_detect(
        [photo], module="canny", threshold_a=50, threshold_b=100
    )  # as controlnet_images
    assert len(found.images) == 1


def test_a_user_who_signs_in_later(tmp_path):
    with served_api(tmp_path, Door(users={"me": "a:b,c"})) as served:
        api = webuiapi.WebUIApi(port=served.server.port)  # asks for /scripts without a password: no harm
        assert api.has_controlnet is False
        api.set_auth("me", "a:b,c")
        assert api.has_controlnet is True
        assert api.get_options()["samples_format"] == "png"
