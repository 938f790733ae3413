"""The order in which jobs are drawn, and those that were; light. One lock, held for moments, never for a step."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.jobs import Job, QueueFull, QueueLimits, State, inputs_of

Errand = tuple[Callable[[], Any], "Future[Any]"]


class JobQueue:
    """What waits, what is drawn, and what is kept of what is over."""

    def __init__(self, limits: QueueLimits, over: Callable[[Job], None] = lambda job: None) -> None:
        self.limits = limits
        self.changed = threading.Condition()
        self.waiting: list[Job] = []
        self.drawing: list[Job] = []
        self.paused = self.closed = False
        self.errands: list[Errand] = []  # what a worker is to do between two steps
        self._over = over
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._kept: OrderedDict[str, int] = (
            OrderedDict()
        )  # jobs that are over, and the bytes of their pictures
        self._steps_per_s = 0.0

    # --- from any thread

    def add(self, job: Job) -> None:
        """UserError for an id that is taken, QueueFull when there is no room."""
        job.place_of, job.eta_of = self.place, self.eta_s
        with self.changed:
            if self.closed:
                raise UserError("The service is being closed.", fix="start it again, then order once more.")
            there = self._jobs.get(job.id)
            if there is not None and not there.over:
                raise UserError(f"A job {job.id!r} is under way already.", fix="take another task id.")
            self._check_room(job)
            self._kept.pop(job.id, None)
            self._jobs[job.id] = job
            self.waiting.append(job)
            self.changed.notify_all()

    def _check_room(self, job: Job) -> None:
        limits, owner = self.limits, job.order.owner
        own = sum(one.order.owner == owner for one in [*self.drawing, *self.waiting]) if owner else 0
        later = f"try again in {self._retry_s()} s"
        if own >= limits.most_per_owner:
            raise QueueFull(
                f"You have {own} orders under way, and {limits.most_per_owner} is the most.",
                f"{later}, or cancel one.",
                self._retry_s(),
            )
        if len(self.waiting) >= limits.most_waiting:
            raise QueueFull(f"{len(self.waiting)} orders wait already.", f"{later}.", self._retry_s())
        if self.waiting and (inputs := inputs_of(job.order.request)):
            for one in self.waiting:
                inputs |= inputs_of(one.order.request)
            if sum(inputs.values()) > limits.most_input_mib << 20:
                raise QueueFull(
                    f"The pictures of the orders that wait fill {limits.most_input_mib} MiB already.",
                    f"{later}, or send smaller ones.",
                    self._retry_s(),
                )

    def _retry_s(self) -> int:
        """When about one more has been finished."""
        under_way = [*self.drawing, *self.waiting]
        left = sum(job.steps - job.step for job in under_way) / max(len(under_way), 1)
        return max(1, min(math.ceil(left / self._steps_per_s), 600)) if self._steps_per_s else 5

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def under_way(self) -> list[Job]:
        with self.changed:
            return [*self.drawing, *self.waiting]

    def kept(self) -> list[Job]:
        """Those that are over, the oldest first."""
        with self.changed:
            return [self._jobs[job_id] for job_id in self._kept]

    def remove(self, job: Job) -> bool:
        """Take it out if it waits."""
        with self.changed:
            if job not in self.waiting:
                return False
            self.waiting.remove(job)
            return True

    def move(self, job: Job, place: int) -> bool:
        with self.changed:
            if job not in self.waiting:
                return False
            self.waiting.remove(job)
            self.waiting.insert(max(place, 1) - 1, job)
        job.tell()
        return True

    def end(self, job: Job, state: State, error: UserError | None = None) -> None:
        """The end of a job, whoever brings it about; what is kept of old ones makes room."""
        with self.changed:
            for those in (self.waiting, self.drawing):
                if job in those:
                    those.remove(job)
        job.finish(state, error)
        with self.changed:
            if self._jobs.get(job.id) is job:
                drawn = sum(3 * one.image.width * one.image.height for one in job.pictures)
                self._kept[job.id] = drawn + sum(inputs_of(job.order.request).values())
            self._make_room()
            self.changed.notify_all()
        self._over(job)

    def _make_room(self) -> None:
        while len(self._kept) > self.limits.kept_jobs or (
            sum(self._kept.values()) > self.limits.kept_mib << 20 and len(self._kept) > 1
        ):
            self._jobs.pop(self._kept.popitem(last=False)[0], None)

    def place(self, job: Job) -> int:
        try:
            return self.waiting.index(job) + 1
        except ValueError:  # it has just been taken
            return 0

    def eta_s(self, job: Job) -> float | None:
        """From the speed of the last minutes; of a drawing job from its own, once it has one."""
        if job.state == "drawing" and job.started_s and job.share > 0.02:
            return (time.time() - job.started_s) / job.share * (1 - job.share)
        if not self._steps_per_s:
            return None
        ahead = self.under_way()
        ahead = ahead[: ahead.index(job) + 1] if job in ahead else [job]
        return sum(one.steps - one.step for one in ahead) / self._steps_per_s

    # --- from the workers

    def wait(self, ready: Callable[[], bool]) -> bool:
        """Sleep until there is something to do; False when the service closes."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.errands or ready())
            return not self.closed

    def take(self, suits: Callable[[Job], bool]) -> Job | None:
        """The first one that suits; it is drawn from now on."""
        with self.changed:
            for job in self.waiting:
                if suits(job):
                    self.waiting.remove(job)
                    self.drawing.append(job)
                    job.state, job.started_s = "drawing", job.started_s or time.time()
                    return job
        return None

    def give_back(self, job: Job) -> None:
        """Behind the first one that wants another model: long jobs let others in between."""
        with self.changed:
            self.drawing.remove(job)
            others = [at for at, one in enumerate(self.waiting) if one.model_key != job.model_key]
            self.waiting.insert(others[0] + 1 if others else 0, job)
            job.state, job.in_work = "waiting", (0, 0)
        job.tell()

    def others_wait(self, model_key: tuple[str, str]) -> bool:
        return any(job.model_key != model_key for job in list(self.waiting))

    def next_errand(self) -> Errand | None:
        with self.changed:
            return self.errands.pop(0) if self.errands else None

    def measured(self, steps: int, seconds: float) -> None:
        """So many steps of pictures took so long: a mean that forgets."""
        speed = steps / max(seconds, 1e-6)
        self._steps_per_s += (speed - self._steps_per_s) * (0.1 if self._steps_per_s else 1)

    @property
    def steps_per_s(self) -> float:
        return self._steps_per_s
