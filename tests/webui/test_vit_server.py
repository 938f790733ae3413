"""The ViT server on a real port: the answers of the model it serves, in batches, within limits, behind the door."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from vit_serving import EXACT, Gate, asking, make_vit, photos, served

from fastsd_lib.core.errors import UserError
from fastsd_lib.vit.calibration_file import write_facts
from fastsd_lib.vit.classify import Classifier
from fastsd_lib.vit.config import ClassifyConfig, Features
from fastsd_lib.vit.model import open_model
from fastsd_lib.vit.runner import open_runner
from fastsd_lib.vit.transform import Transform

JPEG = {"content-type": "image/jpeg"}
TEMPERATURE = 1.7


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = make_vit(tmp_path_factory.mktemp("model") / "animals")
    write_facts(folder, temperature=TEMPERATURE)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    return photos(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture(scope="module")
def running(model):
    with served(model) as found:
        yield found


@pytest.fixture(scope="module")
def client(running):
    with asking(running) as found:
        yield found


@pytest.fixture(scope="module")
def told(model, pictures) -> list[dict[str, float]]:
    """What the command line tells of each picture."""
    with Classifier(model, EXACT, ClassifyConfig(top_k=3)) as classifier:
        return [
            dict(zip(found.labels, found.scores, strict=True))
            for found in classifier.classify(list(pictures))
        ]


def _text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _same(answer: list[dict], wanted: dict[str, float]) -> None:
    assert [one["label"] for one in answer] == list(wanted)  # best first
    for one in answer:
        assert one["score"] == pytest.approx(wanted[one["label"]], abs=1e-5)


# ------------------------------------------------------------------ answers


def test_a_picture_has_the_labels_that_the_classifier_tells_whichever_way_it_is_sent(client, pictures, told):
    file = pictures[0]
    ways = [
        client.post("/", content=file.read_bytes(), headers=JPEG),
        client.post(
            "/predict", content=file.read_bytes(), headers={"content-type": "application/octet-stream"}
        ),
        client.post("/predict", json={"inputs": _text(file)}),
        client.post("/", json={"inputs": "data:image/jpeg;base64," + _text(file), "parameters": {}}),
    ]
    for answer in ways:
        assert answer.status_code == 200, answer.text
        _same(answer.json(), told[0])


def test_a_list_is_answered_in_its_order(client, pictures, told):
    answer = client.post("/predict", json={"inputs": [_text(one) for one in pictures]}).json()
    for found, wanted in zip(answer, told, strict=True):
        _same(found, wanted)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_of_the_toolkit_is_read(client, pictures, kind, told):
    file = io.BytesIO()
    Image.open(pictures[0]).save(file, kind)
    answer = client.post("/", content=file.getvalue(), headers={"content-type": f"image/{kind.lower()}"})
    assert answer.status_code == 200, answer.text
    scores = {one["label"]: one["score"] for one in answer.json()}
    assert scores == pytest.approx(told[0], abs=0.1 if kind == "GIF" else 0.02)


def test_functions_and_top_k_mean_what_they_mean_in_the_pipeline_of_transformers(
    client, model, pictures, tmp_path
):
    from transformers import pipeline

    small = tmp_path / "small.png"  # large JPEGs are decoded at a smaller size here
    Image.open(pictures[1]).resize((48, 40)).save(small)
    witness = pipeline("image-classification", model=str(model))
    for function in ("softmax", "sigmoid", "none"):
        wanted = {one["label"]: one["score"] for one in witness(str(small), function_to_apply=function)}
        body = {"inputs": _text(small), "parameters": {"function_to_apply": function, "top_k": 2}}
        answer = client.post("/predict", json=body).json()
        _same(answer, dict(list(wanted.items())[:2]))
        address = f"/predict?top_k=2&function_to_apply={function}"
        sent = client.post(address, content=small.read_bytes(), headers={"content-type": "image/png"})
        assert sent.json() == answer


def test_the_client_of_huggingface_hub_works_unchanged(running, pictures, told):
    from huggingface_hub import InferenceClient

    asked = InferenceClient(model=running.url.rstrip("/"))
    plain = asked.image_classification(str(pictures[2]))
    _same([{"label": one.label, "score": one.score} for one in plain], told[2])
    first = asked.image_classification(pictures[2].read_bytes(), top_k=1, function_to_apply="softmax")
    assert [one.label for one in first] == list(told[2])[:1]


def test_features_are_those_of_the_model_and_of_length_1_on_request(client, model, pictures):
    opened = open_model(model)
    runner = open_runner(opened, Features(), EXACT)
    transform = Transform.of(opened)
    wanted = runner.run(np.stack([transform.open_and_apply(one) for one in pictures[:3]]))
    runner.close()
    answer = client.post("/embed", json={"inputs": [_text(one) for one in pictures[:3]]}).json()
    np.testing.assert_allclose(answer, wanted, atol=1e-5)
    one = client.post("/embed?normalize=true", content=pictures[0].read_bytes(), headers=JPEG).json()
    np.testing.assert_allclose(one, wanted[0] / np.linalg.norm(wanted[0]), atol=1e-5)


def test_64_clients_get_their_own_answers_and_share_calls_of_the_model(model, pictures, told):
    with served(model) as running, asking(running, limits=httpx.Limits(max_connections=64)) as client:

        def ask(number: int) -> list[list[dict]]:
            file = pictures[number % len(pictures)]
            return [client.post("/", content=file.read_bytes(), headers=JPEG).json() for _ in range(3)]

        with ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(ask, range(64)))
        sizes = running.service.batchers["labels"].sizes
    for number, found in enumerate(answers):
        for answer in found:
            _same(answer, told[number % len(pictures)])
    assert sum(size * times for size, times in sizes.items()) == 64 * 3
    assert sum(sizes.values()) < 64 * 3 / 2 and max(sizes) > 4


def test_one_bad_picture_refuses_its_own_request_and_no_other(model, pictures, told):
    with served(model) as running, asking(running) as client:
        gate = Gate(running)
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(client.post, "/", content=pictures[0].read_bytes(), headers=JPEG)
            gate.entered.wait(30)
            good = [
                pool.submit(client.post, "/", content=pictures[n].read_bytes(), headers=JPEG) for n in (1, 2)
            ]
            bad = pool.submit(client.post, "/", content=pictures[1].read_bytes()[:900], headers=JPEG)
            assert bad.result().status_code == 422
            mixed = {"inputs": [_text(pictures[3]), "eA=="]}
            refused = client.post("/", json=mixed)
            assert refused.status_code == 422 and "inputs[1]" in refused.json()["error"]
            gate.open()
            for number, answer in enumerate([first, *good]):
                _same(answer.result().json(), told[number])


# ------------------------------------------------------------------ limits


def test_without_room_the_server_says_when_to_come_again(model, pictures):
    with served(model, queue_limit=3) as running, asking(running) as client, ThreadPoolExecutor(8) as pool:
        gate = Gate(running)
        asked = [
            pool.submit(client.post, "/", content=pictures[0].read_bytes(), headers=JPEG) for _ in range(3)
        ]
        gate.entered.wait(30)
        _until(lambda: running.service._pictures == 3)
        refused = client.post("/", content=pictures[0].read_bytes(), headers=JPEG)
        assert refused.status_code == 503 and refused.json()["error_type"] == "busy"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        gate.open()
        assert [one.result().status_code for one in asked] == [200, 200, 200]
        assert client.post("/", content=pictures[0].read_bytes(), headers=JPEG).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(model, pictures):
    with served(model, timeout_s=0.2) as running, asking(running) as client:
        gate = Gate(running)
        late = client.post("/", content=pictures[0].read_bytes(), headers=JPEG)
        assert late.status_code == 504 and late.json()["error_type"] == "timeout"
        gate.open()
        _until(lambda: running.service.under_way == 0)


def test_what_a_client_that_left_wanted_is_not_computed(model, pictures):
    with served(model) as running, asking(running) as client, ThreadPoolExecutor(4) as pool:
        gate = Gate(running)
        first = pool.submit(client.post, "/", content=pictures[0].read_bytes(), headers=JPEG)
        gate.entered.wait(30)
        body = pictures[1].read_bytes()
        with socket.create_connection(("127.0.0.1", running.server.port)) as line:
            head = f"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            line.sendall(head.encode() + body)
            _until(lambda: running.service.batchers["labels"].waiting == 1)
        _until(lambda: running.service.batchers["labels"].waiting == 0)
        gate.open()
        assert first.result().status_code == 200
        assert dict(running.service.batchers["labels"].sizes) == {1: 1}


def test_bodies_of_all_requests_together_have_a_limit(model, pictures):
    body = pictures[0].read_bytes()
    with served(model, body_mib=1, bodies_mib=1) as running, asking(running) as client:
        gate = Gate(running)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(client.post, "/", content=body, headers=JPEG)
            gate.entered.wait(30)
            chunks = iter([body])  # of unknown length: it is counted as the longest
            refused = client.post("/", content=chunks, headers=JPEG)
            assert refused.status_code == 503 and "room" in refused.json()["error"]
            gate.open()
            assert first.result().status_code == 200
        assert client.post("/", content=iter([body]), headers=JPEG).status_code == 200


def test_addresses_are_fetched_only_where_allowed_and_never_from_this_network(model, client):
    refused = client.post("/", json={"inputs": "https://example.org/cat.jpg"})
    assert refused.status_code == 422 and "fetches none" in refused.json()["error"]
    with served(model, fetch_urls=True) as running, asking(running) as open_client:
        for address in (
            "https://127.0.0.1/cat.jpg",
            "https://[::1]:8443/cat.jpg",
            "https://169.254.169.254/latest/meta-data",
            "http://127.0.0.1:22/",
            "file:///etc/passwd",
        ):
            answer = open_client.post("/", json={"inputs": address})
            assert answer.status_code == 422 and "in base64" in answer.json()["error"], answer.text


# ------------------------------------------------------------------ what a host asks


def test_a_host_learns_health_model_and_numbers(model, pictures):
    with served(model) as running, asking(running) as client:
        assert client.get("/health").text == "Ok" and client.get("/").text == "Ok"
        assert client.get("/healthz").json() == {"status": "ok", "requests": 0}
        info = client.get("/info").json()
        assert info["model"] == "animals" and info["label_names"] == ["cat", "dog", "fish"]
        assert info["calibrated"] and info["runner"] == "torch fp32" and not info["limits"]["fetches_urls"]
        client.post("/", content=pictures[0].read_bytes(), headers=JPEG)
        client.post("/predict", json={"inputs": [_text(one) for one in pictures[:5]]})
        client.post("/predict", json={"inputs": "no picture"})
        client.get("/wp-login.php")
        found = client.get("/metrics")
        assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
        values = _prometheus(found.text)
    assert values['fastsd_vit_requests_total{route="/",status="200"}'] == 2
    assert values['fastsd_vit_requests_total{route="/predict",status="422"}'] == 1
    assert values['fastsd_vit_requests_total{route="other",status="404"}'] == 1
    assert values['fastsd_vit_pictures_total{output="labels"}'] == 6
    assert values['fastsd_vit_request_seconds_bucket{route="/predict",le="+Inf"}'] == 2
    assert values["fastsd_vit_decode_seconds_count"] == 6
    batches = {key: value for key, value in values.items() if key.startswith("fastsd_vit_batches_total")}
    sizes = [int(re.search(r'pictures="(\d+)"', key)[1]) * times for key, times in batches.items()]
    assert sum(sizes) == 6


def _prometheus(text: str) -> dict[str, float]:
    """Samples by name and labels; every line is a sample or a comment, every sample has a type before it."""
    values, typed = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert kind in ("counter", "gauge", "histogram")
            typed.add(name)
        elif not line.startswith("# HELP "):
            found = re.fullmatch(r'([a-z_]+)(\{(?:[a-z_]+="[^"\n]*",?)+\})? ([0-9.e+-]+)', line)
            assert found, line
            assert found[1] in typed or re.sub("_(bucket|sum|count)$", "", found[1]) in typed, line
            values[found[1] + (found[2] or "")] = float(found[3])
    return values


def test_every_route_stands_in_openapi_and_the_page_of_it_loads_nothing_from_elsewhere(client):
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {"/predict", "/embed", "/health", "/healthz", "/info", "/metrics"}
    route = schema["paths"]["/predict"]["post"]
    assert set(route["requestBody"]["content"]) == {"application/json", "image/*", "application/octet-stream"}
    body = route["requestBody"]["content"]["application/json"]["schema"]
    assert {"inputs", "parameters"} == set(body["properties"]) and "$ref" not in str(body)
    assert {"200", "413", "415", "422", "503", "504"} <= set(route["responses"])
    page = client.get("/docs", headers={"accept": "text/html"})
    assert page.status_code == 200 and not re.search(r"(src|href)=\"https?:", page.text)
    sent = client.get("/", headers={"accept": "text/html"}, follow_redirects=False)
    assert sent.status_code == 307 and sent.headers["location"] == "docs"


def test_a_request_keeps_its_id_and_gets_one_otherwise(client, pictures):
    kept = client.post("/", content=b"x", headers={**JPEG, "x-request-id": "abc-123"})
    assert kept.headers["x-request-id"] == kept.json()["request_id"] == "abc-123"
    for strange in ("a b", "x" * 200, "<script>"):
        answer = client.get("/health", headers={"x-request-id": strange})
        assert re.fullmatch(r"[0-9a-f]{16}", answer.headers["x-request-id"])


# ------------------------------------------------------------------ the door, the end


def test_with_a_password_nothing_is_answered_without_it(model, pictures):
    with served(model, user="ann", password="a long password") as running, asking(running) as client:
        body = pictures[0].read_bytes()
        for path in ("/predict", "/", "/embed"):
            assert client.post(path, content=body, headers=JPEG).status_code == 401
        for path in ("/info", "/metrics", "/openapi.json"):
            assert client.get(path).status_code == 401
        assert client.post("/", content=body, headers=JPEG, auth=("ann", "wrong")).status_code == 401
        assert (
            client.post("/", content=body, headers=JPEG, auth=("ann", "a long password")).status_code == 200
        )


def test_a_public_server_always_has_a_password_and_loopback_is_free(model):
    with served(model, tunnel=True) as running:
        line = " ".join(running.announcement)
        user, password = re.search(r"User: (\S+)\s+Password: (\S+)", line).groups()
        with asking(running) as client:
            assert client.get("/info").status_code == 401
            assert client.get("/info", auth=(user, password)).status_code == 200
    with served(model) as running, asking(running) as client:
        assert running.announcement == [] and client.get("/info").status_code == 200


def test_a_port_that_is_taken_is_named_with_a_way_out(model, running):
    with pytest.raises(UserError, match="is taken") as caught, served(model, port=running.server.port):
        pass
    assert "--port" in caught.value.fix


def test_closing_answers_what_runs_and_refuses_what_comes(model, pictures):
    with served(model) as running, asking(running) as client, ThreadPoolExecutor(4) as pool:
        gate = Gate(running)
        first = pool.submit(client.post, "/", content=pictures[0].read_bytes(), headers=JPEG)
        gate.entered.wait(30)
        closing = threading.Thread(target=running.close)
        closing.start()
        _until(lambda: running.service.ending)
        refused = client.post("/", content=pictures[0].read_bytes(), headers=JPEG)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert client.get("/health").status_code == 503
        gate.open()
        assert first.result().status_code == 200
        closing.join(30)
        with pytest.raises(httpx.ConnectError):
            client.get("/health")


PROGRAM = """
import sys, time
from fastsd_lib.vit.config import RunnerConfig
from fastsd_lib.webui.vit_server.config import ServeConfig
from fastsd_lib.webui.vit_server.running import serve
running = serve(sys.argv[1], ServeConfig(port=None), RunnerConfig("torch", threads=1))
batcher = running.service.batchers["labels"]
run = batcher.runner.run
class Slow:
    name, batch_size = "slow", 16
    def run(self, pixels):
        print("BEGUN", flush=True)
        time.sleep(1.0)
        return run(pixels)
batcher.runner = Slow()
print("HEAVY", [name for name in ("gradio", "diffusers") if name in sys.modules], flush=True)
print("PORT", running.server.port, flush=True)
running.wait_for_the_end()
print("ENDED", flush=True)
"""


def test_sigterm_ends_the_program_after_the_answers_that_were_under_way(model, pictures):
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(model)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    try:
        assert program.stdout.readline().strip() == "HEAVY []"
        port = int(program.stdout.readline().split()[1])
        with ThreadPoolExecutor(1) as pool:
            url, body = f"http://127.0.0.1:{port}/", pictures[0].read_bytes()
            asked = pool.submit(httpx.post, url, content=body, headers=JPEG, trust_env=False, timeout=60)
            assert program.stdout.readline().strip() == "BEGUN"
            program.send_signal(signal.SIGTERM)
            assert asked.result().status_code == 200
        assert program.stdout.readline().strip() == "ENDED"
        assert program.wait(30) == 0
    finally:
        program.kill()


def _until(true, patience_s: float = 30.0) -> None:
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)
