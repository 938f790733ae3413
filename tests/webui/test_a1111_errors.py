"""What A1111 answers with 500, or silently replaces: here a 4xx whose `detail` names the value."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import pytest
from api_server import SMALL, encoded, served_api
from PIL import Image

PICTURE = encoded(Image.new("RGB", (64, 64), "red"))


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("a1111")) as served:
        yield served


def refused(answer, status: int, *words: str) -> str:
    assert answer.status_code == status, answer.text[:500]
    body = answer.json()
    assert set(body) >= {"error", "detail", "body", "errors"}
    assert isinstance(body["detail"], str)
    for word in words:
        assert word in body["detail"]
    assert "Traceback" not in answer.text
    return body["detail"]


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        # the table of A1111's errors, row by row
        ({"steps": "many"}, 422, ["steps", "many"]),
        ({"sampler_name": "Euler b"}, 404, ["'Euler b'", "Did you mean 'Euler"]),
        ({"sampler_index": "nope", "sampler_name": None}, 404, ["'nope'"]),
        ({"scheduler": "Karas"}, 404, ["'Karas'", "Karras"]),
        ({"script_name": "loopback"}, 422, ["'loopback' not found", "prompt matrix", "x/y/z plot"]),
        ({"alwayson_scripts": {"ADetailer": {"args": []}}}, 422, ["always on script ADetailer not found"]),
        (
            {"alwayson_scripts": {"prompt matrix": {"args": []}}},
            422,
            ["always on script prompt matrix not found"],
        ),
        (
            {"enable_hr": True, "hr_upscaler": "R-ESRGAN 4x+"},
            422,
            ["hr_upscaler is 'R-ESRGAN 4x+'. Take one of: Latent, Latent (antialiased),"],
        ),
        ({"width": 1_000_000}, 422, ["width", "1000000", "8192"]),
        ({"enable_hr": True, "firstphase_width": 99_999}, 422, ["firstphase_width", "99999", "8192"]),
        ({"enable_hr": True, "firstphase_height": -5}, 422, ["firstphase_height is -5", "at least 8"]),
        ({"width": 8192, "height": 8192}, 422, ["8192 x 8192", "16.8 million pixels"]),
        ({"batch_size": 100_000}, 422, ["batch_size", "100000"]),
        ({"batch_size": 100, "n_iter": 100}, 422, ["batch_size 100 x n_iter 100"]),
        # what A1111 replaces silently
        ({"override_settings": {"sd_model_checkpoint": "embeded"}}, 404, ["'embeded'", "nearest: embedded"]),
        ({"override_settings": {"sd_vae": "no.safetensors"}}, 404, ["sd_vae", "'no.safetensors'"]),
        (
            {"override_settings": {"CLIP_stop_at_last_layers": 99}},
            422,
            ["CLIP_stop_at_last_layers is 99", "1 to 12"],
        ),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, 422, ["eta_noise_seed_delta is 31337"]),
        ({"override_settings": {"randn_source": "NV"}}, 422, ["randn_source is 'NV'"]),
        ({"override_settings": {"samples_format": "tiff"}}, 422, ["samples_format is 'tiff'", "webp"]),
        ({"restore_faces": True}, 422, ["restore_faces"]),
        ({"s_min_uncond": 1.5}, 422, ["s_min_uncond is '1.5'"]),
        ({"refiner_checkpoint": "nope"}, 404, ["refiner_checkpoint", "'nope'"]),
        ({"enable_hr": True, "hr_checkpoint_name": "nope"}, 404, ["hr_checkpoint_name", "'nope'"]),
        ({"enable_hr": True, "hr_sampler_name": "nope"}, 404, ["second pass", "'nope'"]),
        ({"enable_hr": True, "hr_scale": 100}, 422, ["hr_scale is 100"]),
        ({"enable_hr": True, "hr_resize_x": -8}, 422, ["hr_resize_x is -8"]),
        ({"enable_hr": True, "hr_resize_x": 10**6}, 422, ["the second pass's size is 1000000"]),
        ({"enable_hr": True, "hr_second_pass_steps": 10**6}, 422, ["hr_second_pass_steps is 1000000"]),
        # numbers that are none, values beyond every model
        ({"cfg_scale": "nan"}, 422, ["cfg_scale"]),
        ({"denoising_strength": 1.5}, 422, ["denoising_strength", "1.5"]),
        ({"steps": 0}, 422, ["steps", "0"]),
        ({"steps": 10**9}, 422, ["steps"]),
        ({"seed": -2}, 422, ["seed", "-2"]),
        ({"seed": 2**32 - 1, "batch_size": 2}, 422, ["seed", "4294967296"]),
        ({"seed": 2**70}, 422, ["seed"]),
        ({"subseed_strength": 2}, 422, ["subseed_strength"]),
        ({"eta": -1}, 422, ["eta"]),
        ({"s_tmax": -1}, 422, ["s_tmax"]),
        ({"prompt": "x" * 200_000}, 422, ["prompt", "100000"]),
        ({"prompt": "<lora:a:1>" * 100}, 422, ["prompt has 100 tags"]),
        ({"prompt": ["a"]}, 422, ["prompt"]),
        ({"styles": "oil"}, 422, ["styles"]),
        ({"script_args": [0] * 5000}, 422, ["script_args"]),
        ({"prompt": "a <lora:nothing_like_it:1>"}, 422, ["nothing_like_it"]),
    ],
)
def test_text_to_image_names_what_it_refuses(api, sent, status, words):
    refused(api.post("/sdapi/v1/txt2img", SMALL | sent), status, *words)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_should_not_carry(api, number):
    with api.client() as client:
        answer = client.post(
            "/sdapi/v1/txt2img",
            content=f'{{"cfg_scale": {number}}}',
            headers={"content-type": "application/json"},
        )
    refused(answer, 422, "cfg_scale")


def huge_png(width: int, height: int) -> str:
    """A picture of a few bytes that would be gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(data).decode()


