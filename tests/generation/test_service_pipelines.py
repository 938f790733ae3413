"""Flux and SD3 in the service: drawn whole by their engine, and heard between two steps like all others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_pipeline_engine import save_flux, save_sd3

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.engine import load_engine
from fastsd_lib.generation.jobs import Job, Order, QueueLimits
from fastsd_lib.generation.library import LibraryFolders
from fastsd_lib.generation.pipeline_engine import AsItStands, PipelineEngine
from fastsd_lib.generation.request import GenerationRequest, Hires
from fastsd_lib.generation.service import Service
from fastsd_lib.generation.shelf import Shelf

ORDER = GenerationRequest("a red star", inference_steps=4, seed=3, width_px=32, height_px=48, sampler="euler")
SMALL = GenerationRequest("a red star", inference_steps=2, seed=3, width_px=64, height_px=64)
WAIT_S = 60


def told(picture) -> list[str]:
    """Its warnings, but for that of a size far below the model's own, at which all is drawn here."""
    return [line for line in picture.record["warnings"] if "learned from" not in line]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines")
    return {"flux": save_flux(folder / "flux"), "sd3": save_sd3(folder / "sd3")}


@pytest.fixture(scope="module")
def shelf(models, tmp_path_factory) -> Shelf:
    vaes = tmp_path_factory.mktemp("vaes")
    (vaes / "bright.safetensors").write_bytes(b"never opened")
    return Shelf(LibraryFolders(vaes=(vaes,)), models["flux"], "cpu")


@pytest.fixture()
def service(shelf) -> Iterator[Service]:
    running = Service(shelf)
    yield running
    running.close()


