"""The demands on a new server (webui-api.md, 6.4), each on the whole app as it is served, with all of its routes.

Where a demand is tested already, the test is named here and not repeated:

1. One login over everything: here, on every route there is; test_around_the_door (ways around it as bytes, the routes
   of Gradio and of mounted apps), test_guard (Basic, cookie, compare, throttle), test_app, test_throttle.
2. A tunnel or an open address makes a password: test_door, test_guard (tunnels), test_command.
3. Secrets are masked, no stack traces: here, on every GET route; test_guard (errors, logs), test_a1111_state.
4. Host and Origin, JSON alone, no CORS: here, on every route; test_guard, test_limits.
5. Pictures as base64 alone, nothing is fetched: here, in every picture field; test_fetching (when it is switched on).
6. Caps before decoding: here (formats, bombs, amounts); test_limits (bytes, time), test_a1111_errors (numbers, NaN).
7. Weights: here (the sources); test_upscale, test_ckpt_file, test_control (pickles), test_registry (downloads).
8. Files: here (links, names of saved pictures); test_extra_networks (traversal), test_app (page), test_fastsd_v1
   (the history's file names).
9. No save path, extension, kill or delete over HTTP: here; test_a1111_errors.
10. Extensions cannot be installed at all: here, as there is no such route.
11. Bounded queue, own jobs: here (ids); test_fastsd_v1 (429, owners), test_a1111_state (interrupt),
   test_service (time limit).
12. No code from requests: here (sources, scripts).
"""

from __future__ import annotations

import ast
import asyncio
import base64
import io
import re
import socket
from functools import cache
from pathlib import Path

import pytest
import websockets
from api_server import SMALL, served_api
from guarded import ASKING, PASSWORD, basic
from own_api import coded, picture
from PIL import Image

import fastsd_lib
from fastsd_lib.webui.api import api_app

PACKAGE = Path(fastsd_lib.__file__).parent
SCHEMA = api_app(None).openapi()
ROUTES = [(path, verb.upper()) for path, verbs in SCHEMA["paths"].items() for verb in verbs]
ROUTES += [(path, "GET") for path in ("/docs", "/docs/docs.js", "/docs/docs.css", "/openapi.json")]
WRITING = [(path, verb) for path, verb in ROUTES if verb not in ("GET", "HEAD")]


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "0", path)


@pytest.fixture(scope="module")
def asking(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("asking"), ASKING) as running:
        yield running


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("open")) as running:
        yield running


# ------------------------------------------------------------------ 1, 3, 4: who asks, and what is told


def test_1_every_route_asks_for_the_password_and_so_do_websockets(asking):
    with asking.client() as client:
        for path, verb in ROUTES:
            reply = client.request(verb, filled(path))
            assert reply.status_code == 401, (verb, path)
            assert reply.json()["detail"] == "Not authenticated"
    for path in ("/", "/queue/join", "/fastsd/v1/jobs", "/sdapi/v1/progress"):
        with pytest.raises(websockets.InvalidStatus) as refused:
            asyncio.run(_open_socket(f"ws://127.0.0.1:{asking.server.port}{path}"))
        assert refused.value.response.status_code == 401


async def _open_socket(url: str, **more) -> None:
    async with websockets.connect(url, proxy=None, **more):
        pass


def test_3_no_route_tells_a_secret_or_a_trace(asking):
    secrets = (PASSWORD, "another, of yours")
    with asking.client(auth=basic("me", PASSWORD)) as client:
        for path, verb in ROUTES:
            if verb != "GET":
                continue
            reply = client.get(filled(path))
            assert not any(secret in reply.text for secret in secrets), path
            assert "Traceback" not in reply.text and str(Path.home() / ".config") not in reply.text, path
        wrong = client.post("/sdapi/v1/txt2img", json={"sampler_name": PASSWORD})
        assert wrong.status_code == 404 and "***" in wrong.json()["detail"] and PASSWORD not in wrong.text
        wrong = client.post("/fastsd/v1/jobs", json={"sampler": PASSWORD})
        assert wrong.status_code == 422 and PASSWORD not in wrong.text


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_4_no_route_reads_a_body_that_a_foreign_page_may_send(api, kind):
    with api.client() as client:
        for path, verb in WRITING:
            reply = client.request(
                verb, filled(path), content=b"{}", headers={"Content-Type": kind} if kind else {}
            )
            assert reply.status_code == 415, (verb, path)


def test_4_no_route_answers_other_names_or_pages_of_other_servers(api):
    with api.client() as client:
        for path, verb in ROUTES:
            named = client.request(verb, filled(path), headers={"Host": "evil.example"})
            assert named.status_code == 403 and "not called" in named.json()["detail"], (verb, path)
            asked = client.request(verb, filled(path), headers={"Origin": "http://evil.example"})
            assert asked.status_code == 403, (verb, path)
            assert not [name for name in asked.headers if name.startswith("access-control-")]
    with pytest.raises(websockets.InvalidStatus) as refused:
        asyncio.run(_open_socket(f"ws://127.0.0.1:{api.server.port}/", origin="http://evil.example"))
    assert refused.value.response.status_code == 403


