"""One engine behind three faces: the same seed and settings are the same picture, wherever they are typed."""

from __future__ import annotations

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from fastsd_lib.cli import main
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.workflows import drawing, webui

PROMPT, NEGATIVE = "a photo of a (red star:1.2) [on blue:on green:0.5]", "a cat"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("webui")
    server = webui.start(webui.WebuiConfig(ui=False, folder=folder, device="cpu"), port=None)
    yield server
    server.close()


@pytest.fixture(scope="module")
def engine():
    return drawing.open_engine(device="cpu")


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M Karras", "UniPC"])
def test_python_command_and_api_draw_the_same_picture(sampler, served, engine, tmp_path, capsys):
    request = GenerationRequest(
        PROMPT, NEGATIVE, inference_steps=4, guidance_scale=4, seed=11, count=2, sampler=sampler, clip_skip=2
    )
    python = [picture.image for picture in engine.generate(request)]
    words = ["--negative-prompt", NEGATIVE, "--steps", "4", "--guidance-scale", "4", "--seed", "11"]
    words += ["--count", "2", "--sampler", sampler, "--clip-skip", "2", "--device", "cpu"]
    assert main(["generate", PROMPT, *words, "--out", str(tmp_path)]) == 0
    command = [Image.open(line) for line in capsys.readouterr().out.splitlines()]
    body = {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": 4, "cfg_scale": 4, "seed": 11, "n_iter": 2,
        "sampler_name": sampler, "width": 64, "height": 64,
        "override_settings": {"CLIP_stop_at_last_layers": 2},
    }  # fmt: skip
    answer = httpx.post(f"{served.url}sdapi/v1/txt2img", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    api = [Image.open(io.BytesIO(base64.b64decode(one))) for one in answer.json()["images"]]
    assert len(python) == len(command) == len(api) == 2
    for first, *others in zip(python, command, api, strict=True):
        for other in others:
            difference = np.abs(np.asarray(first, np.int16) - np.asarray(other, np.int16))
            assert difference.max() <= 1  # rounding: the batches differ
    assert np.abs(np.asarray(python[0], np.int16) - np.asarray(python[1], np.int16)).max() > 30