@contextmanager
def at_each_step(engine: PipelineEngine, act) -> Iterator[None]:
    """`act` hears the pictures in each call of the transformer before it is made."""
    hook = engine.pipeline.transformer.register_forward_pre_hook(
        lambda _, inputs, named: act(len(named["hidden_states"])), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def held(service: Service) -> Iterator[None]:
    """The drawing thread stands still between two steps."""
    there, go = threading.Event(), threading.Event()
    service.on_worker(lambda: (there.set(), go.wait(WAIT_S)))
    assert there.wait(WAIT_S)
    try:
        yield
    finally:
        go.set()


def at_step(job: Job, step: int, act) -> None:
    """Do something, once, when the job has come so far; from the drawing thread."""
    done = []

    def listen(one: Job) -> None:
        if one.step >= step and not done:
            done.append(one.step)
            act()

    job.subscribe(listen)


def difference(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_the_service_hands_out_what_the_engine_draws(models, name):
    shelf = Shelf(LibraryFolders(), models[name], "cpu")
    service = Service(shelf)
    request = replace(ORDER, count=3)
    with held(service):
        job = service.submit(Order(request, at_once=2))
        heard = []
        job.subscribe(lambda one: heard.append((one.step, one.steps, one.in_work, len(one.pictures))))
    pictures = job.future.result(WAIT_S)
    expected = load_engine(models[name], "cpu").generate(request)
    for ours, theirs in zip(pictures, expected, strict=True):
        assert difference(ours.image, theirs.image) <= 1 and ours.seed == theirs.seed
        assert ours.record.pop("model_hash") == shelf.find().known_sha256[:10]
        assert ours.record == theirs.record | {"model": shelf.current}
    in_work = [(2 * step, 12, (0, 2), 0) for step in range(1, 5)]
    assert heard[1:6] == [*in_work, (8, 12, (0, 2), 2)]
    assert heard[6:11] == [*((8 + step, 12, (2, 3), 2) for step in range(1, 5)), (12, 12, (2, 3), 3)]
    assert (job.state, job.share, heard[-1][2]) == ("done", 1.0, (0, 0))
    weights = [weight for module in shelf.engine().modules for weight in module.parameters()]
    assert shelf.memory()["models"] == {
        f"{name} on cpu #0": round(sum(weight.nbytes for weight in weights) / 2**20, 1)
    }
    service.close()


def test_a_picture_is_drawn_over_in_as_many_steps_as_its_strength_needs(models, capfd):
    photo = Image.fromarray(np.random.default_rng(1).integers(0, 255, (48, 32, 3), np.uint8))
    engine = load_engine(models["sd3"], "cpu")
    capfd.readouterr()
    request = replace(ORDER, init=photo, strength=0.5)
    service = Service(Shelf.of(engine))
    job = service.submit(Order(request))
    (picture,) = job.future.result(WAIT_S)
    service.close()
    assert (job.step, job.steps, picture.record["model"]) == (2, 2, "sd3")
    assert difference(picture.image, engine.generate(request)[0].image) == 0
    assert capfd.readouterr().err == ""  # no bar of diffusers' own


def test_cancelling_ends_the_drawing_before_its_last_step_and_keeps_what_is_finished(shelf, service):
    steps = []
    with at_each_step(shelf.engine(), steps.append):
        with held(service):
            job = service.submit(Order(replace(ORDER, count=3), at_once=1))
            at_step(job, 6, lambda: service.cancel(job.id))
        (picture,) = job.future.result(WAIT_S)
    assert (job.state, picture.seed, len(steps)) == ("stopped", 3, 6)
    assert service.submit(Order(ORDER)).future.result(WAIT_S)[0].seed == 3  # and the model is as before


def test_interrupt_and_skip_leave_the_picture_in_work_as_it_stands(shelf, service):
    request = replace(ORDER, count=4, inference_steps=8)
    steps = []
    with at_each_step(shelf.engine(), steps.append):
        with held(service):
            job = service.submit(Order(request, at_once=1))
            at_step(job, 6, service.skip)
            at_step(job, 8 + 1, service.skip)
            at_step(job, 16 + 4, service.interrupt)
        pictures = job.future.result(WAIT_S)
    # Where a path leads is seen from two points of it: left after one step, a picture takes a second one.
    assert (job.state, len(steps)) == ("stopped", 6 + 2 + 4)
    assert [one.seed for one in pictures] == [3, 4, 5]
    assert [told(one) for one in pictures] == [[f"stopped at step {step} of 8"] for step in (6, 2, 4)]


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_picture_that_is_cut_shows_where_its_path_was_leading(models, name):
    """As if its last step had gone all the way: diffusers draws that when it is given the noise levels before it."""
    engine = load_engine(models[name], "cpu")
    request = replace(ORDER, inference_steps=10)
    scheduler = engine.pipeline.scheduler
    ends = (1, 1 / 10) if name == "flux" else (scheduler.sigma_max, scheduler.sigma_min)

    def told(numbers: range, step: int, steps: int) -> None:
        if step >= last:
            raise AsItStands

    for last in (2, 5, 10):
        ((ours,),) = engine.batches(request, told)
        (theirs,) = engine.pipeline(
            request.prompt, width=32, height=48, guidance_scale=engine.kind.guidance_scale,
            generator=torch.Generator().manual_seed(3), sigmas=np.linspace(*ends, 10)[:last].tolist(),
        ).images  # fmt: skip
        assert difference(ours.image, theirs) <= 1, last


def test_no_picture_is_begun_after_the_one_after_which_it_is_to_stop(service):
    with held(service):
        job = service.submit(Order(replace(ORDER, count=3), at_once=1))
        at_step(job, 1, lambda: service.stop_after_picture(job.id))
    (picture,) = job.future.result(WAIT_S)
    assert (job.state, told(picture)) == ("stopped", [])


def test_what_the_thread_has_to_do_for_others_is_done_between_two_steps(service):
    job = service.submit(Order(replace(ORDER, inference_steps=1000)))
    started = threading.Event()
    at_step(job, 1, started.set)
    assert started.wait(WAIT_S)
    engine = service.load("embedded").result(WAIT_S)
    assert engine.parts.name == "embedded" and 0 < job.step < 1000
    service.cancel(job.id)
    assert job.future.result(WAIT_S) == []


def test_paused_it_takes_no_step(shelf, service):
    steps = []
    with at_each_step(shelf.engine(), steps.append):
        with held(service):
            job = service.submit(Order(ORDER))
            at_step(job, 2, service.pause)
        assert service.on_worker(lambda: len(steps)).result(WAIT_S) in (0, 1, 2)
        while job.step < 2:
            service.on_worker(lambda: None).result(WAIT_S)
        assert service.on_worker(lambda: len(steps)).result(WAIT_S) == 2  # errands are done meanwhile
        assert not job.over
        service.resume()
        assert len(job.future.result(WAIT_S)) == 1
    assert len(steps) == 4


def test_paused_at_its_end_it_is_done_and_the_next_one_waits(service):
    with held(service):
        first, other = service.submit(Order(ORDER)), service.submit(Order(ORDER))
        first.subscribe(lambda one: service.pause() if one.pictures else None)
    assert len(first.future.result(WAIT_S)) == 1 and first.state == "done"
    service.on_worker(lambda: None).result(WAIT_S)
    assert other.state == "waiting"
    service.resume()
    assert len(other.future.result(WAIT_S)) == 1


def test_paused_between_two_pictures_it_begins_none(shelf, service):
    steps = []
    with at_each_step(shelf.engine(), steps.append):
        with held(service):
            job = service.submit(Order(replace(ORDER, count=2), at_once=1))
            end = job.subscribe(lambda one: service.pause() if one.pictures else None)
        while not job.pictures:
            service.on_worker(lambda: None).result(WAIT_S)
        assert service.on_worker(lambda: len(steps)).result(WAIT_S) == 4
        end()
        service.resume()
        assert len(job.future.result(WAIT_S)) == 2


def test_a_drawing_that_takes_too_long_ends_with_a_sentence(shelf):
    service = Service(shelf, limits=QueueLimits(most_seconds=0.0))
    job = service.submit(Order(ORDER))
    with pytest.raises(UserError, match="took more than 0 s") as error:
        job.future.result(WAIT_S)
    assert "fewer pictures or steps" in error.value.fix and job.pictures == []
    service.close()


def test_closing_ends_it_at_the_next_step(shelf):
    service = Service(shelf)
    with held(service):
        job = service.submit(Order(replace(ORDER, inference_steps=1000)))
    closing = threading.Thread(target=service.close)
    at_step(job, 1, closing.start)
    assert job.future.result(WAIT_S) == [] and job.state == "stopped" and job.step < 1000
    closing.join(WAIT_S)
    assert not closing.is_alive()


@pytest.mark.parametrize(
    ("order", "message", "fix"),
    [
        (
            Order(ORDER, vae="bright"),
            r"flux is a flux model, .* its own VAE only \(not bright\)",
            "Automatic",
        ),
        (
            Order(replace(ORDER, prompt="a star <lora:light:1>")),
            "<lora:light:1> is not in force with flux: flux models are drawn without LoRA",
            "leave it out",
        ),
        (Order(replace(ORDER, hires=Hires())), r"a second pass \(hires\)", "leave out hires"),
        (Order(replace(ORDER, width_px=30)), "multiples of 4", "take 28 or 32"),
    ],
)
def test_what_it_cannot_follow_is_refused_in_one_line(service, order, message, fix):
    job = service.submit(order)
    with pytest.raises(UserError, match=message) as error:
        job.future.result(WAIT_S)
    assert fix in error.value.fix and "\n" not in str(error.value.message) and job.state == "failed"


def test_tags_that_are_to_do_nothing_are_cut_without_a_word(service):
    tagged = replace(ORDER, prompt="a red star<lora:light:1>", networks_off=True)
    jobs = [service.submit(Order(one)) for one in (tagged, ORDER)]
    (one,), (other,) = (job.future.result(WAIT_S) for job in jobs)
    assert difference(one.image, other.image) == 0 and told(one) == []


def test_a_fault_in_the_pipeline_is_a_sentence_and_the_service_lives_on(shelf, service, caplog):
    def break_down(count: int) -> None:
        raise ZeroDivisionError("deep inside")

    with at_each_step(shelf.engine(), break_down):
        job = service.submit(Order(ORDER))
        with pytest.raises(UserError, match="something went wrong inside the program") as error:
            job.future.result(WAIT_S)
    assert "log" in error.value.fix and "deep inside" not in error.value.message
    assert "deep inside" in caplog.text
    assert len(service.submit(Order(ORDER)).future.result(WAIT_S)) == 1


def test_others_wait_until_it_is_drawn_and_go_first_when_it_takes_long(shelf, service, monkeypatch):
    from fastsd_lib.generation import worker

    with held(service):
        first = service.submit(Order(replace(ORDER, count=2), at_once=1))
        same, other = service.submit(Order(ORDER)), service.submit(Order(SMALL, model="embedded"))
    for job in (first, same, other):
        job.future.result(WAIT_S)
    assert first.finished_s <= same.started_s and same.finished_s <= other.started_s
    assert other.pictures[0].record["model"] == "embedded"

    monkeypatch.setattr(worker, "MODEL_TURN_S", 0.0)
    alone = first.pictures
    with held(service):
        first = service.submit(Order(replace(ORDER, count=2), at_once=1))
        other = service.submit(Order(SMALL, model="embedded"))
    pictures = first.future.result(WAIT_S)
    assert other.future.result(WAIT_S) and other.finished_s < first.finished_s
    assert [one.seed for one in pictures] == [3, 4]
    assert all(difference(*(one.image for one in pair)) <= 1 for pair in zip(pictures, alone, strict=True))