def torn() -> str:
    return base64.b64encode(base64.b64decode(PICTURE)[:60]).decode()


def tiff() -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "TIFF")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({}, 404, ["Init image not found"]),
        ({"init_images": []}, 404, ["Init image not found"]),
        ({"init_images": None}, 404, ["Init image not found"]),
        ({"init_images": [""]}, 422, ["init_images[0] is empty"]),
        ({"init_images": ["%%%"]}, 422, ["Invalid encoded image", "init_images[0]", "'%%%'"]),
        ({"init_images": ["AAAA"]}, 422, ["Invalid encoded image", "init_images[0]"]),
        ({"init_images": [torn()]}, 422, ["Invalid encoded image"]),
        ({"init_images": [tiff()]}, 422, ["Invalid encoded image"]),
        ({"init_images": [huge_png(30_000, 30_000)]}, 422, ["more than 178 million", "64 million"]),
        ({"init_images": [huge_png(9000, 9000)]}, 422, ["9000 x 9000"]),
        ({"init_images": [huge_png(60_000, 8)]}, 422, ["60000 x 8"]),
        ({"init_images": ["/etc/passwd"]}, 422, ["Invalid encoded image"]),
        ({"init_images": ["file:///etc/passwd"]}, 422, ["fetches none"]),
        ({"init_images": ["http://127.0.0.1:1/a.png"]}, 422, ["'http://127.0.0.1:1/a.png'", "fetches none"]),
        ({"init_images": [PICTURE], "mask": "%%%"}, 422, ["mask", "%%%"]),
        (
            {"init_images": [PICTURE], "mask": encoded(Image.new("L", (64, 64), 0))},
            422,
            ["mask marks nothing"],
        ),
        (
            {"init_images": [PICTURE], "mask": PICTURE, "mask_blur_x": 9},
            422,
            ["mask_blur_x is 9", "mask_blur_y 4"],
        ),
        ({"init_images": [PICTURE], "mask_blur": 1000}, 422, ["mask_blur", "1000"]),
        ({"init_images": [PICTURE], "inpainting_fill": 4}, 422, ["inpainting_fill", "4"]),
        ({"init_images": [PICTURE], "resize_mode": 9}, 422, ["resize_mode", "9"]),
        (
            {"init_images": [PICTURE], "initial_noise_multiplier": 0.5},
            422,
            ["initial_noise_multiplier is '0.5'"],
        ),
        ({"init_images": [PICTURE], "latent_mask": PICTURE}, 422, ["latent_mask"]),
        ({"init_images": [PICTURE, "%%%"]}, 422, ["init_images[1]"]),
    ],
)
def test_image_to_image_names_what_it_refuses(api, sent, status, words):
    refused(api.post("/sdapi/v1/img2img", SMALL | sent), status, *words)