# ------------------------------------------------------------------ 5, 6: pictures


def everywhere(text: str) -> list[tuple[str, object]]:
    """Every body with a place for a picture, with `text` in that place."""
    good = coded(picture(64, 64))
    unit = {"module": "canny", "model": "canny_edges", "image": text}
    drawing = dict(SMALL)
    return [
        ("/sdapi/v1/img2img", {**drawing, "init_images": [text]}),
        ("/sdapi/v1/img2img", {**drawing, "init_images": [good], "mask": text}),
        ("/sdapi/v1/txt2img", {**drawing, "enable_hr": True, "firstpass_image": text}),
        ("/sdapi/v1/txt2img", {**drawing, "alwayson_scripts": {"ControlNet": {"args": [unit]}}}),
        ("/sdapi/v1/txt2img", {**drawing, "alwayson_scripts": {"ControlNet": {"args": [{**unit, "image": {
            "image": good, "mask": text}}]}}}),
        ("/sdapi/v1/txt2img", {**drawing, "alwayson_scripts": {"ControlNet": {"args": [{**unit, "image": good,
            "effective_region_mask": text}]}}}),
        ("/sdapi/v1/extra-single-image", {"image": text}),
        ("/sdapi/v1/extra-batch-images", {"imageList": [{"data": text, "name": "x"}]}),
        ("/sdapi/v1/png-info", {"image": text}),
        ("/sdapi/v1/interrogate", {"image": text}),
        ("/controlnet/detect", {"controlnet_input_images": [text]}),
        ("/controlnet/detect", {"controlnet_module": "inpaint_only", "controlnet_input_images": [good],
                                "controlnet_masks": [text]}),
        ("/fastsd/v1/jobs", {"init": text}),
        ("/fastsd/v1/jobs", {"init": good, "inpaint": {"mask": text}}),
        ("/fastsd/v1/jobs", {"control": [{"image": text}]}),
        ("/fastsd/v1/jobs", {"control": [{"image": good, "mask": text}]}),
        ("/fastsd/v1/jobs", {"a1111": {**drawing, "init_images": [text]}}),
    ]  # fmt: skip


def refused_everywhere(api, text: str) -> None:
    with api.client() as client:
        for path, body in everywhere(text):
            reply = client.post(path, json=body)
            assert reply.status_code in (413, 422), (path, text[:60], reply.status_code, reply.text[:300])
            assert "root:" not in reply.text


def test_5_a_path_is_never_opened(api, tmp_path):
    place = tmp_path / "mine.png"
    picture(64, 64).save(place)
    for text in (str(place), f"file://{place}", "../" * 12 + str(place)[1:], "/etc/passwd"):
        refused_everywhere(api, text)


def test_5_an_address_is_never_fetched(api):
    with socket.create_server(("127.0.0.1", 0)) as watched:
        watched.settimeout(0.2)
        port = watched.getsockname()[1]
        for scheme in ("http", "https", "HTTP", "ftp"):
            refused_everywhere(api, f"{scheme}://127.0.0.1:{port}/a.png")
        with pytest.raises(TimeoutError):
            watched.accept()


def test_6_formats_that_are_programs_or_rare_are_refused(api):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    tiff = io.BytesIO()
    picture(64, 64).save(tiff, "TIFF")
    for data in (svg, eps, tiff.getvalue()):
        refused_everywhere(api, base64.b64encode(data).decode())


def test_6_a_picture_of_a_few_bytes_and_many_pixels_is_refused_undecoded(api):
    bomb = coded(Image.new("1", (12_000, 12_000)))
    assert len(bomb) < 100_000
    with api.client() as client:
        for path, body in everywhere(bomb):
            if path == "/sdapi/v1/png-info":  # reads the texts and decodes nothing
                continue
            reply = client.post(path, json=body)
            assert reply.status_code == 422 and "12000 x 12000" in reply.text, (path, reply.text[:300])


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 10**6},
        {"width": 8192, "height": 8192},
        {"batch_size": 1000, "n_iter": 1000},
        {"steps": 10**6},
        {"prompt": "a" * 200_000},
        {"prompt": "<lora:x:1>" * 1000},
        {"script_name": "prompt matrix", "script_args": [0] * 2000},
        {"enable_hr": True, "hr_scale": 1000},
        {"enable_hr": True, "hr_resize_x": 100_000, "hr_resize_y": 100_000},
        {"alwayson_scripts": {"ControlNet": {"args": [{}] * 100}}},
    ],
)
def test_6_amounts_are_bounded(api, fields):
    reply = api.post("/sdapi/v1/txt2img", SMALL | fields)
    assert reply.status_code == 422, reply.text[:300]


# ------------------------------------------------------------------ 7, 12: code and weights


def test_7_a_unit_of_tensors_is_never_unpickled(api):
    unit = {"module": "none", "model": "x", "image": coded(picture(64, 64)), "ipadapter_input": ["gASVAAAA"]}
    reply = api.post("/sdapi/v1/txt2img", SMALL | {"alwayson_scripts": {"ControlNet": {"args": [unit]}}})
    assert reply.status_code == 422 and "ipadapter_input" in reply.json()["detail"]


