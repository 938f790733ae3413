"""What the tabs show and do, without a browser: history, what is missing, what is inside a file, batches of pictures."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from own_api import client_of, context_of, picture

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.history import History
from fastsd_lib.generation.infotext import read_infotext
from fastsd_lib.generation.jobs import Job, Order
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.models import registry
from fastsd_lib.webui import fastsd_v1, past
from fastsd_lib.webui.enlarging import Enlarging, zip_of
from fastsd_lib.webui.extras_api import ExtrasBody
from fastsd_lib.webui.missing import missing_from
from fastsd_lib.webui.model_facts import find_row, rows_of, trigger_words
from fastsd_lib.webui.model_insides import look_inside
from fastsd_lib.workflows.drawing import library_folders

SMALL = GenerationRequest("a red star", inference_steps=2, seed=4, sampler="euler")


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    history = History(folder / "history.sqlite")
    made = context_of(
        registry.EMBEDDED, library_folders(folder), history=history, pictures_dir=folder / "outputs"
    )
    made.pictures_dir.mkdir()
    yield made
    made.service.close()
    history.close()


def _draw(context, prompt: str, owner: str = "", **more) -> Job:
    """A job that is over, its pictures saved and noted."""
    job = context.service.submit(Order(replace(SMALL, prompt=prompt, **more), owner=owner))
    job.future.result(timeout=60)
    past.save_job(context, job)
    _until(lambda: past.entry_of(context, owner, job.id)["files"])
    return job


def _until(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


# ------------------------------------------------------------------ history


def test_five_hundred_jobs_are_paged_quickly_and_each_is_on_one_page(tmp_path):
    history = History(tmp_path / "history.sqlite")
    context = context_of(registry.EMBEDDED, history=history)
    try:
        for number in range(520):
            job = Job(Order(replace(SMALL, prompt=f"star {number}")))
            job.state = "done"
            history.record(job)
        began = time.perf_counter()
        shown = [past.find(context, "", page=page) for page in range(1, 23)]
        assert time.perf_counter() - began < 2.0
        assert [one.pages for one in shown] == [22] * 22 and shown[0].count == 520
        prompts = [entry["prompt"] for one in shown for entry in one.entries]
        assert prompts == [f"star {number}" for number in reversed(range(520))]
        assert past.find(context, "", page=99).page == 22
        assert [entry["prompt"] for entry in past.find(context, "", "star 17").entries][-1] == "star 17"
    finally:
        context.service.close()
        history.close()


def test_a_job_is_repeated_to_the_last_pixel_and_its_picture_saved(context):
    first = _draw(context, "a repeated star")
    again = past.repeat(context, "", first.id)
    again.future.result(timeout=60)
    assert again.pictures[0].image.tobytes() == first.pictures[0].image.tobytes()
    _until(lambda: past.entry_of(context, "", again.id)["files"])
    assert past.thumbnail(past.entry_of(context, "", again.id), context).startswith("data:image/jpeg;base64,")


def test_only_files_of_ours_are_deleted_and_only_when_that_is_asked(context):
    kept, job = _draw(context, "a kept star"), _draw(context, "a deleted star", count=2)
    past.forget(context, "", kept.id)
    (mine, other) = map(Path, past.entry_of(context, "", job.id)["files"])
    picture().save(other)  # somebody put a picture of their own in this place
    gone, left = past.forget(context, "", job.id, with_files=True)
    assert (gone, left) == (1, [other.name]) and other.is_file() and not mine.exists()
    with pytest.raises(UserError, match="not in the history"):
        past.entry_of(context, "", job.id)


def test_files_beyond_the_folder_of_pictures_are_neither_shown_nor_deleted(context, tmp_path):
    job = _draw(context, "a stray star")
    stray = tmp_path / "mine.png"
    stray.write_bytes(Path(past.entry_of(context, "", job.id)["files"][0]).read_bytes())
    context.service.history.set_files(job.id, [stray])
    entry = past.entry_of(context, "", job.id)
    assert past.files_of(entry, context) == [] and past.thumbnail(entry, context) == ""
    past.forget(context, "", job.id, with_files=True)
    assert stray.is_file()


def test_jobs_of_another_user_are_not_there(context):
    job = _draw(context, "anna's star", owner="anna")
    assert [one["id"] for one in past.find(context, "anna", "anna's star").entries] == [job.id]
    assert past.find(context, "ben", "anna's star").count == 0
    for act in (past.entry_of, past.repeat, past.forget, past.given_pictures):
        with pytest.raises(UserError, match="not in the history"):
            act(context, "ben", job.id)
    assert past.find(context, "", "anna's star").count == 1  # no password, no users: everything


def test_a_job_without_pictures_still_fills_every_field(context):
    job = Job(Order(replace(SMALL, prompt="a lost star", negative_prompt="dots", width_px=64, height_px=64)))
    context.service.history.record(job)
    found = read_infotext(past.text_of(past.entry_of(context, "", job.id)))
    assert (found["Prompt"], found["Negative prompt"]) == ("a lost star", "dots")
    assert (found["Steps"], found["Sampler"], found["Seed"], found["Size-1"]) == ("2", "Euler", "4", "64")


def test_what_differs_between_two_pictures_is_told_setting_by_setting():
    first = "a star\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x64"
    second = "a heart\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 3, Size: 64x64"
    assert past.differences(first, second) == [
        ("Prompt", "a star", "a heart"),
        ("Sampler", "Euler a", "Euler"),
    ]


# ------------------------------------------------------------------ the queue's preview


def test_a_preview_is_small_and_its_owners_alone(context):
    job = _draw(context, "a previewed star", owner="anna")
    seen = client_of(context, fastsd_v1.router, user="anna").get(f"/fastsd/v1/jobs/{job.id}/preview")
    assert seen.status_code == 200 and seen.content[:2] == b"\xff\xd8"
    other = client_of(context, fastsd_v1.router, user="ben").get(f"/fastsd/v1/jobs/{job.id}/preview")
    assert other.status_code == 404


# ------------------------------------------------------------------ PNG Info


def test_what_a_picture_needs_and_is_not_here_is_said_with_its_hash(context):
    text = (
        "a star <lora:ghost:0.8> <lora:tiny_night:1>\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 64x64,"
        ' Model hash: 0123456789, Model: dream, VAE: sharp.pt, Lora hashes: "ghost: aabbccddeeff, tiny_night: 1",'
        ' TI hashes: "wraith: 00ff", ControlNet 0: "Module: canny, Model: control_x [deadbeef], Weight: 1",'
        " Hires upscaler: 4x-Sharp, Face restoration: GFPGAN"
    )
    told = "\n".join(missing_from(read_infotext(text), context))
    for word in ("'dream' (hash 0123456789)", "'ghost' (hash aabbccddeeff)", "'sharp.pt'", "'wraith' (hash 00ff)",
                 "control_x", "'4x-Sharp'", "GFPGAN"):  # fmt: skip
        assert word in told, word
    assert "tiny_night" not in told


def test_a_picture_of_this_server_lacks_nothing(context):
    job = _draw(context, "a plain star <lora:tiny_night:1>")
    text = past.entry_of(context, "", job.id)["infotexts"][0]
    assert missing_from(read_infotext(text), context) == []


# ------------------------------------------------------------------ models


def test_every_file_of_the_library_has_its_row_and_its_insides(context):
    rows = {row.name: row for row in rows_of(context)}
    assert rows["embedded"].family == "SD 1.x" and rows["embedded"].hash
    assert rows["tiny_night"].size_bytes > 100_000 and not rows["tiny_night"].place.startswith("/")
    inside = {name: look_inside(row.path) for name, row in rows.items()}
    assert inside["embedded"].kind == "a whole model" and inside["embedded"].parts["unet"][0] > 300
    assert (inside["tiny_night"].kind, inside["tiny_canny"].kind) == ("a LoRA", "a ControlNet")
    assert inside["tiny_zorp"].kind == "a textual-inversion embedding"


def test_a_name_that_is_no_file_of_the_library_opens_nothing(context):
    for kind, name in (
        ("loras", "../../etc/passwd"),
        ("loras", "/etc/passwd"),
        ("no kind", "x"),
        ("", "embedded"),
    ):
        with pytest.raises(UserError):
            find_row(context, kind, name)


def test_a_file_of_unknown_tensors_says_that_it_is_not_known(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"one.two": torch.zeros(3)}, tmp_path / "x.safetensors")
    seen = look_inside(tmp_path / "x.safetensors")
    assert seen.kind == "" and any("what kind of file" in one for one in seen.unknown)
    (tmp_path / "y.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError):
        look_inside(tmp_path / "y.safetensors")


def test_trigger_words_are_the_phrase_or_the_commonest_words_of_the_captions():
    often = {"1_zwx": {"zwx person": 20, "smiling": 3}, "2_zwx": {"smiling": 1}}
    assert trigger_words({"ss_tag_frequency": often}) == "zwx person, smiling"
    assert trigger_words({"modelspec.trigger_phrase": "zwx", "ss_tag_frequency": often}) == "zwx"
    assert trigger_words({"ss_tag_frequency": "no json"}) == ""


# ------------------------------------------------------------------ Extras


def test_one_bad_file_is_named_and_the_others_are_enlarged_saved_and_packed(context, tmp_path):
    import zipfile

    for name in ("a", "b"):
        picture(40, 28).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    given = [(name, tmp_path / name) for name in ("a.png", "bad.png", "b.png")]
    order = Enlarging(
        ExtrasBody(upscaler_1="Lanczos", upscaling_resize=2), given, context, context.pictures_dir
    )
    order.run()
    assert [name for name, _ in order.failures] == ["bad.png"] and order.over
    assert [(one.name, one.size) for one in order.results] == [("a.png", (80, 56)), ("b.png", (80, 56))]
    assert all(one.file.is_relative_to(context.pictures_dir / "extras-images") for one in order.results)
    packed = zip_of([one.file for one in order.results], tmp_path)
    assert len(zipfile.ZipFile(packed).namelist()) == 2


def test_an_interrupted_batch_keeps_what_is_finished(context, tmp_path):
    picture(40, 28).save(tmp_path / "a.png")
    order = Enlarging(
        ExtrasBody(upscaler_1="Lanczos"), [("a.png", tmp_path / "a.png")] * 3, context, tmp_path
    )
    one = order._one

    def then_end(name, path):
        one(name, path)
        order.end()

    order._one = then_end
    order.run()
    assert len(order.results) == 1 and order.over and order.ended


def test_nothing_to_enlarge_says_so(context, tmp_path):
    for given, body, words in (
        ([], ExtrasBody(upscaler_1="Lanczos"), "no picture"),
        ([("a", tmp_path)] * 257, ExtrasBody(upscaler_1="Lanczos"), "257 pictures"),
        ([("a", tmp_path)], ExtrasBody(), "Upscaler 1 is None"),
    ):
        with pytest.raises(UserError, match=words):
            Enlarging(body, given, context, tmp_path)