def test_picture_fields_that_programs_always_send_are_harmless(api):
    more = {"image_cfg_scale": 1.5, "initial_noise_multiplier": 1, "mask": None, "refiner_checkpoint": "None",
            "refiner_switch_at": 0.8, "restore_faces": False, "s_min_uncond": 0, "hr_upscaler": "gone",
            "latent_mask": None, "script_name": "None", "override_settings": {"sd_hypernetwork": "None"}}  # fmt: skip
    answer = api.post("/sdapi/v1/img2img", SMALL | {"init_images": [PICTURE]} | more)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'"a"', b"null", b"\xff\xfe"])
def test_bodies_that_are_no_request(api, body):
    with api.client() as client:
        answer = client.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    refused(answer, answer.status_code)


def test_pydantics_own_list_is_kept_beside_the_sentence(api):
    body = api.post("/sdapi/v1/txt2img", {"steps": "many", "width": "wide"}).json()
    assert [one["loc"] for one in body["errors"]] == [["body", "steps"], ["body", "width"]]
    assert body["errors"][0]["type"] == "int_parsing"


def test_a_full_queue_is_429_and_says_when_to_come_again(api):
    from dataclasses import replace

    service = api.service
    usual = service.limits
    service._queue.limits = replace(usual, most_waiting=0)
    service.pause()
    try:
        answer = api.post("/sdapi/v1/txt2img", SMALL)
    finally:
        service._queue.limits = usual
        service.resume()
    refused(answer, 429)
    assert int(answer.headers["retry-after"]) >= 1


def test_more_orders_than_there_is_ever_room_for_are_not_told_to_come_again(api, monkeypatch):
    from fastsd_lib.generation.jobs import QueueLimits

    monkeypatch.setattr(api.service, "limits", QueueLimits(most_waiting=2))
    lines = {"script_name": "prompts from file or textbox", "script_args": [False, False, "start", "a\nb\nc"]}
    answer = api.post("/sdapi/v1/txt2img", SMALL | lines)
    refused(answer, 422, "makes 3 orders", "the most is 2", "send several requests")


def test_a_fault_of_ours_is_500_without_a_trace_and_the_next_request_is_drawn(api, monkeypatch):
    from fastsd_lib.generation import worker

    def broken(*args, **more):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(worker, "make_plan", broken)
    detail = refused(api.post("/sdapi/v1/txt2img", SMALL), 500, "went wrong inside the program")
    assert "secret detail" not in detail
    monkeypatch.undo()
    assert api.post("/sdapi/v1/txt2img", SMALL).status_code == 200


def test_unknown_routes_and_methods_have_the_same_shape(api):
    refused(api.get("/sdapi/v1/nothing"), 404)
    refused(api.get("/sdapi/v1/txt2img"), 405)


def test_nothing_can_be_ended_installed_or_trained_over_http(api):
    for path in ("server-kill", "server-stop", "server-restart"):
        refused(api.post(f"/sdapi/v1/{path}"), 403, f"/sdapi/v1/{path} is switched off")
    for path in ("create/embedding", "create/hypernetwork", "train/embedding", "train/hypernetwork"):
        refused(api.post(f"/sdapi/v1/{path}", {}), 404)
