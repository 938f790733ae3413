"""The page on a real port: what of Gradio and of the disk it serves; and what becomes of orders when browsers leave."""

from __future__ import annotations

import base64
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.webui.a1111_models import Txt2ImgBody
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.options import Options

SMALL = {"prompt": "a red star", "steps": 2, "width": 64, "height": 64, "seed": 3, "save_images": True}


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
    assert config["show_error"] is False and config["max_file_size"] in (64 * 1000**2, 64 * 2**20)


def test_files_named_by_their_content_are_packed_and_kept_by_browsers(server):
    page = urllib.request.urlopen(server.url)
    (name, *_) = re.findall(r"assets/[\w.-]+\.js", page.read().decode())
    asked = urllib.request.Request(server.url + name, headers={"accept-encoding": "br, gzip"})
    answer = urllib.request.urlopen(asked)
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["content-encoding"] in ("br", "gzip")
    assert "immutable" not in (page.headers["cache-control"] or "")
    asked = urllib.request.Request(server.url, headers={"accept-encoding": "gzip"})
    packed = urllib.request.urlopen(asked)
    assert packed.headers["content-encoding"] == "gzip" and len(packed.read()) < 250_000


def test_a_taken_port_says_so(service, server):
    from fastsd_lib.webui.app import start

    port = int(server.url.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"Port {port} on 127.0.0.1 is taken") as error:
        start(service, port=port)
    assert "--port 7861" in error.value.fix


def test_behind_a_password_gradio_answers_nothing_without_it(service):
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
        asked = urllib.request.Request(guarded.url + "config")
        asked.add_header("authorization", "Basic " + base64.b64encode(b"me:long: enough").decode())
        assert urllib.request.urlopen(asked).status == 200
    finally:
        guarded.close()
    with pytest.raises(urllib.error.URLError):  # closed is closed
        urllib.request.urlopen(guarded.url, timeout=2)


def test_neither_settings_nor_pictures_are_served_by_their_path(service, monkeypatch, tmp_path):
    """Pictures are shown as copies under the hash of their content: a path can be guessed, and be another user's."""
    from fastsd_lib.webui.app import start

    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".cache" / "huggingface" / "token"
    token.parent.mkdir(parents=True)
    token.write_text("hf_secret")
    (tmp_path / "picture.txt").write_text("a picture")
    running = start(service, port=None, pictures_dir=tmp_path)
    try:
        picture = tmp_path / "picture.txt"
        for way in (
            f"file={token}",
            f"file={picture}",
            f"file/{picture}",
            f"file={tmp_path}/x/../picture.txt",
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{running.url}gradio_api/{way}")
            assert refused.value.code == 403
    finally:
        running.close()


@pytest.fixture
def tasks(service, tmp_path):
    from fastsd_lib.webui.page_tasks import PageTasks

    return PageTasks(ApiContext(service, Options(), tmp_path / "outputs"), tmp_path)


def test_an_order_goes_on_without_anybody_waiting_and_is_saved_and_found_by_its_owner_alone(tasks, tmp_path):
    ordered = tasks.submit(Txt2ImgBody(**SMALL, n_iter=2, force_task_id="page-1"), "ann")
    assert ordered.done.wait(60)
    found = tasks.find("page-1", "ann")
    assert found is ordered and tasks.find("page-1", "bob") is None and tasks.find("page-1", "") is None
    assert len(found.outcome.pictures) == 3  # a grid, then each picture
    assert all(
        path.is_relative_to(tmp_path / "outputs") and path.is_file() for path in found.outcome.pictures
    )
    assert "Seed: 4" in found.outcome.infotexts[2] and not found.outcome.stopped
    assert found.jobs == [] and found.ordered is None  # no picture stays in memory


def test_pictures_that_are_not_to_be_saved_are_shown_all_the_same(tasks, tmp_path):
    body = Txt2ImgBody(**SMALL, override_settings={"samples_save": False})
    task = tasks.submit(body, "")
    assert task.done.wait(60) and not (tmp_path / "outputs").exists()
    assert [path.parent for path in task.outcome.pictures] == [tmp_path]


def test_interrupting_ends_this_task_alone_and_keeps_what_is_finished(tasks):
    long = Txt2ImgBody(**SMALL | {"steps": 300}, n_iter=50)
    mine, other = tasks.submit(long, "ann"), tasks.submit(Txt2ImgBody(**SMALL), "bob")
    tasks.interrupt(mine.id, "bob")  # is not his
    (job,) = mine.jobs
    while job.state == "waiting" or job.step < 5:
        assert not mine.done.wait(0.02)
    tasks.interrupt(mine.id, "ann")
    assert mine.done.wait(30) and mine.outcome.stopped and len(mine.outcome.pictures) >= 1
    assert other.done.wait(60) and not other.outcome.stopped


def test_a_task_that_waits_is_taken_out_of_the_queue_by_interrupt(tasks, service):
    service.pause()
    try:
        task = tasks.submit(Txt2ImgBody(**SMALL), "")
        tasks.interrupt(task.id, "")
        assert task.done.wait(10) and task.outcome.stopped and task.outcome.pictures == []
    finally:
        service.resume()
