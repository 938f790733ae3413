"""Progress, interrupt, skip, settings: beside drawings that are under way, and by whose they are."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from api_server import SMALL, picture, served_api

from fastsd_lib.webui.context import ApiFlags
from fastsd_lib.webui.door import Door

LONG = SMALL | {"steps": 1000, "seed": 1}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with served_api(tmp_path_factory.mktemp("a1111")) as served:
        served.draw()  # the model is in memory
        yield served


@pytest.fixture
def pool():
    with ThreadPoolExecutor(64) as threads:
        yield threads


def until(true, what: str, seconds: float = 30):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)
    return found


def idle(api) -> bool:
    return not api.service.jobs()


def test_idle_is_progress_zero_and_no_jobs(api):
    until(lambda: idle(api), "idle")
    told = api.get("/sdapi/v1/progress").json()
    assert (told["progress"], told["eta_relative"], told["current_image"], told["textinfo"]) == (
        0,
        0,
        None,
        None,
    )
    assert told["state"] == {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
        "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
    }  # fmt: skip


def test_progress_of_what_draws_and_interrupt_keeps_what_there_is(api, pool):
    answer = pool.submit(
        api.post, "/sdapi/v1/txt2img", LONG | {"n_iter": 2, "enable_hr": True, "hr_scale": 1}
    )
    told = until(
        lambda: (t := api.get("/sdapi/v1/progress").json())["state"]["sampling_step"] > 1 and t, "a step"
    )
    state = told["state"]
    assert 0 < told["progress"] < 1 and told["eta_relative"] > 0
    assert state["job_count"] == 4  # n_iter, twice with a second pass
    assert len(state["job_timestamp"]) == 14 and state["job_no"] == 0
    assert told["current_image"] is None or picture(told["current_image"]).width > 0
    assert api.get("/sdapi/v1/progress", skip_current_image=True).json()["current_image"] is None
    assert api.post("/sdapi/v1/interrupt").json() == {}
    done = answer.result(timeout=60)
    assert done.status_code == 200
    body = done.json()
    assert len(body["images"]) == len(json.loads(body["info"])["infotexts"]) <= 2
    until(lambda: idle(api), "idle")


def test_the_live_preview_is_a_picture(api, pool):
    answer = pool.submit(api.post, "/sdapi/v1/txt2img", LONG)
    sent = until(lambda: api.get("/sdapi/v1/progress").json()["current_image"], "a preview")
    assert picture(sent).format == "PNG"
    api.post("/sdapi/v1/interrupt")
    answer.result(timeout=60)


def test_skip_leaves_the_pictures_in_work_and_goes_on_with_the_next_ones(api, pool):
    answer = pool.submit(api.post, "/sdapi/v1/txt2img", LONG | {"n_iter": 40})
    until(lambda: api.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 1, "the first picture")
    assert api.post("/sdapi/v1/skip").json() is None
    until(lambda: api.get("/sdapi/v1/progress").json()["state"]["job_no"] >= 1, "another picture")
    assert not answer.done()
    api.post("/sdapi/v1/interrupt")
    done = answer.result(timeout=60).json()
    assert 2 <= len(done["images"]) < 40
    until(lambda: idle(api), "idle")


def test_one_task_is_followed_by_its_own_id(api, pool):
    def told(task: str, **more) -> dict:
        return api.post("/internal/progress", {"id_task": task, **more}).json()

    first = pool.submit(api.post, "/sdapi/v1/txt2img", LONG | {"force_task_id": "task(one)"})
    until(lambda: told("task(one)")["active"], "it is drawn")
    api.service.pause()  # whoever comes now waits
    try:
        second = pool.submit(api.post, "/sdapi/v1/txt2img", SMALL | {"force_task_id": "task(two)"})
        waiting = until(lambda: (t := told("task(two)"))["queued"] and t, "it waits")
        assert (waiting["active"], waiting["completed"], waiting["progress"]) == (False, False, 0)
        assert waiting["textinfo"] == "In queue: place 1"
        assert api.get("/internal/pending-tasks").json() == {"size": 1, "tasks": ["task(two)"]}
    finally:
        api.service.resume()
    news = until(lambda: (t := told("task(one)", id_live_preview=-1))["live_preview"] and t, "a preview")
    assert 0 < news["progress"] < 1 and news["live_preview"].startswith("data:image/png;base64,")
    assert told("task(one)", id_live_preview=10**9)["live_preview"] is None  # none is sent twice
    assert told("task(one)", live_preview=False)["live_preview"] is None
    api.service.interrupt("task(one)")
    assert [first.result(60).status_code, second.result(60).status_code] == [200, 200]
    done = told("task(two)")
    assert (done["completed"], done["active"], done["queued"], done["progress"]) == (True, False, False, 1)


def test_a_task_of_several_jobs_is_done_when_all_are(api, pool):
    lines = 'a star\n--prompt "a cat" --steps 1000\n'
    body = {"script_name": "prompts from file or textbox", "script_args": [False, False, "start", lines]}
    answer = pool.submit(
        api.post, "/sdapi/v1/txt2img", SMALL | body | {"prompt": "", "force_task_id": "lines"}
    )
    until(lambda: (job := api.service.job("lines")) and job.over, "the first line is drawn")
    told = api.post("/internal/progress", {"id_task": "lines"}).json()
    assert (told["completed"], told["active"]) == (False, True) and 0 < told["progress"] < 1
    until(lambda: api.post("/sdapi/v1/interrupt") and answer.done(), "the second one ends")
    assert len(answer.result().json()["images"]) == 2
    assert api.post("/internal/progress", {"id_task": "lines"}).json()["completed"] is True


def test_progress_and_interrupt_mean_all_of_a_scripts_request(api, pool):
    lines = "\n".join(f"a star {number}" for number in range(6))
    body = {"script_name": "prompts from file or textbox", "script_args": [False, False, "start", lines]}
    answer = pool.submit(api.post, "/sdapi/v1/txt2img", LONG | body | {"prompt": "", "batch_size": 16})
    told = until(
        lambda: (t := api.get("/sdapi/v1/progress").json())["state"]["sampling_step"] > 1 and t, "a step"
    )
    assert told["state"]["job_count"] == 6 and 0 < told["progress"] < 0.2
    assert any(job.state == "waiting" for job in api.service.jobs())  # they do not all fit at once
    api.post("/sdapi/v1/interrupt")
    done = answer.result(timeout=20)  # each line alone would take longer
    assert done.status_code == 200 and 0 < len(done.json()["images"]) < 6 * 16
    until(lambda: idle(api), "idle", 5)


def test_a_task_that_nobody_named_waits_to_be_heard_of(api):
    assert api.post("/internal/progress", {"id_task": "unheard of"}).json() == {
        "active": False, "queued": False, "completed": False, "progress": None, "eta": None, "live_preview": None,
        "id_live_preview": -1, "textinfo": "Waiting...",
    }  # fmt: skip


def test_with_48_jobs_waiting_everything_else_answers_at_once(api, pool):
    api.service.pause()
    try:
        waiting = [pool.submit(api.post, "/sdapi/v1/txt2img", SMALL | {"seed": seed}) for seed in range(48)]
        until(lambda: len(api.service.jobs()) == 48, "48 wait")
        with api.client() as client:
            for path, method in (
                ("progress", "GET"),
                ("interrupt", "POST"),
                ("options", "GET"),
                ("samplers", "GET"),
            ):
                begun = time.monotonic()
                assert client.request(method, f"/sdapi/v1/{path}").status_code == 200
                assert time.monotonic() - begun < 1, path
    finally:
        api.service.resume()
    assert [one.result(timeout=120).status_code for one in waiting] == [200] * 48


def test_whoever_goes_away_is_not_drawn_for(api):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{api.server.url}sdapi/v1/txt2img", json=LONG, timeout=1, trust_env=False)
    until(lambda: idle(api), "its job ends")


# ------------------------------------------------------------------ settings


def test_options_have_a1111s_names_and_keep_what_is_set(api):
    options = api.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == api.get("/sdapi/v1/sd-models").json()[0]["title"]
    assert (options["samples_format"], options["CLIP_stop_at_last_layers"], options["sd_vae"]) == (
        "png",
        1,
        "Automatic",
    )
    assert (
        api.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2, "samples_format": "JPG"}).json() is None
    )
    try:
        assert api.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2
        kept = json.loads((api.folder / "config.json").read_text())
        assert kept == {"CLIP_stop_at_last_layers": 2, "samples_format": "jpg"}
        answer = api.draw()
        assert json.loads(answer["info"])["clip_skip"] == 2
        assert picture(answer["images"][0]).format == "JPEG"
    finally:
        api.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 1, "samples_format": "png"})


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        ({"return_mask": True}, 422, ["return_mask is True", "cannot do that"]),
        ({"save_txt": True}, 422, ["save_txt is True", "Send False"]),
        ({"jpeg_qualty": 5}, 422, ["'jpeg_qualty'", "did you mean 'jpeg_quality'"]),
        ({"outdir_samples": "/etc"}, 422, ["no option 'outdir_samples'"]),
        ({"sd_model_checkpoint": "embeded"}, 404, ["'embeded'", "nearest: embedded"]),
        ({"sd_vae": "nope"}, 404, ["'nope'"]),
        ({"sd_checkpoint_hash": "0" * 64}, 422, ["sd_checkpoint_hash"]),
        (
            {"jpeg_quality": 80, "CLIP_stop_at_last_layers": 0},
            422,
            ["CLIP_stop_at_last_layers is 0", "1 to 12"],
        ),
        ({"jpeg_quality": "high"}, 422, ["jpeg_quality is 'high'", "whole number"]),
        ({"face_restoration": True}, 422, ["face_restoration is True"]),
        ({"enable_pnginfo": "perhaps"}, 422, ["enable_pnginfo is 'perhaps'", "true or false"]),
    ],
)
def test_options_that_cannot_be_are_named_and_nothing_is_changed(api, sent, status, words):
    before = api.get("/sdapi/v1/options").json()
    answer = api.post("/sdapi/v1/options", sent)
    assert answer.status_code == status
    for word in words:
        assert word.lower() in answer.json()["detail"].lower()
    assert api.get("/sdapi/v1/options").json() == before


def test_a_model_that_cannot_be_loaded_is_never_the_current_one(api):
    folder = api.folder / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    damaged = folder / "damaged.safetensors"
    damaged.write_bytes(b"\x10\0\0\0\0\0\0\0 no header at all")
    asked = {"override_settings": {"sd_model_checkpoint": "damaged"}}
    try:
        assert api.post("/sdapi/v1/refresh-checkpoints").json() is None
        names = [one["model_name"] for one in api.get("/sdapi/v1/sd-models").json()]
        assert sorted(names) == ["damaged", "embedded"]
        for answer in (
            api.post("/sdapi/v1/options", {"sd_model_checkpoint": "damaged", "jpeg_quality": 5}),
            api.post("/sdapi/v1/txt2img", SMALL | asked),
            api.post("/sdapi/v1/txt2img", SMALL | asked | {"override_settings_restore_afterwards": False}),
        ):
            assert answer.status_code == 422 and "damaged" in answer.json()["detail"]
        options = api.get("/sdapi/v1/options").json()
        assert options["sd_model_checkpoint"].startswith("embedded") and options["jpeg_quality"] == 80
    finally:
        damaged.unlink()


def test_a_whole_settings_object_can_be_sent_back(api):
    """Programs read all, change one, and send all."""
    options = api.get("/sdapi/v1/options").json()
    assert api.post("/sdapi/v1/options", options).status_code == 200
    assert api.get("/sdapi/v1/options").json() == options


def test_a_model_is_unloaded_and_comes_back_by_itself(api):
    assert api.post("/sdapi/v1/unload-checkpoint").json() == {}
    assert api.service.shelf.loaded() == []
    assert len(api.draw()["images"]) == 1
    assert api.post("/sdapi/v1/reload-checkpoint").json() == {}


def test_nothing_secret_is_told(tmp_path):
    password = "correct horse battery"
    with (
        served_api(tmp_path, Door(users={"me": password})) as api,
        api.client(auth=("me", password)) as client,
    ):
        for path in (
            "/sdapi/v1/cmd-flags",
            "/internal/sysinfo",
            "/sdapi/v1/options",
            "/internal/profile-startup",
        ):
            answer = client.get(path)
            assert answer.status_code == 200
            for secret in (password, "environ", str(tmp_path)):
                assert secret not in answer.text


def test_every_route_asks_for_the_password(tmp_path):
    with served_api(tmp_path, Door(users={"me": "correct horse"})) as api:
        for path in ("/sdapi/v1/loras", "/internal/progress", "/sd_extra_networks/thumb", "/openapi.json"):
            assert api.get(path).status_code == 401


def test_users_see_and_stop_their_own_drawings_alone(tmp_path, pool):
    users = {"me": "one password", "you": "another password"}
    with served_api(tmp_path, Door(users=users)) as api:
        mine, yours = (api.client(auth=(name, users[name])) for name in users)
        with mine, yours:
            mine.post("/sdapi/v1/txt2img", json=SMALL)
            task = LONG | {"force_task_id": "mine"}
            answer = pool.submit(mine.post, "/sdapi/v1/txt2img", json=task)
            until(lambda: mine.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 1, "it is drawn")
            assert yours.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
            assert yours.post("/internal/progress", json={"id_task": "mine"}).json()["active"] is False
            yours.post("/sdapi/v1/interrupt")
            yours.post("/sdapi/v1/skip")
            time.sleep(0.5)
            assert not answer.done()
            mine.post("/sdapi/v1/interrupt")
            assert answer.result(timeout=60).status_code == 200


def test_memory_and_the_small_internal_routes(api):
    memory = api.get("/sdapi/v1/memory").json()
    assert memory["ram"]["total"] > memory["ram"]["used"] > 0 and memory["cuda"]
    assert api.get("/internal/ping").json() == {}
    assert {"name": "sd_vae", "label": "sd_vae"} in api.get("/internal/quicksettings-hint").json()
    assert "torch" in api.get("/internal/sysinfo").json()["Packages"]


def test_the_server_ends_over_http_only_where_it_was_started_so(tmp_path):
    with served_api(tmp_path, flags=ApiFlags(server_stop=True)) as api:
        assert api.post("/sdapi/v1/server-stop").status_code == 200
        until(lambda: api.context.stopping.is_set(), "it stops")


def test_a_waiting_request_holds_no_thread(api, pool):
    api.service.pause()
    try:
        before = threading.active_count()
        waiting = [pool.submit(api.post, "/sdapi/v1/txt2img", SMALL) for _ in range(24)]
        until(lambda: len(api.service.jobs()) == 24, "24 wait")
        ours = threading.active_count() - before - len(pool._threads)
        assert ours <= 4  # the pool that codes pictures
    finally:
        api.service.resume()
    assert all(one.result(timeout=120).status_code == 200 for one in waiting)
