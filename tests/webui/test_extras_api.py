"""Enlarging, png-info and interrogate over HTTP, as A1111's clients send them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from own_api import client_of, coded, context_of, decoded, picture
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from fastsd_lib.core.model_files import ModelFiles
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.picture_text import read_texts
from fastsd_lib.generation.upscale_nets import CompactNet
from fastsd_lib.models import registry
from fastsd_lib.webui import extras_api
from fastsd_lib.webui.context import ApiLimits

SINGLE, BATCH = "/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images"
TEXT = "a cat\nNegative prompt: a dog\nSteps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 5, Size: 64x64"


@pytest.fixture(scope="module")
def context(tiny_pipeline: ModelFiles, tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    folders = LibraryFolders.under(root)
    folders.upscalers[0].mkdir(parents=True)
    torch.manual_seed(0)
    save_file(CompactNet(8, 2, 2).state_dict(), folders.upscalers[0] / "Twice.safetensors")
    folders.styles[0].write_text('name,prompt,negative_prompt\nbright,"{prompt}, bright",\n')
    made = context_of(tiny_pipeline, folders, limits=ApiLimits(picture_pixels=1_000_000))
    yield made
    made.service.close()


@pytest.fixture(scope="module")
def client(context):
    return client_of(context, extras_api.router)


def with_text(text: str, **more: str) -> str:
    info = PngInfo()
    for name, value in {"parameters": text, **more}.items():
        info.add_text(name, value)
    return coded(picture(), pnginfo=info)


# ------------------------------------------------------------------ enlarging


def test_a1111s_own_request_with_null_for_an_upscaler_passes(client):
    body = {
        "resize_mode": 0, "show_extras_results": True, "gfpgan_visibility": 0, "codeformer_visibility": 0,
        "codeformer_weight": 0, "upscaling_resize": 2, "upscaling_resize_w": 128, "upscaling_resize_h": 128,
        "upscaling_crop": True, "upscaler_1": "Lanczos", "upscaler_2": None, "extras_upscaler_2_visibility": 0,
        "image": coded(picture()),
    }  # fmt: skip
    reply = client.post(SINGLE, json=body)
    assert reply.status_code == 200, reply.text
    larger = decoded(reply.json()["image"])
    assert larger.size == (80, 56)
    expected = picture().resize((80, 56), Image.Resampling.LANCZOS)
    assert larger.tobytes() == expected.tobytes()
    assert reply.json()["html_info"] == "<p>Postprocess upscale by: 2, Postprocess upscaler: Lanczos</p>"
    same = client.post(SINGLE, json={**body, "upscaler_1": None}).json()
    assert decoded(same["image"]).tobytes() == picture().tobytes() and same["html_info"] == ""


def test_a_size_is_covered_and_cut_in_the_middle_or_left_longer(client):
    body = {"image": coded(picture(40, 20)), "resize_mode": 1, "upscaling_resize_w": 60, "upscaling_resize_h": 60,
            "upscaler_1": "Nearest"}  # fmt: skip
    cut = decoded(client.post(SINGLE, json=body).json()["image"])
    longer = decoded(client.post(SINGLE, json={**body, "upscaling_crop": False}).json()["image"])
    assert cut.size == (60, 60) and longer.size == (120, 60)
    assert cut.tobytes() == longer.crop((30, 0, 90, 60)).tobytes()
    wide = {**body, "upscaling_resize_w": 100, "upscaling_resize_h": 20, "upscaling_crop": False}
    assert decoded(client.post(SINGLE, json=wide).json()["image"]).size == (100, 50)


def test_two_upscalers_are_blended_and_a_network_of_the_library_is_one(client):
    def sent(**fields):
        reply = client.post(SINGLE, json={"image": coded(picture()), "upscaling_resize": 2, **fields})
        assert reply.status_code == 200, reply.text
        return np.asarray(decoded(reply.json()["image"]).convert("RGB"), dtype=float)

    lanczos, network = sent(upscaler_1="Lanczos"), sent(upscaler_1="Twice")
    assert abs(lanczos - network).mean() > 1
    both = sent(upscaler_1="Lanczos", upscaler_2="Twice", extras_upscaler_2_visibility=0.25)
    assert abs(both - (0.75 * lanczos + 0.25 * network)).max() <= 1
    unseen = sent(
        upscaler_1="Lanczos", upscaler_2="Twice", extras_upscaler_2_visibility=0, upscale_first=True
    )
    assert np.array_equal(unseen, lanczos)


def test_the_pictures_text_stays_and_says_what_was_done(client):
    body = {"image": with_text(TEXT), "upscaler_1": "Nearest", "upscaling_resize": 1.5}
    data = client.post(SINGLE, json=body).json()["image"]
    assert (
        decoded(data).text["parameters"]
        == f"{TEXT}, Postprocess upscale by: 1.5, Postprocess upscaler: Nearest"
    )


def test_a_turned_photo_is_enlarged_as_viewers_show_it(client):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    reply = client.post(SINGLE, json={"image": coded(picture(), "JPEG", exif=exif), "upscaler_1": "Nearest"})
    assert decoded(reply.json()["image"]).size == (56, 80)


def test_a_batch_is_answered_in_its_order(client):
    images = [picture(16, 16, seed) for seed in range(3)]
    body = {"imageList": [{"data": coded(one), "name": "x"} for one in images], "upscaler_1": "Nearest"}
    reply = client.post(BATCH, json=body).json()
    assert set(reply) == {"html_info", "images"}
    for image, sent in zip(images, reply["images"], strict=True):
        assert decoded(sent).tobytes() == image.resize((32, 32), Image.Resampling.NEAREST).tobytes()


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"image": ""}, 422, "image is empty"),
        ({"image": "bm9uZQ=="}, 422, "Invalid encoded image"),
        ({"image": "!!!"}, 422, "no base64"),
        ({"image": "/etc/passwd"}, 422, "Invalid encoded image"),
        ({"image": "http://127.0.0.1/a.png"}, 422, "this server fetches none"),
        ({"upscaler_1": "ESRGAN"}, 422, "upscaler_1: There is no upscaler 'ESRGAN'"),
        ({"upscaler_2": "../../etc/passwd"}, 422, "upscaler_2: There is no upscaler"),
        ({"gfpgan_visibility": 0.5}, 422, "gfpgan_visibility is 0.5, but this server has no GFPGAN"),
        ({"codeformer_visibility": 1}, 422, "no CodeFormer"),
        ({"upscaling_resize": 0}, 422, "upscaling_resize: Input should be greater than 0"),
        ({"upscaling_resize": -1}, 422, "upscaling_resize"),
        ({"upscaling_resize": 1e9}, 422, "upscaling_resize"),
        ({"resize_mode": 2}, 422, "resize_mode"),
        (
            {"resize_mode": 1, "upscaling_resize_w": 16000, "upscaler_1": "Lanczos"},
            422,
            "the most is 1 million",
        ),
        ({"extras_upscaler_2_visibility": 2}, 422, "extras_upscaler_2_visibility"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(client, fields, status, said):
    body = {"image": coded(picture()), "upscaling_resize": 2, **fields}
    reply = client.post(SINGLE, json=body)
    assert reply.status_code == status and said in reply.json()["detail"], reply.text
    assert set(reply.json()) == {"error", "detail", "body", "errors"}


def test_numbers_that_are_none_and_batches_without_pictures_are_refused(client):
    for text in ('{"image": "x", "upscaling_resize": NaN}', '{"image": "x", "upscaling_resize": Infinity}'):
        reply = client.post(SINGLE, content=text, headers={"content-type": "application/json"})
        assert reply.status_code == 422, reply.text
    assert client.post(BATCH, json={"imageList": []}).status_code == 422
    assert client.post(BATCH, json={}).status_code == 422
    second = client.post(BATCH, json={"imageList": [{"data": coded(picture())}, {"data": "bm8="}]})
    assert second.status_code == 422 and "imageList.1.data" in second.json()["detail"]
    many = client.post(BATCH, json={"imageList": [{"data": "x"}] * 257})
    assert many.status_code == 422 and "256" in many.json()["detail"]


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(client):
    reply = client.post(SINGLE, json={"image": coded(Image.new("1", (4000, 4000)))})
    assert reply.status_code == 422 and "4000 x 4000 pixels; the most is 1 million" in reply.json()["detail"]


def test_enlarging_ends_when_it_takes_too_long(client, monkeypatch):
    monkeypatch.setattr(extras_api, "LONGEST_S", 0.0)
    reply = client.post(SINGLE, json={"image": coded(picture()), "upscaler_1": "Twice"})
    assert reply.status_code == 422 and "takes longer than 0 s; 0% were done" in reply.json()["detail"]


# ------------------------------------------------------------------ png-info


def test_png_info_reads_a1111s_text_and_fills_in_what_may_be_assumed(client):
    found = client.post("/sdapi/v1/png-info", json={"image": with_text(TEXT, Software="x")}).json()
    assert found["info"] == TEXT and found["items"] == {"Software": "x"} and found["program"] == "a1111"
    wanted = {"Prompt": "a cat", "Negative prompt": "a dog", "Steps": "20", "Sampler": "Euler a", "Seed": "5",
              "Size-1": "64", "Size-2": "64", "Clip skip": "1", "Schedule type": "Automatic"}  # fmt: skip
    assert wanted.items() <= found["parameters"].items()


def test_png_info_finds_the_styles_of_the_library(client):
    text = TEXT.replace("a cat", "a cat, bright")
    parameters = client.post("/sdapi/v1/png-info", json={"image": with_text(text)}).json()["parameters"]
    assert parameters["Styles array"] == ["bright"] and parameters["Prompt"] == "a cat"


def test_png_info_reads_other_programs(client):
    info = PngInfo()
    info.add_text("Software", "NovelAI")
    info.add_text("Description", "1girl")
    info.add_text(
        "Comment", json.dumps({"steps": 28, "sampler": "k_euler", "seed": 9, "scale": 11, "uc": "bad"})
    )
    found = client.post("/sdapi/v1/png-info", json={"image": coded(picture(), pnginfo=info)}).json()
    assert found["program"] == "novelai" and found["parameters"]["Prompt"] == "1girl"
    assert found["parameters"]["Seed"] == "9" and found["info"].startswith(
        "1girl\nNegative prompt: bad\nSteps: 28"
    )


def test_png_info_of_a_picture_that_says_nothing_is_empty_and_of_no_picture_refused(client):
    for format_ in ("PNG", "BMP", "JPEG"):
        found = client.post("/sdapi/v1/png-info", json={"image": coded(picture(), format_)})
        assert found.status_code == 200 and found.json()["info"] == "", format_
    assert client.post("/sdapi/v1/png-info", json={"image": ""}).json()["info"] == ""
    refused = client.post("/sdapi/v1/png-info", json={"image": "bm9uZQ=="})
    assert refused.status_code == 422 and "image is no picture" in refused.json()["detail"]


def test_a_jpeg_answer_carries_the_text_too(context, client):
    context.options.change({"samples_format": "jpg"})
    try:
        image = client.post(SINGLE, json={"image": with_text(TEXT), "upscaler_1": "Lanczos"}).json()["image"]
    finally:
        context.options.change({"samples_format": "png"})
    assert decoded(image).format == "JPEG"
    file = io.BytesIO()
    decoded(image).save(file, "PNG")
    found = client.post("/sdapi/v1/png-info", json={"image": image}).json()
    assert found["parameters"]["Postprocess upscaler"] == "Lanczos"
    assert read_texts(file.getvalue()).get("parameters") is None  # it came in EXIF, not in the pixels


# ------------------------------------------------------------------ interrogate


def star() -> Image.Image:
    image = Image.new("RGB", (64, 64), (40, 92, 208))
    points = [
        (32, 8),
        (38, 25),
        (56, 25),
        (42, 36),
        (47, 54),
        (32, 43),
        (17, 54),
        (22, 36),
        (8, 25),
        (26, 25),
    ]
    ImageDraw.Draw(image).polygon(points, fill=(214, 39, 40))
    return image


def test_interrogate_tells_the_embedded_models_own_world(tmp_path):
    context = context_of(registry.base_model(registry.EMBEDDED), LibraryFolders.under(tmp_path))
    try:
        reply = client_of(context, extras_api.router).post(
            "/sdapi/v1/interrogate", json={"image": coded(star())}
        )
    finally:
        context.service.close()
    assert reply.json() == {"caption": "a photo of a red star on a blue background"}


def test_interrogate_says_what_is_missing(client):
    image = coded(picture())
    for body, status, said in (
        ({"image": image}, 422, "put Salesforce/blip-image-captioning-base"),
        ({"image": image, "model": "deepdanbooru"}, 404, "no model 'deepdanbooru'"),
        ({"image": ""}, 404, "Image not found"),
        ({}, 404, "Image not found"),
        ({"image": "bm9uZQ=="}, 422, "Invalid encoded image"),
    ):
        reply = client.post("/sdapi/v1/interrogate", json=body)
        assert reply.status_code == status and said.lower() in reply.json()["detail"].lower(), reply.text


# ------------------------------------------------------------------ under load


def test_a_full_workshop_answers_429_and_empties_again():
    import asyncio
    import threading

    from fastsd_lib.generation.jobs import QueueFull
    from fastsd_lib.webui.errands import Errands

    async def busy():
        errands, gate = Errands(threads=1, most=2), threading.Event()
        first = [asyncio.ensure_future(errands.run(gate.wait, 10)) for _ in range(2)]
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="2 pictures are in work already") as full:
            await errands.run(gate.wait, 10)
        assert full.value.retry_after_s == 5
        gate.set()
        assert await asyncio.gather(*first) == [True, True]
        assert await errands.run(lambda: "again") == "again"

    asyncio.run(busy())
