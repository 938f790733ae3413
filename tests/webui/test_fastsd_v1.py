"""Orders with an id: queued, watched, ended and found again, over real HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from guarded import ASKING, PASSWORD, basic
from own_api import coded, picture
from PIL import Image

from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.history import History
from fastsd_lib.generation.infotext import infotext
from fastsd_lib.generation.jobs import QueueLimits
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.picture_text import read_texts
from fastsd_lib.generation.request import GenerationRequest, Hires, Inpaint
from fastsd_lib.generation.resources import Library
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.webui import fastsd_v1_events
from fastsd_lib.webui.api import api_app
from fastsd_lib.webui.door import LOOPBACK, Door
from fastsd_lib.webui.server import serve_app

JOBS = "/fastsd/v1/jobs"
SMALL = {"prompt": "a red star", "inference_steps": 2, "seed": 3}
LONG = SMALL | {"inference_steps": 1000}


class Client(httpx.Client):
    def ordered(self, **fields) -> dict:
        reply = self.post(JOBS, json=SMALL | fields)
        assert reply.status_code == 202, reply.text
        return reply.json()

    def ended(self, job_id: str) -> dict:
        end = time.monotonic() + 60
        while (job := self.get(f"{JOBS}/{job_id}").json())["state"] in ("waiting", "drawing"):
            assert time.monotonic() < end, job
            time.sleep(0.01)
        return job

    def until(self, job_id: str, found) -> dict:
        end = time.monotonic() + 60
        while not found(job := self.get(f"{JOBS}/{job_id}").json()):
            assert time.monotonic() < end and job["error"] is None, job
            time.sleep(0.005)
        return job


@contextmanager
def served(model, folder, door: Door = LOOPBACK, **limits) -> Iterator:
    shelf = Shelf(Library.of(LibraryFolders.under(folder)), model, device="cpu")
    service = Service(shelf, History(folder / "history.sqlite"), QueueLimits(**limits), devices=("cpu",))
    server = serve_app(api_app(service, pictures_dir=folder / "pictures"), door, None)
    server.service = service
    try:
        yield server
    finally:
        server.close()
        service.close()
        service.history.close()


@pytest.fixture(scope="module")
def server(tiny_pipeline, tmp_path_factory):
    with served(tiny_pipeline, tmp_path_factory.mktemp("root"), most_waiting=8) as running:
        yield running


def client_of(server, **more) -> Client:
    return Client(base_url=server.url, timeout=60, trust_env=False, **more)


@pytest.fixture
def client(server):
    with client_of(server) as one:
        yield one
        one.post("/fastsd/v1/queue/resume")
        for job in one.get(JOBS).json()["jobs"]:
            one.delete(job["url"])


@pytest.fixture(scope="module")
def engine(tiny_pipeline):
    return load_engine(tiny_pipeline, device="cpu")


def stream(client: httpx.Client, url: str) -> Iterator[tuple[str, dict]]:
    with client.stream("GET", url) as reply:
        assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["cache-control"] == "no-store"
        name = ""
        for line in reply.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))
            elif line.startswith(":"):
                yield "heartbeat", {}


# ------------------------------------------------------------------ from order to picture


def test_an_order_is_answered_at_once_and_drawn_as_the_engine_draws_it(client, engine):
    reply = client.post(JOBS, json=SMALL | {"count": 2, "negative_prompt": "cat", "sampler": "euler_a"})
    job = reply.json()
    assert reply.status_code == 202 and reply.headers["location"] == job["url"] == f"{JOBS}/{job['id']}"
    assert job["state"] in ("waiting", "drawing", "done") and job["count"] == 2
    job = client.ended(job["id"])
    assert (job["state"], job["share"], job["error"]) == ("done", 1.0, None)
    assert [one["seed"] for one in job["pictures"]] == [3, 4]
    request = GenerationRequest("a red star", "cat", inference_steps=2, seed=3, count=2, sampler="euler_a")
    for shown, own in zip(job["pictures"], engine.generate(request), strict=True):
        sent = client.get(shown["url"])
        assert sent.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(sent.content)).tobytes() == own.image.tobytes()
        text = read_texts(sent.content)["parameters"]
        assert re.sub(r"Model hash: \w{10}, ", "", text) == infotext(own.record)


def test_every_part_of_a_request_reaches_the_engine(client, engine):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    init = picture(64, 64)
    body = {"init": coded(init), "strength": 0.6, "inpaint": {"mask": coded(mask), "fill": "fill", "blur_px": 2},
            "inference_steps": 4, "guidance_scale": 3, "schedule": "karras", "clip_skip": 2}  # fmt: skip
    request = GenerationRequest(
        "a red star", inference_steps=4, seed=3, guidance_scale=3, schedule="karras", clip_skip=2, init=init,
        strength=0.6, inpaint=Inpaint(mask, fill="fill", blur_px=2),
    )  # fmt: skip
    for fields, asked in (
        (body, request),
        (
            {"hires": {"scale": 2, "strength": 0.5, "upscaler": "lanczos"}, "tiling": True},
            GenerationRequest("a red star", inference_steps=2, seed=3, tiling=True,
                              hires=Hires(2, strength=0.5, upscaler="lanczos")),
        ),
    ):  # fmt: skip
        job = client.ended(client.ordered(**fields)["id"])
        assert job["state"] == "done", job
        (own,) = engine.generate(asked)
        assert (
            Image.open(io.BytesIO(client.get(job["pictures"][0]["url"]).content)).tobytes()
            == own.image.tobytes()
        )


def test_a1111s_words_are_understood_too(client):
    own = client.ended(client.ordered(sampler="euler_a", width_px=64, height_px=64, guidance_scale=7)["id"])
    body = {"prompt": "a red star", "steps": 2, "seed": 3, "width": 64, "height": 64, "sampler_name": "Euler a",
            "cfg_scale": 7}  # fmt: skip
    reply = client.post(JOBS, json={"a1111": body, "id": "theirs-1"})
    assert reply.status_code == 202 and reply.json()["id"] == "theirs-1", reply.text
    theirs = client.ended("theirs-1")
    pixels = [
        Image.open(io.BytesIO(client.get(one["pictures"][0]["url"]).content)).tobytes()
        for one in (own, theirs)
    ]
    assert pixels[0] == pixels[1]


def test_without_a_seed_it_is_another_one_each_time_and_told(client):
    seeds = set()
    for _ in range(2):
        job = client.post(JOBS, json={"prompt": "a", "inference_steps": 1}).json()
        seeds.add(client.ended(job["id"])["pictures"][0]["seed"])
    assert len(seeds) == 2


# ------------------------------------------------------------------ events


def test_events_tell_progress_pictures_and_the_end(client):
    client.post("/fastsd/v1/queue/pause")
    job = client.ordered(count=3, at_once=1, inference_steps=6)
    heard, names = [], []
    for name, data in stream(client, f"{job['events']}?preview_every_s=0.01"):
        heard.append((name, data))
        names.append(name)
        if len(heard) == 1:
            assert name == "progress" and data["state"] == "waiting" and data["place"] == 1
            client_of_server(client).post("/fastsd/v1/queue/resume")
    assert names[-1] == "done" and names.count("done") == 1 and names.count("picture") == 3
    shares = [data["share"] for name, data in heard if name == "progress"]
    assert shares == sorted(shares) and shares[-1] == 1.0
    pictures = [data for name, data in heard if name == "picture"]
    assert [one["seed"] for one in pictures] == [3, 4, 5] and [one["number"] for one in pictures] == [0, 1, 2]
    assert heard[-1][1]["state"] == "done" and len(heard[-1][1]["pictures"]) == 3


def client_of_server(client: Client) -> Client:
    return Client(base_url=str(client.base_url), timeout=60, trust_env=False)


def test_a_preview_shows_what_is_in_work(client):
    job = client.ordered(**LONG)
    for name, data in stream(client, f"{job['events']}?preview_every_s=0.01"):
        if name == "preview":
            assert data["image"].startswith("data:image/jpeg;base64,") and data["step"] >= 0
            break
        assert name == "progress"
    client.delete(job["url"])
    quiet = [name for name, _ in stream(client, f"{job['events']}?preview_every_s=0")]
    assert "preview" not in quiet and quiet[-1] == "done"


def test_whoever_comes_after_the_end_hears_it_at_once(client):
    job = client.ordered()
    client.ended(job["id"])
    start = time.monotonic()
    names = [name for name, _ in stream(client, job["events"])]
    assert names == ["progress", "picture", "done"] and time.monotonic() - start < 5


def test_many_listeners_hold_no_threads_and_a_silent_stream_beats(client, server, monkeypatch):
    monkeypatch.setattr(fastsd_v1_events, "HEARTBEAT_S", 0.2)
    monkeypatch.setattr(fastsd_v1_events, "LOOK_S", 0.05)
    client.post("/fastsd/v1/queue/pause")
    job = client.ordered()
    before = threading.active_count()

    async def listen(session: httpx.AsyncClient, beating: asyncio.Semaphore) -> list[str]:
        lines = []
        async with session.stream("GET", job["events"]) as reply:
            async for line in reply.aiter_lines():
                lines.append(line)
                if line.startswith(":"):
                    beating.release()
        return lines

    async def listen_all() -> tuple[list[list[str]], int]:
        beating = asyncio.Semaphore(0)
        limits = httpx.Limits(max_connections=50)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=60, trust_env=False, limits=limits
        ) as session:
            listeners = [asyncio.ensure_future(listen(session, beating)) for _ in range(40)]
            for _ in range(80):
                await asyncio.wait_for(beating.acquire(), 30)
            threads = threading.active_count()
            await session.post("/fastsd/v1/queue/resume")
            return await asyncio.wait_for(asyncio.gather(*listeners), 30), threads

    heard, threads = asyncio.run(listen_all())
    assert threads - before <= 4  # the pools' own, which do not grow with the listeners
    for lines in heard:
        assert "event: done" in lines and sum(line.startswith(":") for line in lines) >= 1


def test_a_listener_that_leaves_is_forgotten_and_the_job_goes_on(client, server):
    job = client.ordered(inference_steps=40)
    with client_of(server) as other, other.stream("GET", job["events"]) as reply:
        next(reply.iter_lines())
    assert client.ended(job["id"])["state"] == "done"
    assert not server.service.job(job["id"])._listeners


# ------------------------------------------------------------------ ending, moving


def test_a_job_is_ended_by_its_id_and_no_other(client):
    first, second = client.ordered(**LONG), client.ordered()
    client.until(first["id"], lambda job: job["step"] > 0)
    reply = client.delete(first["url"])
    assert reply.status_code == 200
    assert client.ended(first["id"])["state"] == "stopped"
    assert client.ended(second["id"])["state"] == "done"
    assert client.delete(second["url"]).json()["state"] == "done"  # over is over


def test_a_waiting_job_is_ended_before_it_begins(client):
    client.post("/fastsd/v1/queue/pause")
    job = client.ordered()
    assert client.delete(job["url"]).json()["state"] == "stopped"
    assert client.get("/fastsd/v1/queue").json()["waiting"] == 0


def test_stop_after_the_picture_keeps_what_is_in_work(client):
    job = client.ordered(inference_steps=30, count=50, at_once=1)
    client.until(job["id"], lambda one: one["step"] > 3)
    client.post(f"{job['url']}/stop-after-picture")
    ended = client.ended(job["id"])
    assert ended["state"] in ("stopped", "done") and 1 <= len(ended["pictures"]) < 50


def test_skip_goes_on_with_the_next_picture(client):
    job = client.ordered(inference_steps=60, count=2, at_once=1)
    client.until(job["id"], lambda one: one["step"] > 3)
    client.post(f"{job['url']}/skip")
    ended = client.ended(job["id"])
    assert ended["state"] == "done" and len(ended["pictures"]) == 2


def test_the_queue_is_held_reordered_and_goes_on(client):
    assert client.post("/fastsd/v1/queue/pause").json()["paused"] is True
    ids = [client.ordered(prompt=f"{number}")["id"] for number in range(3)]
    assert [client.get(f"{JOBS}/{one}").json()["place"] for one in ids] == [1, 2, 3]
    moved = client.post(f"{JOBS}/{ids[2]}/move", json={"place": 1})
    assert moved.status_code == 200 and moved.json()["place"] == 1
    queue = client.get("/fastsd/v1/queue").json()
    assert (queue["waiting"], queue["drawing"]) == (3, 0)
    assert [job["id"] for job in queue["jobs"]] == [ids[2], ids[0], ids[1]]
    assert client.post("/fastsd/v1/queue/resume").json()["paused"] is False
    assert {client.ended(one)["state"] for one in ids} == {"done"}
    late = client.post(f"{JOBS}/{ids[0]}/move", json={"place": 1})
    assert late.status_code == 409 and "does not wait: it is done" in late.json()["detail"]


def test_a_full_queue_answers_429_and_says_when_to_come_again(client):
    client.post("/fastsd/v1/queue/pause")
    for _ in range(8):
        client.ordered()
    reply = client.post(JOBS, json=SMALL)
    assert reply.status_code == 429 and "8 orders wait already" in reply.json()["detail"]
    assert int(reply.headers["retry-after"]) >= 1


# ------------------------------------------------------------------ whose


def test_jobs_are_their_owners_alone(tiny_pipeline, tmp_path):
    with served(tiny_pipeline, tmp_path, ASKING) as server:
        me = client_of(server, auth=basic("me", PASSWORD))
        you = client_of(server, auth=basic("you", "another, of yours"))
        assert client_of(server).get(JOBS).status_code == 401
        me.post("/fastsd/v1/queue/pause")
        mine, yours = me.ordered(id="mine"), you.ordered()
        for path in ("", "/events", "/pictures/0"):
            assert you.get(f"{mine['url']}{path}").status_code == 404, path
        for path in ("/stop-after-picture", "/skip"):
            assert you.post(f"{mine['url']}{path}").status_code == 404
        assert you.post(f"{mine['url']}/move", json={"place": 1}).status_code == 404
        assert you.delete(mine["url"]).status_code == 404
        assert [job["id"] for job in you.get(JOBS).json()["jobs"]] == [yours["id"]]
        queue = you.get("/fastsd/v1/queue").json()
        assert queue["waiting"] == 2 and [job["id"] for job in queue["jobs"]] == [yours["id"]]
        ahead = you.post(f"{yours['url']}/move", json={"place": 1})
        assert ahead.status_code == 403 and "another user's order" in ahead.json()["detail"]
        held = you.post("/fastsd/v1/queue/pause")
        assert held.status_code == 403 and "other users" in held.json()["detail"]
        taken = you.post(JOBS, json=SMALL | {"id": "mine"})
        assert taken.status_code == 409
        assert you.post("/fastsd/v1/queue/resume").status_code == 200
        assert me.ended("mine")["state"] == you.ended(yours["id"])["state"] == "done"
        assert (
            you.post(JOBS, json=SMALL | {"id": "mine"}).status_code == 409
        )  # nor in its place when it is over
        assert you.get(f"{mine['url']}/pictures/0").status_code == 404
        _wait_for_history(me, 1)
        assert you.get("/fastsd/v1/history/mine").status_code == 404
        assert you.delete("/fastsd/v1/history/mine").status_code == 404
        assert [job["id"] for job in me.get("/fastsd/v1/history").json()["jobs"]] == ["mine"]


def test_an_id_from_another_users_history_is_not_taken_over(tiny_pipeline, tmp_path):
    with served(tiny_pipeline, tmp_path, ASKING, kept_jobs=0) as server:
        me = client_of(server, auth=basic("me", PASSWORD))
        you = client_of(server, auth=basic("you", "another, of yours"))
        me.ordered(id="mine")
        _wait_for_history(me, 1)
        assert you.post(JOBS, json=SMALL | {"id": "mine"}).status_code == 409
        assert [job["id"] for job in me.get("/fastsd/v1/history").json()["jobs"]] == ["mine"]


def _wait_for_history(client: Client, count: int, **params) -> list[dict]:
    end = time.monotonic() + 20
    while True:
        jobs = client.get("/fastsd/v1/history", params={"state": "done", **params}).json()["jobs"]
        if len(jobs) >= count:
            return jobs
        assert time.monotonic() < end, jobs
        time.sleep(0.02)


# ------------------------------------------------------------------ history


def test_the_history_is_searched_paged_and_orders_again(client, tmp_path):
    for number in range(3):
        client.ended(client.ordered(prompt=f"a purple whale {number}", count=number + 1)["id"])
    found = _wait_for_history(client, 3, text="purple whale")
    assert [job["prompt"] for job in found] == [f"a purple whale {number}" for number in (2, 1, 0)]
    paged = client.get("/fastsd/v1/history", params={"text": "purple whale", "most": 1, "skip": 1}).json()[
        "jobs"
    ]
    assert [job["prompt"] for job in paged] == ["a purple whale 1"]
    unknown = client.get("/fastsd/v1/history", params={"state": "finished"})
    assert unknown.status_code == 422 and "'lost'" in unknown.json()["detail"]
    one = found[0]["id"]
    entry = client.get(f"/fastsd/v1/history/{one}").json()
    assert entry["infotexts"][0].startswith("a purple whale 2\nSteps: 2") and entry["seeds"] == [3, 4, 5]
    body = client.get(f"/fastsd/v1/history/{one}/request").json()
    assert body == {
        "prompt": "a purple whale 2",
        "inference_steps": 2,
        "seed": 3,
        "count": 3,
        "model": "tiny",
    }
    again = client.ended(client.post(JOBS, json=body).json()["id"])
    assert [one["seed"] for one in again["pictures"]] == [3, 4, 5]
    assert client.delete(f"/fastsd/v1/history/{one}").json() == {"deleted": True}
    assert client.get(f"/fastsd/v1/history/{one}").status_code == 404


def test_pictures_and_masks_come_back_with_the_request(client):
    mask = Image.new("L", (64, 64), 255)
    fields = {"init": coded(picture(64, 64)), "inpaint": {"mask": coded(mask), "blur_px": 0}, "strength": 0.5}
    job = client.ended(client.ordered(prompt="a kept one", **fields)["id"])
    _wait_for_history(client, 1, text="a kept one")
    body = client.get(f"/fastsd/v1/history/{job['id']}/request").json()
    assert body["inpaint"]["blur_px"] == 0 and body["strength"] == 0.5
    again = client.ended(client.post(JOBS, json=body).json()["id"])
    first, second = (client.get(one["pictures"][0]["url"]).content for one in (job, again))
    assert Image.open(io.BytesIO(first)).tobytes() == Image.open(io.BytesIO(second)).tobytes()


def test_the_history_says_names_of_files_and_no_folders(client, server, tmp_path):
    job = client.ended(client.ordered(prompt="a saved one")["id"])
    _wait_for_history(client, 1, text="a saved one")
    server.service.history.set_files(job["id"], [tmp_path / "inner" / "00001-3.png"])
    assert client.get(f"/fastsd/v1/history/{job['id']}").json()["files"] == ["00001-3.png"]


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"cfg_scale": 7}, 422, "cfg_scale: Extra inputs are not permitted"),
        ({"inference_steps": 0}, 422, "inference_steps is 0. Take 1 to 1000"),
        ({"inference_steps": "many"}, 422, "inference_steps: Input should be a valid integer"),
        ({"count": 0}, 422, "count is 0"),
        ({"count": 10**9}, 422, "count is 1000000000"),
        ({"width_px": 100_000}, 422, "width_px x height_px is 100000"),
        ({"width_px": 8000, "height_px": 8000}, 422, "8000 x 8000; the most is"),
        ({"hires": {"scale": 8}, "width_px": 2048, "height_px": 2048}, 422, "second pass is 16384 x 16384"),
        ({"hires": {"width_px": 8192}, "width_px": 64, "height_px": 512}, 422, "second pass is 8192 x 65536"),
        ({"hires": {"scale": 99}}, 422, "hires.scale is 99"),
        ({"seed_from_width_px": 16384, "seed_from_height_px": 16384}, 422, "seed_from_width_px"),
        ({"sampler": "eular"}, 422, "Did you mean 'Euler'"),
        ({"model": "nothing"}, 404, "nothing"),
        ({"vae": "nothing"}, 404, "nothing"),
        ({"prompt": "a <lora:nothing:1>"}, 422, "there is no LoRA 'nothing'"),
        ({"control": [{"model": "nothing"}]}, 422, "There is no ControlNet 'nothing'"),
        ({"width_px": -64}, 422, "width_px is -64"),
        ({"init": "/etc/passwd"}, 422, "Invalid encoded image: init"),
        ({"init": "http://169.254.169.254/x.png"}, 422, "this server fetches none"),
        ({"init": ""}, 422, "init is empty"),
        ({"inpaint": {"mask": "bm8="}}, 422, "inpaint.mask is no picture"),
        ({"inpaint": {}}, 422, "inpaint.mask: Field required"),
        ({"control": [{"weight": 5}]}, 422, "weight of a control unit is 5"),
        ({"control": [{}] * 11}, 422, "control: List should have at most 10 items"),
        ({"prompt": "<lora:x:1>" * 65}, 422, "prompt has 65 tags"),
        ({"prompt": "a" * 100_001}, 422, "prompt: String should have at most 100000"),
        ({"seed": -1}, 422, "seed: Input should be greater than or equal to 0"),
        ({"id": "../x"}, 422, "id: String should match pattern"),
        ({"a1111": {"prompt": "a"}}, 422, "inference_steps stands beside a1111"),
    ],
)
def test_an_order_that_cannot_be_is_refused_at_once_by_its_field(client, fields, status, said):
    reply = client.post(JOBS, json=SMALL | fields)
    assert reply.status_code == status and said in reply.json()["detail"], reply.text
    assert "sd_" not in reply.json()["detail"]  # A1111's names are no names here
    assert set(reply.json()) == {"error", "detail", "body", "errors"}


def test_a1111s_words_are_refused_by_their_field_and_scripts_sent_elsewhere(client):
    wrong = client.post(JOBS, json={"a1111": {"steps": "many"}})
    assert (
        wrong.status_code == 422 and "a1111.steps: Input should be a valid integer" in wrong.json()["detail"]
    )
    body = {"prompt": "a|b", "script_name": "prompt matrix", "width": 64, "height": 64, "steps": 1,
            "script_args": [False, False, "positive", "comma", 0]}  # fmt: skip
    script = client.post(JOBS, json={"a1111": body})
    assert script.status_code == 422 and "orders" in script.json()["detail"], script.text
    kept = client.post(JOBS, json={"a1111": {"override_settings_restore_afterwards": False}})
    assert kept.status_code == 422 and "POST them to /sdapi/v1/options" in kept.json()["detail"]


def test_what_the_model_cannot_follow_ends_the_job_with_a_way_out(client):
    reply = client.post(JOBS, json=SMALL | {"width_px": 66})
    assert reply.status_code == 202, reply.text
    ended = client.ended(reply.json()["id"])
    assert ended["state"] == "failed" and "width_px is 66" in ended["error"]["message"]
    assert "64 or 68" in ended["error"]["fix"]


def test_what_is_not_there_is_404(client):
    job = client.ended(client.ordered()["id"])
    for path in (f"{JOBS}/nothing", f"{JOBS}/nothing/events", f"{job['url']}/pictures/1", f"{job['url']}/pictures/-1",
                 "/fastsd/v1/history/nothing", "/fastsd/v1/history/nothing/request"):  # fmt: skip
        assert client.get(path).status_code == 404, path
    assert client.get(f"{job['url']}/events?preview_every_s=nan").status_code == 422
    assert client.get(f"{job['url']}/pictures/x").status_code == 422


def test_the_lists_name_what_an_order_may_say(client):
    def rows(kind):
        reply = client.get(f"/fastsd/v1/{kind}")
        assert reply.status_code == 200, f"{kind}: {reply.text}"
        return reply.json()

    names = {
        kind: [row["name"] for row in rows(kind)]
        for kind in ("models", "vaes", "samplers", "schedules", "upscalers", "loras", "embeddings", "controlnets",
                     "preprocessors", "styles")
    }  # fmt: skip
    assert "embedded" in names["models"] and "euler_a" in names["samplers"] and "karras" in names["schedules"]
    assert names["upscalers"][-1] == "nearest" and "canny" in names["preprocessors"]
    current = [row["name"] for row in client.get("/fastsd/v1/models").json() if row["current"]]
    assert current == ["tiny"]
