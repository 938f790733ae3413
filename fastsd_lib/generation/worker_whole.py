"""Jobs of models that diffusers draws: one at a time, in its loop, and heard between two of its steps."""

from __future__ import annotations

import time
from collections.abc import Callable

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.engine import GeneratedImage
from fastsd_lib.generation.jobs import Job
from fastsd_lib.generation.jobs_queue import JobQueue
from fastsd_lib.generation.pipeline_engine import AsItStands, PipelineEngine
from fastsd_lib.generation.prompt_tags import split_tags, without_comments
from fastsd_lib.generation.request import GenerationRequest
from fastsd_lib.generation.worker_faults import took_too_long


class _Cancelled(Exception):
    """Raised between two steps: nobody wants the pictures in work any more."""


class WholeDrawing:
    """One job, from its first picture to the last; in between it may let another model go first.

    `errands`: what the worker's thread has to do for others between two steps.
    """

    def __init__(self, job: Job, queue: JobQueue, errands: Callable[[], None]) -> None:
        self.job, self.queue, self.errands = job, queue, errands
        self.drawn_s = 0.0
        self._since = 0.0  # the last step
        self._cut_at: tuple[int, int] | None = None  # the step, of so many, at which the batch in work ends

    def draw(self, engine: PipelineEngine, model_hash: str | None, others_first: Callable[[], bool]) -> None:
        """Draw what is left, and end the job; or give it back once `others_first`. Raises what makes it fail."""
        job, request = self.job, self.job.order.request
        _check_tags(request, engine)
        self._since = time.monotonic()
        try:
            batches = engine.batches(request, self._told, len(job.pictures), job.order.at_once)
            while len(job.pictures) < request.count:
                self._wait_if_paused()
                if job.wish in ("after_picture", "interrupt"):
                    break
                if job.pictures and others_first():
                    job.carried = self
                    self.queue.give_back(job)
                    return
                self._collect(next(batches), model_hash)
        except _Cancelled:
            self.queue.end(job, "stopped")
            return
        whole = len(job.pictures) == request.count and job.wish != "interrupt"
        self.queue.end(job, "done" if whole else "stopped")

    def _told(self, numbers: range, step: int, steps: int) -> None:
        """After each step: tell how far it is, and hear whoever wants something."""
        job = self.job
        self.queue.measured(len(numbers), time.monotonic() - self._since)
        job.steps, job.picture_steps = steps * job.order.request.count, steps
        job.step, job.picture_step = steps * numbers.start + step * len(numbers), step
        job.in_work = numbers.start, numbers.stop
        job.tell()
        self._wait_if_paused()
        if job.wish == "interrupt" or job.skips:
            self._cut_at = step, steps
            raise AsItStands

    def _wait_if_paused(self) -> None:
        """Raises what ends the drawing: the end of the service, a cancelled job, the limit of time."""
        job, queue = self.job, self.queue
        self.drawn_s += time.monotonic() - self._since
        self.errands()
        while not self._may_go_on() and queue.wait(self._may_go_on):
            self.errands()
        self._since = time.monotonic()
        if queue.closed or job.wish == "cancel":
            raise _Cancelled
        if self.drawn_s > queue.limits.most_seconds:
            raise took_too_long(queue.limits.most_seconds)

    def _may_go_on(self) -> bool:
        """Also to what cuts the pictures in work, though the service is paused."""
        return not self.queue.paused or self.job.skips or self.job.wish in ("cancel", "interrupt")

    def _collect(self, batch: list[GeneratedImage], model_hash: str | None) -> None:
        """Give out the finished pictures."""
        job = self.job
        for picture in batch:
            if model_hash:
                picture.record["model_hash"] = model_hash
            if self._cut_at and self._cut_at[0] < self._cut_at[1]:
                picture.record["warnings"].append("stopped at step {} of {}".format(*self._cut_at))
        self._cut_at, job.skips = None, False
        job.pictures.extend(batch)
        job.step = job.picture_steps * len(job.pictures)
        job.tell()


def _check_tags(request: GenerationRequest, engine: PipelineEngine) -> None:
    """UserError for LoRA files: the picture would come out as if they had not been asked for."""
    tags = [] if request.networks_off else split_tags(without_comments(request.prompt))[1]
    if tags:
        raise UserError(
            f"{tags[0].text} is not in force with {engine.name}: {engine.model.family} models are drawn without LoRA.",
            fix="leave it out, or take an SD 1.x, SD 2.x or SDXL model.",
        )