@cache
def _calls() -> list[tuple[Path, ast.Call, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                found.append((path, node, ast.unparse(node.func)))
    return found


def test_7_no_source_trusts_code_or_pickles_of_others():
    for path, call, name in _calls():
        told = {one.arg: ast.unparse(one.value) for one in call.keywords}
        where = f"{path.name}:{call.lineno}"
        assert told.get("trust_remote_code", "False") == "False", where
        assert "custom_pipeline" not in told, where
        assert name not in ("pickle.load", "pickle.loads", "joblib.load", "dill.load", "shelve.open"), where
        if name == "torch.load":
            assert told.get("weights_only") == "True", where
        if name == "np.load":
            assert told.get("allow_pickle", "False") == "False", where


def test_12_no_source_of_the_server_runs_text_and_no_script_is_code(api):
    for path, call, name in _calls():
        if path.parent.name in ("webui", "generation"):
            where = f"{path.name}:{call.lineno}"
            assert name not in ("eval", "exec", "compile", "os.system", "os.popen"), where
            assert not name.startswith("subprocess."), where
    for script in ("custom code", "Custom code", "../../evil", "loopback.py"):
        reply = api.post("/sdapi/v1/txt2img", SMALL | {"script_name": script, "script_args": ["import os"]})
        assert reply.status_code == 422 and "not found" in reply.json()["detail"].lower(), reply.text


# ------------------------------------------------------------------ 8, 9, 10: files, and what does not exist


def test_8_a_link_out_of_the_library_is_not_followed(api, tmp_path):
    secret = tmp_path / "secret.png"
    picture(64, 64).save(secret)
    loras = api.folder / "models" / "Lora"
    loras.mkdir(parents=True, exist_ok=True)
    inside, link = loras / "own.png", loras / "link.png"
    picture(64, 64).save(inside)
    link.symlink_to(secret)
    assert api.get("/sd_extra_networks/thumb", filename=str(inside)).status_code == 200
    for name in (link, secret, loras / ".." / ".." / ".." / secret, f"{inside}\0", "/proc/self/environ"):
        assert api.get("/sd_extra_networks/thumb", filename=str(name)).status_code in (404, 422), name
    for path in (
        "/docs/../docs_page.py",
        "/docs/%2e%2e/docs_page.py",
        "/docs/docs.html%00",
        "/docs//etc/passwd",
    ):
        assert api.get(path).status_code == 404, path


def test_8_a_prompt_is_no_part_of_a_path(api):
    before = {path for path in api.folder.parent.rglob("*")}
    api.draw(prompt="../../../evil/\0name", save_images=True, seed=7)
    new = [path for path in api.folder.parent.rglob("*") if path not in before and path.is_file()]
    saved = [path for path in new if path.suffix == ".png"]
    assert saved and all(path.resolve().is_relative_to((api.folder / "outputs").resolve()) for path in saved)
    assert not any("evil" in str(path) for path in new)


@pytest.mark.parametrize(
    "option", ["outdir_samples", "outdir_txt2img_samples", "samples_filename_pattern", "directories_filename_pattern",
               "ckpt_dir", "disabled_extensions", "api_auth", "sd_checkpoint_cache"]
)  # fmt: skip
def test_9_no_option_says_where_files_are_written(api, option):
    reply = api.post("/sdapi/v1/options", {option: "/elsewhere"})
    assert reply.status_code == 422 and option in reply.json()["detail"]


def test_9_10_no_route_installs_deletes_models_trains_or_ends_the_server(api):
    words = (
        "install",
        "extension",
        "train",
        "hypernetwork",
        "merge",
        "upload",
        "shell",
        "exec",
        "delete",
        "create",
    )
    named = [path for path, verb in WRITING if any(word in path for word in words)]
    assert named == []
    deletes = [path for path, verb in ROUTES if verb == "DELETE"]
    assert deletes == ["/fastsd/v1/jobs/{job_id}", "/fastsd/v1/history/{job_id}"]
    for path in ("/sdapi/v1/server-kill", "/sdapi/v1/server-stop", "/sdapi/v1/server-restart"):
        assert api.post(path).status_code == 403
    assert api.get("/sdapi/v1/progress").status_code == 200


def test_11_a_task_id_does_not_take_over_another_users_job(asking):
    with (
        asking.client(auth=basic("me", PASSWORD)) as me,
        asking.client(auth=basic("you", "another, of yours")) as you,
    ):
        body = SMALL | {"force_task_id": "task(1)"}
        assert me.post("/sdapi/v1/txt2img", json=body).status_code == 200
        taken = you.post("/sdapi/v1/txt2img", json=body)
        assert taken.status_code == 409 and "task(1)" in taken.json()["detail"]
        assert me.get("/fastsd/v1/jobs/task(1)").status_code == 200
        assert me.post("/sdapi/v1/txt2img", json=body).status_code == 200  # one's own may be named again
