"""The service on a real engine: whose picture is whose, who waits for whom, and what one failing order does to others."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.jobs import Job, Order, QueueFull, QueueLimits
from fastsd_lib.generation.request import GenerationRequest, Hires, Inpaint
from fastsd_lib.generation.samplers import SAMPLERS

ORDER = GenerationRequest(
    "a photo of a red star", "cat", inference_steps=3, seed=3, width_px=32, height_px=32
)
LONG = replace(ORDER, inference_steps=1000, guidance_scale=1)
WAIT_S = 60


@pytest.fixture(scope="module")
def engine(tiny_pipeline):
    from fastsd_lib.generation.engine import load_engine

    return load_engine(tiny_pipeline, device="cpu")


@pytest.fixture(scope="module")
def shelf(engine):
    from fastsd_lib.generation.shelf import Shelf

    return Shelf.of(engine)


@pytest.fixture()
def service(shelf) -> Iterator:
    from fastsd_lib.generation.service import Service

    running = Service(shelf)
    yield running
    running.close()


@contextmanager
def held(service) -> Iterator[None]:
    """The drawing thread stands still between two steps."""
    there, go = threading.Event(), threading.Event()
    service.on_worker(lambda: (there.set(), go.wait(WAIT_S)))
    assert there.wait(WAIT_S)
    try:
        yield
    finally:
        go.set()


@contextmanager
def at_each_call(engine, act) -> Iterator[None]:
    """`act` hears the rows of each U-Net call before it is made."""
    hook = engine.parts.unet.register_forward_pre_hook(lambda _, inputs: act(len(inputs[0])))
    try:
        yield
    finally:
        hook.remove()


def until(job: Job, what) -> None:
    """Wait for a change of a job."""
    seen = threading.Event()
    end = job.subscribe(lambda one: seen.set() if what(one) else None)
    if what(job):
        seen.set()
    assert seen.wait(WAIT_S), job
    end()


def difference(one, other) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def drawn(engine, request: GenerationRequest) -> list[Image.Image]:
    return [one.image for one in engine.generate(request)]


def painting() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def mask() -> Image.Image:
    shape = Image.new("L", (32, 32), 0)
    shape.paste(255, (8, 8, 24, 24))
    return shape


# --- whose picture is whose


def test_sixteen_jobs_at_once_each_get_the_picture_of_their_seed_in_shared_calls(engine, service):
    rows: list[int] = []
    orders = [Order(replace(ORDER, seed=100 + number)) for number in range(16)]
    with held(service):
        jobs = [service.submit(order) for order in orders]
    with at_each_call(engine, rows.append):
        pictures = [job.future.result(WAIT_S) for job in jobs]
    assert len(rows) < 16 * 3 / 4 and max(rows) >= 16  # alone it would be 48 calls of 2 rows
    for number, (picture,) in enumerate(pictures):
        assert picture.seed == 100 + number
        assert difference(picture.image, drawn(engine, orders[number].request)[0]) <= 1
    assert {job.state for job in jobs} == {"done"} and service.jobs() == []


COMPANY = {
    **{f"sampler {name}": replace(ORDER, sampler=name, seed=number) for number, name in enumerate(SAMPLERS)},
    "long prompt": replace(ORDER, prompt="a photo of a cat, " * 30, seed=50),
    "longer negative": replace(ORDER, negative_prompt="red monster " * 90, seed=51),
    "without guidance": replace(ORDER, guidance_scale=1.0, seed=52),
    "other guidance": replace(ORDER, guidance_scale=12.0, inference_steps=5, seed=53),
    "joined prompts": replace(ORDER, prompt="a cat AND a red star :0.5", seed=54),
    "changing prompt": replace(ORDER, prompt="a [cat:monster:2] AND x", seed=55, clip_skip=2),
    "several": replace(ORDER, count=3, seed=56),
    "variation": replace(ORDER, count=2, seed=57, variation_seed=9, variation_strength=0.4),
    "second pass": replace(ORDER, sampler="euler_a", hires=Hires(1.5, strength=0.6), seed=58),
    "second pass in pixels": replace(ORDER, count=2, hires=Hires(2, upscaler="lanczos"), seed=59),
    "over a picture": replace(ORDER, init=painting(), strength=0.5, seed=60),
    "inpainting": replace(ORDER, init=painting(), inpaint=Inpaint(mask(), fill="latent_noise"), seed=61),
    "strength 0": replace(ORDER, init=painting(), strength=0, seed=62),
    "tiling": replace(ORDER, tiling=True, seed=63),
    "other size": replace(ORDER, width_px=48, height_px=24, seed=64),
}


def test_no_company_changes_a_picture(engine, service):
    """All of them at once: of other samplers, lengths, sizes, passes. Each is what it is alone."""
    with held(service):
        jobs = {name: service.submit(Order(request)) for name, request in COMPANY.items()}
    done = {name: job.future.result(WAIT_S) for name, job in jobs.items()}  # before the engine is used here
    for name, together in done.items():
        job = jobs[name]
        alone = engine.generate(COMPANY[name])
        assert [one.seed for one in together] == [one.seed for one in alone]
        apart = max(difference(a.image, b.image) for a, b in zip(together, alone, strict=True))
        assert apart <= 1, name
        assert {**together[0].record, "model_hash": 0} == {**alone[0].record, "model_hash": 0}, name
        assert (job.step, job.share, job.eta_s, job.place) == (job.steps, 1.0, 0.0, 0), name


def test_a_job_joins_at_the_next_step_and_leaves_when_it_is_done(engine, service):
    calls: list[int] = []
    late: list[Job] = []
    first = replace(ORDER, inference_steps=12)

    def act(rows: int) -> None:
        calls.append(rows)
        if len(calls) == 2:
            late.append(service.submit(Order(replace(ORDER, seed=8))))

    with at_each_call(engine, act):
        long = service.submit(Order(first))
        (picture,) = long.future.result(WAIT_S)
        (other,) = late[0].future.result(WAIT_S)
    assert calls == [2, 2, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2]
    assert difference(picture.image, drawn(engine, first)[0]) <= 1
    assert difference(other.image, drawn(engine, replace(ORDER, seed=8))[0]) <= 1
    assert late[0].finished_s <= long.finished_s


def test_a_job_of_many_pictures_leaves_room_for_who_comes_next(engine, service):
    rows: list[int] = []
    small: list[Job] = []

    def act(now: int) -> None:
        rows.append(now)
        if len(rows) == 2:
            small.append(service.submit(Order(replace(ORDER, seed=9))))

    with at_each_call(engine, act):
        many = service.submit(Order(replace(LONG, inference_steps=6, count=70)))
        until(many, lambda _: bool(small))
        small[0].future.result(WAIT_S)
    service.cancel(many.id)
    assert rows[:4] == [32, 32, 34, 34]  # half of the room, of pictures with one row each; then two rows more
    assert len(many.future.result(WAIT_S)) < 70 and many.state == "stopped"


def test_pictures_of_one_job_come_in_the_order_of_their_seeds(engine, service):
    job = service.submit(Order(replace(ORDER, inference_steps=2, count=40)))
    pictures = job.future.result(WAIT_S)
    assert [one.seed for one in pictures] == list(range(3, 43)) and pictures == job.pictures
    assert len({one.image.tobytes() for one in pictures}) == 40


def test_without_batching_one_job_is_drawn_at_a_time(engine, shelf):
    from fastsd_lib.generation.service import Service

    service, rows = Service(shelf, batching=False), []
    with held(service):
        jobs = [service.submit(Order(replace(ORDER, seed=seed))) for seed in range(3)]
    with at_each_call(engine, rows.append):
        ends = [job.future.result(WAIT_S) and job.finished_s for job in jobs]
    assert rows == [2] * 9 and ends == sorted(ends)
    service.close()


def test_two_workers_draw_at_the_same_time_each_with_modules_of_its_own(tiny_pipeline, engine):
    from fastsd_lib.generation.library import LibraryFolders
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf

    service = Service(Shelf(LibraryFolders(), tiny_pipeline, "cpu"), devices=("cpu", "cpu"), batching=False)
    both = threading.Barrier(2)
    meetings = [service.on_worker(lambda: both.wait(WAIT_S)) for _ in range(2)]
    assert sorted(met.result(WAIT_S) for met in meetings) == [0, 1]  # two threads
    jobs = [service.submit(Order(replace(ORDER, seed=seed, inference_steps=8))) for seed in range(4)]
    for seed, job in enumerate(jobs):  # the service has modules of its own
        alone = drawn(engine, replace(ORDER, seed=seed, inference_steps=8))
        assert difference(job.future.result(WAIT_S)[0].image, alone[0]) <= 1
    assert len(service.shelf.memory()["models"]) == 2
    service.close()


# --- ends


def test_cancelling_one_leaves_the_pictures_of_the_others(engine, service):
    orders = [Order(replace(ORDER, inference_steps=8, seed=seed)) for seed in range(4)]
    with held(service):
        jobs = [service.submit(order) for order in orders]
        waiting = service.submit(Order(replace(ORDER, prompt="never drawn")))
        assert service.cancel(waiting.id)
        assert waiting.state == "stopped" and waiting.future.result(0) == []
    until(jobs[1], lambda job: job.step >= 2)
    with held(service):
        steps = jobs[1].step
        assert service.cancel(jobs[1].id)
    assert jobs[1].future.result(WAIT_S) == []
    assert jobs[1].state == "stopped" and jobs[1].step == steps  # not one step more
    left = {number: jobs[number].future.result(WAIT_S) for number in (0, 2, 3)}
    for number, (picture,) in left.items():
        assert difference(picture.image, drawn(engine, orders[number].request)[0]) <= 1
    assert not service.cancel(jobs[1].id) and not service.cancel("nobody")


def test_interrupt_ends_what_draws_with_the_picture_as_it_stands(engine, service):
    long = replace(LONG, count=3)
    job = service.submit(Order(long, at_once=1))
    until(job, lambda one: one.picture_step >= 3)
    with held(service):
        queued = service.submit(Order(ORDER))
        service.interrupt()
    pictures = job.future.result(WAIT_S)
    assert job.state == "stopped" and 1 <= len(pictures) < 3 + 1
    warning = pictures[0].record["warnings"][-1]
    assert warning.startswith("stopped at step ") and warning.endswith(" of 1000")
    assert np.asarray(pictures[0].image).std() > 5  # something is to be seen
    assert len(queued.future.result(WAIT_S)) == 1 and queued.state == "done"  # it did not draw yet


def test_a_second_pass_that_is_never_reached_leaves_the_first_picture(engine, service):
    job = service.submit(Order(replace(LONG, hires=Hires(2.0))))
    until(job, lambda one: one.picture_step >= 3)
    service.interrupt(job.id)
    (picture,) = job.future.result(WAIT_S)
    assert picture.image.size == (32, 32)


def test_skip_leaves_one_batch_as_it_stands_and_goes_on(engine, service):
    request = replace(ORDER, inference_steps=30, count=6)
    job = service.submit(Order(request, at_once=2))
    until(job, lambda one: one.picture_step >= 2)
    service.skip(job.id)
    pictures = job.future.result(WAIT_S)
    assert job.state == "done" and [one.seed for one in pictures] == [3, 4, 5, 6, 7, 8]
    cut = [one.seed for one in pictures if "stopped at step" in "".join(one.record["warnings"])]
    assert cut == [3, 4]
    for picture, whole in zip(pictures[2:], drawn(engine, request)[2:], strict=True):
        assert difference(picture.image, whole) <= 1


def test_stop_after_picture_begins_no_other(engine, service):
    request = replace(ORDER, inference_steps=30, count=6)
    job = service.submit(Order(request, at_once=1))
    until(job, lambda one: one.picture_step >= 2)
    service.stop_after_picture(job.id)
    pictures = job.future.result(WAIT_S)
    assert job.state == "stopped" and 1 <= len(pictures) < 6
    for picture, whole in zip(pictures, drawn(engine, replace(request, count=len(pictures))), strict=True):
        assert difference(picture.image, whole) <= 1


def test_a_drawing_that_takes_too_long_ends_with_a_sentence(shelf):
    from fastsd_lib.generation.service import Service

    service = Service(shelf, limits=QueueLimits(most_seconds=0.05))
    job = service.submit(Order(LONG))
    with pytest.raises(UserError, match=r"took more than 0\.05 s") as error:
        job.future.result(WAIT_S)
    assert "fewer pictures or steps" in error.value.fix and job.state == "failed"
    service.close()


def test_closing_ends_what_waits_and_what_draws(shelf):
    from fastsd_lib.generation.service import Service

    service = Service(shelf)
    drawing = service.submit(Order(LONG))
    until(drawing, lambda job: job.step > 0)
    service.pause()
    waiting = service.submit(Order(ORDER))
    service.close()
    assert (drawing.state, waiting.state) == ("stopped", "stopped")
    assert drawing.future.result(0) == [] and waiting.future.result(0) == []
    with pytest.raises(UserError, match="being closed"):
        service.submit(Order(ORDER))


# --- the queue


def test_a_full_queue_says_when_to_come_again(shelf):
    from fastsd_lib.generation.service import Service

    service = Service(shelf, limits=QueueLimits(most_waiting=2, most_per_owner=2))
    service.pause()
    mine = [service.submit(Order(ORDER, owner="me")) for _ in range(2)]
    with pytest.raises(QueueFull, match="2 orders under way") as error:
        service.submit(Order(ORDER, owner="me"))
    assert "cancel one" in error.value.fix and error.value.retry_after_s >= 1
    with pytest.raises(QueueFull, match="2 orders wait already"):
        service.submit(Order(ORDER, owner="you"))
    service.cancel(mine[0].id)
    yours = service.submit(Order(ORDER, owner="you", task_id="task(7)"))
    assert service.job("task(7)") is yours and service.jobs("you") == [yours]
    service.cancel(mine[1].id)
    with pytest.raises(UserError, match=r"'task\(7\)' is under way") as error:
        service.submit(Order(ORDER, task_id="task(7)"))
    assert "another task id" in error.value.fix
    service.close()


def test_paused_nothing_steps_and_places_can_be_changed(engine, service):
    calls: list[int] = []
    drawing = service.submit(Order(LONG))
    until(drawing, lambda job: job.step > 0)
    with held(service):
        service.pause()
    with at_each_call(engine, calls.append):
        jobs = [service.submit(Order(replace(ORDER, seed=seed))) for seed in range(3)]
        assert [job.place for job in jobs] == [1, 2, 3] and drawing.place == 0
        assert service.move(jobs[2].id, 1) and not service.move(drawing.id, 1)
        assert [job.place for job in jobs] == [2, 3, 1]
        assert service.cancel(drawing.id)  # also while it is paused
        assert drawing.future.result(WAIT_S) == [] and calls == []
    assert service.paused
    service.resume()
    assert all(len(job.future.result(WAIT_S)) == 1 for job in jobs)
    assert jobs[2].started_s <= jobs[0].started_s


def test_what_is_finished_is_kept_for_those_who_come_back_but_not_for_ever(shelf):
    from fastsd_lib.generation.service import Service

    service = Service(shelf, limits=QueueLimits(kept_jobs=3))
    jobs = [service.submit(Order(replace(ORDER, seed=seed))) for seed in range(5)]
    for job in jobs:
        job.future.result(WAIT_S)
    with held(service):
        assert [service.job(job.id) is job for job in jobs] == [False, False, True, True, True]
        assert service.kept() == jobs[2:] and len(service.job(jobs[4].id).pictures) == 1
    gone = [weakref.ref(job) for job in jobs[:2]]
    del job, jobs
    gc.collect()
    assert [one() for one in gone] == [None, None]  # and nothing holds on to them
    service.close()


def test_listeners_hear_each_step_and_are_let_go(service):
    told: list[tuple] = []
    with held(service):
        job = service.submit(Order(ORDER))
        job.subscribe(lambda one: told.append((one.state, one.step)))
        job.subscribe(lambda one: 1 / 0)  # his own trouble
        quiet: list = []
        job.subscribe(quiet.append)()
    job.future.result(WAIT_S)
    assert told[0] == ("drawing", 0) and told[-1] == ("done", 3) and ("drawing", 2) in told
    assert quiet == [] and job._listeners == []
    late: list = []
    job.subscribe(late.append)
    assert late == [job]


# --- models


def test_models_take_turns_and_a_long_job_lets_another_model_go_first(tiny_pipeline, monkeypatch):
    from fastsd_lib.generation import worker
    from fastsd_lib.generation.engine import load_engine
    from fastsd_lib.generation.library import LibraryFolders
    from fastsd_lib.generation.service import Service
    from fastsd_lib.generation.shelf import Shelf
    from fastsd_lib.models import registry

    monkeypatch.setattr(worker, "MODEL_TURN_S", 0.0)
    service = Service(Shelf(LibraryFolders(), tiny_pipeline, "cpu"))
    order = Order(replace(ORDER, count=40))
    long = service.submit(order)
    until(long, lambda job: job.step > 0)
    other = service.submit(Order(ORDER, model="embedded"))
    (picture,) = other.future.result(WAIT_S)
    assert picture.record["model"] == "embedded"
    alone = load_engine(registry.base_model(), "cpu").generate(ORDER)
    assert difference(picture.image, alone[0].image) <= 1
    pictures = long.future.result(WAIT_S)
    assert [one.seed for one in pictures] == list(range(3, 43)) and long.finished_s > other.finished_s
    assert len({one.image.tobytes() for one in pictures}) == 40
    service.close()


def test_unknown_names_and_sizes_that_do_not_fit_are_said(service):
    with pytest.raises(UserError, match="No model 'tinny'") as error:
        service.submit(Order(ORDER, model="tinny"))
    assert "nearest: tiny" in error.value.message
    with pytest.raises(UserError, match="No VAE 'x'"):
        service.submit(Order(ORDER, vae="x"))
    with pytest.raises(UserError, match="inference_steps is 0"):
        service.submit(Order(replace(ORDER, inference_steps=0)))
    job = service.submit(Order(replace(ORDER, width_px=66)))
    with pytest.raises(UserError, match="width_px is 66") as error:
        job.future.result(WAIT_S)
    assert "take 64 or 68" in error.value.fix and job.state == "failed" and job.error is error.value
    with pytest.raises(UserError, match="No model 'nothing'"):
        service.load("nothing")
    with pytest.raises(ZeroDivisionError):
        service.on_worker(lambda: 1 / 0).result(WAIT_S)


# --- what one failing order does to others


def test_a_poisoned_order_falls_alone_and_the_worker_lives_on(engine, service, caplog):
    """The U-Net breaks whenever the poisoned one is among the rows."""
    poison = replace(ORDER, guidance_scale=77.0, prompt="monster " * 7)
    with engine_texts(engine, poison.prompt) as hidden:

        def break_down(_module, _inputs, named) -> None:
            rows = named["encoder_hidden_states"]
            if any(row[: len(hidden)].equal(hidden) for row in rows):
                raise ValueError("broken inside")

        hook = engine.parts.unet.register_forward_pre_hook(break_down, with_kwargs=True)
        try:
            with held(service):
                good = [service.submit(Order(replace(ORDER, seed=seed))) for seed in range(2)]
                bad = service.submit(Order(poison))
                good.append(service.submit(Order(replace(ORDER, seed=2))))
            with pytest.raises(UserError, match="something went wrong inside") as error:
                bad.future.result(WAIT_S)
            pictures = [job.future.result(WAIT_S)[0] for job in good]
        finally:
            hook.remove()
    assert "log says what" in error.value.fix and "ValueError: broken inside" in caplog.text
    for seed, picture in enumerate(pictures):
        assert difference(picture.image, drawn(engine, replace(ORDER, seed=seed))[0]) <= 1
    assert len(service.submit(Order(ORDER)).future.result(WAIT_S)) == 1


@contextmanager
def engine_texts(engine, prompt: str) -> Iterator:
    import torch

    from fastsd_lib.generation.text_reader import TextReader

    with torch.inference_mode():
        yield TextReader(engine.parts).encode(prompt).hidden.clone()


def test_short_memory_splits_the_call_is_noted_and_changes_no_picture(engine, service):
    import torch

    def refuse(_module, inputs) -> None:
        if len(inputs[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = engine.parts.unet.register_forward_pre_hook(refuse)
    try:
        with held(service):
            single = [service.submit(Order(replace(ORDER, seed=seed))) for seed in range(5)]
            several = service.submit(Order(replace(ORDER, count=5, seed=40)))
        pictures = [job.future.result(WAIT_S)[0] for job in single]
        batch = several.future.result(WAIT_S)
    finally:
        hook.remove()
    for seed, picture in enumerate(pictures):
        assert difference(picture.image, drawn(engine, replace(ORDER, seed=seed))[0]) <= 1
    for picture, alone in zip(batch, drawn(engine, replace(ORDER, count=5, seed=40)), strict=True):
        assert difference(picture.image, alone) <= 1
    assert all("out of memory with" in job.notes[-1] for job in single)
    assert "fewer at once" in single[0].pictures[0].record["warnings"][-1]


def test_memory_that_does_not_suffice_for_one_picture_is_an_error_of_that_job_alone(engine, service):
    import torch

    def refuse(_module, inputs) -> None:
        if inputs[0].shape[2] > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = engine.parts.unet.register_forward_pre_hook(refuse)
    try:
        large = service.submit(Order(replace(ORDER, height_px=64)))
        usual = service.submit(Order(ORDER))
        with pytest.raises(UserError, match="does not suffice for a picture of 32 x 64 px") as error:
            large.future.result(WAIT_S)
        assert "smaller width_px" in error.value.fix
        assert len(usual.future.result(WAIT_S)) == 1
    finally:
        hook.remove()


def test_a_model_that_gives_no_numbers_fails_only_the_job_that_met_them(engine, service):
    infinite = service.submit(Order(replace(ORDER, s_noise=2.0, s_churn=1000, sampler="euler", seed=1)))
    usual = service.submit(Order(ORDER))
    assert len(usual.future.result(WAIT_S)) == 1
    assert infinite.future.exception(WAIT_S) is None or "no numbers" in str(infinite.error)


def test_a_picture_that_is_ready_before_its_turn_is_held_back_until_the_end():
    from fastsd_lib.generation.worker_strands import Work

    work = Work(Job(Order(ORDER)), None, None)
    shown = []
    for number, name in ((1, "b"), (0, "a"), (3, "d")):
        work.finished[number] = name
        work.show()
        shown.append(list(work.job.pictures))
    work.show(to_the_end=True)
    assert shown == [[], ["a", "b"], ["a", "b"]] and work.job.pictures == ["a", "b", "d"]


def test_pictures_that_are_drawn_over_do_not_fill_the_memory(shelf):
    from fastsd_lib.generation.service import Service

    def over() -> Order:
        return Order(replace(ORDER, init=Image.new("RGB", (700, 700)), strength=0.0))  # 1.4 MiB

    service = Service(shelf, limits=QueueLimits(kept_mib=3, most_input_mib=3))
    try:
        jobs = []
        for _ in range(4):
            jobs.append(service.submit(over()))
            jobs[-1].future.result(WAIT_S)
        with held(service):
            service.submit(over())
            service.submit(over())
            with pytest.raises(QueueFull, match="fill 3 MiB already"):
                service.submit(over())
            service.submit(Order(ORDER))  # it brings no picture
        assert service.job(jobs[0].id) is None and len(service.kept()) <= 2
    finally:
        service.close()
