"""Orders in from anywhere, pictures out: one queue before the models, a worker for each device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.history import History
from fastsd_lib.generation.jobs import Job, Order, QueueFull, QueueLimits, Wish
from fastsd_lib.generation.jobs_queue import JobQueue
from fastsd_lib.generation.shelf import Shelf
from fastsd_lib.generation.worker import Worker

__all__ = ["Job", "Order", "QueueFull", "QueueLimits", "Service"]

LOG = logging.getLogger(__name__)


class Service:
    """Draws what is ordered. Every method answers at once, from any thread, whatever is being drawn.

    `devices`: "auto", "cpu", "cuda:0" ...; one worker each, all behind one queue. `batching` False draws one
    job at a time.
    """

    def __init__(
        self,
        shelf: Shelf,
        history: History | None = None,
        limits: QueueLimits | None = None,
        devices: Sequence[str] = ("auto",),
        batching: bool = True,
    ) -> None:
        self.shelf, self.history, self.limits = shelf, history, limits or QueueLimits()
        self._queue = JobQueue(self.limits, self._remember)
        self._clerk = ThreadPoolExecutor(1, "history")  # writes, so that nobody waits for the disk
        self._workers = [
            Worker(shelf, self._queue, device, number, batching) for number, device in enumerate(devices)
        ]
        for worker in self._workers:
            worker.thread.start()

    # --- orders

    def submit(self, order: Order) -> Job:
        """Queue an order. UserError for what no model can follow, QueueFull when there is no room."""
        order.request.check()
        model = self.shelf.find(order.model).name
        job = Job(order, **({"id": order.task_id} if order.task_id else {}))
        job.model_key = model, self.shelf.find_vae(order.vae)
        self._queue.add(job)
        self._remember(job)
        return job

    def job(self, job_id: str) -> Job | None:
        """Waiting, drawing, or among those that are kept: the newest `limits.kept_jobs` that are over."""
        return self._queue.get(job_id)

    def jobs(self, owner: str | None = None) -> list[Job]:
        """Drawing and waiting, in order."""
        return [job for job in self._queue.under_way() if owner is None or job.order.owner == owner]

    def kept(self, owner: str | None = None) -> list[Job]:
        """Those that are over and still kept with their pictures, the oldest first."""
        return [job for job in self._queue.kept() if owner is None or job.order.owner == owner]

    def running(self) -> list[Job]:
        """Being drawn now, the oldest first."""
        return [job for job in self._queue.under_way() if job.state == "drawing"]

    # --- ends

    def cancel(self, job_id: str) -> bool:
        """End one job before its next step; finished pictures stay. False when there is none under way."""
        return self._wish(job_id, "cancel")

    def interrupt(self, job_id: str | None = None) -> None:
        """End one job, or all that draw now, with what there is: the picture in work stays as it stands."""
        for job in self.running():
            if job_id in (None, job.id):
                self._wish(job.id, "interrupt")

    def skip(self, job_id: str | None = None) -> None:
        """Leave the pictures in work as they stand and go on with the next ones, of one job or of all."""
        for job in self.running():
            if job_id in (None, job.id):
                job.skips = True
        self._stir()

    def stop_after_picture(self, job_id: str | None = None) -> bool:
        """End one job, or all that draw now, when the pictures in work are finished."""
        jobs = [job.id for job in self.running()] if job_id is None else [job_id]
        return any([self._wish(one, "after_picture") for one in jobs])

    def _wish(self, job_id: str, wish: Wish) -> bool:
        job = self._queue.get(job_id)
        if job is None or job.over:
            return False
        job.ask_to_end(wish)
        if self._queue.remove(job):
            self._queue.end(job, "stopped")
        self._stir()
        return True

    # --- the queue

    @property
    def paused(self) -> bool:
        return self._queue.paused

    def pause(self) -> None:
        """Hold everything before the next step; orders are still taken, and can be cancelled."""
        self._queue.paused = True

    def resume(self) -> None:
        self._queue.paused = False
        self._stir()

    def move(self, job_id: str, place: int) -> bool:
        """To this place among those that wait, 1 = the next; False when it does not wait."""
        job = self._queue.get(job_id)
        return job is not None and self._queue.move(job, place)

    @property
    def steps_per_s(self) -> float:
        """Of pictures, lately; 0 before the first."""
        return self._queue.steps_per_s

    # --- models

    def on_worker(self, work: Callable[[], Any]) -> Future[Any]:
        """Do something with the models between two steps, such as loading one; a worker does it."""
        told: Future[Any] = Future()
        with self._queue.changed:
            if self._queue.closed:
                told.set_exception(UserError("The service is being closed.", fix="start it again."))
                return told
            self._queue.errands.append((work, told))
            self._queue.changed.notify_all()
        return told

    def load(self, model: str = "") -> Future[Any]:
        """Load a model before it is asked for; a UserError at once for a name that is not there."""
        name = self.shelf.find(model).name
        worker = self._workers[0]
        return self.on_worker(lambda: self.shelf.engine(name, device=worker.device, number=worker.number))

    # --- the end

    def close(self) -> None:
        """End all jobs and the workers; the history is written to its end, and left open."""
        with self._queue.changed:
            self._queue.closed = True
            self._queue.paused = False
            waiting, errands = list(self._queue.waiting), list(self._queue.errands)
            self._queue.errands.clear()
            self._queue.changed.notify_all()
        for job in waiting:
            self.cancel(job.id)
        for _, told in errands:
            told.cancel()
        for worker in self._workers:
            worker.thread.join(timeout=60)
        self._clerk.shutdown(wait=True)

    def note_files(self, job: Job, files: Sequence[Path]) -> None:
        """Let the history know where the pictures of a job were saved."""
        if self.history is None:
            return
        self._by_clerk(self.history.set_files, job.id, files)  # behind the lines that it adds to

    def _stir(self) -> None:
        with self._queue.changed:
            self._queue.changed.notify_all()

    def _remember(self, job: Job) -> None:
        if self.history is not None:
            self._by_clerk(self.history.record, job)

    def _by_clerk(self, write: Callable[..., None], *args: Any) -> None:
        try:
            self._clerk.submit(self._write, write, *args)
        except RuntimeError:  # closed
            self._write(write, *args)

    def _write(self, write: Callable[..., None], *args: Any) -> None:
        try:
            write(*args)
        except Exception:
            LOG.exception("The history could not be written")
