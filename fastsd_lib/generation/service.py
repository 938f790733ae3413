"""Orders in from anywhere, pictures out: one queue before the models."""

from __future__ import annotations

import logging
import threading
import time

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.generation.history import History
from fastsd_lib.generation.jobs import Job, Order, QueueFull, QueueLimits
from fastsd_lib.generation.shelf import Shelf

LOG = logging.getLogger(__name__)


class _Stopped(Exception):
    pass


class Service:
    """Draws what is ordered, in a thread of its own."""

    def __init__(
        self,
        shelf: Shelf,
        history: History | None = None,
        limits: QueueLimits | None = None,
        devices: tuple[str, ...] = ("auto",),
        batching: bool = True,
    ) -> None:
        self.shelf, self.history, self.limits, self.devices, self.batching = (
            shelf, history, limits or QueueLimits(), devices, batching,
        )  # fmt: skip
        self.paused = False
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._drawing: list[Job] = []
        self._stops: set[str] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    def submit(self, order: Order) -> Job:
        """Queue an order. UserError for what no model can follow, QueueFull when there is no room."""
        order.request.check()
        self.shelf.find(order.model)
        job = Job(order, **({"id": order.task_id} if order.task_id else {}))
        job.place_of = lambda one: self._waiting.index(one) + 1 if one in self._waiting else 0
        with self._changed:
            if self._closed:
                raise UserError("The service is closed.", fix="start it again.")
            if job.id in self._jobs and not self._jobs[job.id].over:
                raise UserError(f"There is a job {job.id!r} already.", fix="take another task id.")
            if len(self._waiting) >= self.limits.most_waiting:
                raise QueueFull(
                    f"{len(self._waiting)} orders wait already.", fix="try again later.", retry_after_s=10
                )
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._changed.notify_all()
        self._remember(job)
        return job

    def job(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def jobs(self, owner: str | None = None) -> list[Job]:
        """Drawing and waiting, in order."""
        with self._changed:
            all_of_them = [*self._drawing, *self._waiting]
        return [job for job in all_of_them if owner is None or job.order.owner == owner]

    def running(self) -> list[Job]:
        with self._changed:
            return list(self._drawing)

    def cancel(self, job_id: str) -> bool:
        """End one job; False when there is none to end."""
        with self._changed:
            job = self._jobs.get(job_id)
            if job is None or job.over:
                return False
            if job in self._waiting:
                self._waiting.remove(job)
            else:
                self._stops.add(job_id)
                return True
        job.finish("stopped")
        self._remember(job)
        return True

    def interrupt(self, job_id: str | None = None) -> None:
        """End what draws now with what it has."""
        for job in self.running():
            if job_id in (None, job.id):
                self._stops.add(job.id)

    def skip(self, job_id: str | None = None) -> None:
        """Leave the pictures in work and go on with the next ones."""
        self.interrupt(job_id)

    def stop_after_picture(self, job_id: str | None = None) -> None:
        """End after the pictures in work."""
        self.interrupt(job_id)

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        with self._changed:
            self.paused = False
            self._changed.notify_all()

    def move(self, job_id: str, place: int) -> bool:
        """To this place among those that wait, 1 = the next."""
        with self._changed:
            for job in self._waiting:
                if job.id == job_id:
                    self._waiting.remove(job)
                    self._waiting.insert(max(place - 1, 0), job)
                    return True
        return False

    def close(self) -> None:
        with self._changed:
            self._closed = True
            left = [*self._waiting, *self._drawing]
            self._changed.notify_all()
        for job in left:
            self.cancel(job.id)
        self._thread.join(timeout=30)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or (self._waiting and not self.paused))
                if self._closed and not self._waiting:
                    return
                job = self._waiting.pop(0)
                self._drawing.append(job)
                job.state, job.started_s = "drawing", time.time()
            self._draw(job)
            with self._changed:
                self._drawing.remove(job)
                self._stops.discard(job.id)
            self._remember(job)

    def _draw(self, job: Job) -> None:
        def report(event: ProgressEvent) -> None:
            if job.id in self._stops:
                raise _Stopped
            job.step, job.steps = event.done, event.total
            job.picture_step, job.picture_steps = event.done, event.total
            job.tell()

        job.tell()
        try:
            job.pictures = self.shelf.engine(job.order.model, job.order.vae).generate(
                job.order.request, report
            )
            job.finish("done")
        except _Stopped:
            job.finish("stopped")
        except UserError as error:
            job.finish("failed", error)
        except Exception:
            LOG.exception("Job %s failed", job.id)
            job.finish(
                "failed",
                UserError(
                    "The pictures could not be drawn.", fix="the log of the server says why; try again."
                ),
            )

    def _remember(self, job: Job) -> None:
        if self.history:
            self.history.record(job)
