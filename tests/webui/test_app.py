"""The page on a real port, asked through its HTTP API; the door; stopping."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.infotext import read_record
from fastsd_lib.generation.jobs import Order
from fastsd_lib.generation.request import GenerationRequest

ORDER = {
    "prompt": "a photo of a red star",
    "negative_prompt": "cat",
    "steps": 3,
    "guidance_scale": 7.5,
    "sampler": "ddim",
    "count": 2,
    "seed": 3,
    "width": 64,
    "height": 64,
}


@pytest.fixture(scope="module")
def engine(tiny_pipeline):
    from fastsd_lib.generation.engine import load_engine

    return load_engine(tiny_pipeline, device="cpu")


@pytest.fixture(scope="module")
def service(engine) -> Iterator:
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf

    running = Service(Shelf.of(engine))
    yield running
    running.close()


@pytest.fixture(scope="module")
def server(service, tmp_path_factory) -> Iterator:
    from fastsd_lib.webui.app import start

    running = start(service, port=None, pictures_dir=tmp_path_factory.mktemp("pictures"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    from gradio_client import Client

    return Client(server.url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))


def test_pictures_come_with_progress_and_are_those_of_the_engine(client, engine):
    job = client.submit(**ORDER, api_name="/generate")
    pictures, state, record, *_ = job.result(timeout=60)
    lines = [output[1] for output in job.outputs()]
    assert any("Step 2 of 3" in line and 'style="width:66.7%"' in line for line in lines)
    assert "2 pictures in" in state
    assert record.startswith("a photo of a red star\nNegative prompt: cat\nSteps: 3, Sampler: DDIM")
    request = GenerationRequest(
        ORDER["prompt"], "cat", inference_steps=3, guidance_scale=7.5, seed=3, count=2
    )
    for shown, own in zip(pictures, engine.generate(request), strict=True):
        with Image.open(shown["image"]) as image:
            assert image.tobytes() == own.image.tobytes()
        assert read_record(Path(shown["image"]))["seed"] == own.seed


def test_errors_reach_the_browser_with_their_way_out(client):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=r"width_px is 66.*multiples of 4.\ntake 64 or 68"):
        client.predict(**ORDER | {"width": 66}, api_name="/generate")
    assert client.predict(**ORDER, api_name="/generate")  # and the next order is drawn


def test_only_the_pictures_folder_is_served(server, tmp_path):
    (tmp_path / "secret.txt").write_text("mine")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server.url}gradio_api/file={tmp_path / 'secret.txt'}")
    assert refused.value.code == 403


def test_the_page_fetches_nothing_from_elsewhere_and_is_not_shared(server):
    page = urllib.request.urlopen(server.url).read().decode()
    assert "fonts.googleapis" not in page
    assert "huggingface.co" not in page
    config = json.loads(urllib.request.urlopen(f"{server.url}config").read())
    assert config["run_history"] is False and config["analytics_enabled"] is False
    assert config["show_error"] is False and config["max_file_size"] in (32 * 1000**2, 32 * 2**20)


def test_a_taken_port_says_so(service, server):
    from fastsd_lib.webui.app import start

    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"Port {port} on 127.0.0.1 is taken") as error:
        start(service, port=port)
    assert "--port 7861" in error.value.fix


def test_behind_a_password_gradio_answers_nothing_without_it(service):
    from gradio_client import Client

    from fastsd_lib.webui.app import start
    from fastsd_lib.webui.door import Door

    guarded = start(service, Door(users={"me": "long: enough"}), port=None)
    try:
        open_in_gradio = (
            "cancel",
            "heartbeat/x",
            "stream/x",
            "startup-events",
            "app_id",
            "queue/data",
            "info",
        )
        for route in (
            "config",
            "theme.css",
            "static/img/logo.svg",
            *(f"gradio_api/{one}" for one in open_in_gradio),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(guarded.url + route)
            assert refused.value.code == 401
        logged_in = Client(guarded.url, auth=("me", "long: enough"), verbose=False)
        assert "1 picture in" in logged_in.predict(**ORDER | {"count": 1}, api_name="/generate")[1]
    finally:
        guarded.close()
    with pytest.raises(urllib.error.URLError):  # closed is closed
        urllib.request.urlopen(guarded.url, timeout=2)


def test_settings_are_not_served_even_from_the_pictures_folder(service, monkeypatch, tmp_path):
    from fastsd_lib.webui.app import start

    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_secret")
    (tmp_path / "picture.txt").write_text("a picture")
    running = start(service, port=None, pictures_dir=tmp_path)
    try:
        with urllib.request.urlopen(f"{running.url}gradio_api/file={tmp_path / 'picture.txt'}") as reply:
            assert reply.read() == b"a picture" and "sandbox" in reply.headers["content-security-policy"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{running.url}gradio_api/file={token}")
        assert refused.value.code == 403
    finally:
        running.close()


async def _all(iterator) -> list:
    return [news async for news in iterator]


def test_stop_ends_this_browsers_order_and_no_other(service):
    from fastsd_lib.webui.drawing import Orders

    orders = Orders(service)
    long = GenerationRequest("a", inference_steps=1000, guidance_scale=1)
    short = replace(long, inference_steps=4)

    async def both() -> tuple[list, list]:
        mine = orders.draw(Order(long), "mine")
        first = await anext(mine)
        other = asyncio.create_task(_all(orders.draw(Order(short), "other")))
        while first.state == "waiting":
            first = await anext(mine)
        orders.stop("mine")
        return await _all(mine), await other

    (*events, pictures), others = asyncio.run(both())
    assert pictures == [] and len(events) < 100
    assert len(others[-1]) == 1
    assert service.jobs() == []


def test_a_browser_that_leaves_frees_the_engine(service, engine):
    from fastsd_lib.webui.drawing import Orders

    orders, drawn = Orders(service), []
    hook = engine.parts.unet.register_forward_hook(lambda *_: drawn.append(1))

    async def leave() -> list:
        left = orders.draw(Order(GenerationRequest("a", inference_steps=1000, guidance_scale=1)), "left")
        await anext(left)
        await left.aclose()
        return await _all(orders.draw(Order(GenerationRequest("a", inference_steps=1)), "next"))

    try:
        *_, pictures = asyncio.run(leave())
    finally:
        hook.remove()
    assert len(pictures) == 1 and len(drawn) < 100
