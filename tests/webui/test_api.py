"""All routes in one app, and the page behind them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui.api import api_app
from fastsd_lib.webui.door import LOOPBACK
from fastsd_lib.webui.options import Options
from fastsd_lib.webui.server import serve_app


@pytest.fixture(scope="module")
def service(tiny_pipeline):
    service = Service(Shelf.of(load_engine(tiny_pipeline, device="cpu")))
    yield service
    service.close()


def test_the_page_is_mounted_last_and_hides_no_route(service, tmp_path):
    import httpx

    from fastsd_lib.webui.app import build_page

    app = api_app(service, settings=Options(), pictures_dir=tmp_path, page=build_page)
    server = serve_app(app, LOOPBACK, None)
    try:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            assert "<!doctype html>" in client.get("/").text[:200].lower()
            assert client.get("/sdapi/v1/progress").json()["progress"] == 0
            assert client.get("/internal/ping").json() == {}
            counted = client.post("/internal/token-count", json={"prompt": "a red star"}).json()
            assert counted["prompt"] == {"tokens": 3, "room": 75}
            answer = client.get("/sdapi/v1/no-such-route")
            assert answer.status_code == 404 and set(answer.json()) >= {"error", "detail", "body", "errors"}
    finally:
        server.close()


def test_the_document_declares_every_refusal(service):
    document = api_app(service).openapi()
    assert document["info"]["title"] == "fastsd" and "/fastsd/v1" in document["info"]["description"]
    for path, methods in document["paths"].items():
        for method, said in methods.items():
            assert {"401", "413", "415", "422", "429"} <= set(said["responses"]), (method, path)
            schema = said["responses"]["422"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}, (method, path)


def test_building_the_app_loads_neither_torch_nor_gradio():
    code = "import sys, fastsd_lib.webui.api; print([m for m in ('torch', 'gradio', 'numpy', 'PIL') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert told.stdout.strip() == "[]", told.stderr
