"""What browsers ordered on the page: it goes on when they leave, and they find it again by the id they keep."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsd_lib.core.errors import UserError
from fastsd_lib.generation.jobs import Job
from fastsd_lib.webui import a1111_answer, a1111_settings
from fastsd_lib.webui.a1111 import Ordered, translate
from fastsd_lib.webui.a1111_drawing import submit
from fastsd_lib.webui.a1111_models import DrawingBody
from fastsd_lib.webui.a1111_pictures import file_bytes
from fastsd_lib.webui.context import ApiContext
from fastsd_lib.webui.job_ids import check_job_id

LOG = logging.getLogger(__name__)
KEPT = 200  # tasks that are over


@dataclass
class Outcome:
    """What a task came to. Pictures lie in files: the grid first where there is one, then one for each seed."""

    pictures: list[Path] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)  # one for each picture
    maps: list[Path] = field(default_factory=list)  # what ControlNet units saw
    info: dict[str, Any] = field(default_factory=dict)  # as in the API's answer
    error: UserError | None = None
    stopped: bool = False
    seconds: float = 0.0  # of drawing


@dataclass
class Task:
    """One press of Generate."""

    id: str
    owner: str
    ordered: Ordered | None  # until it is over
    jobs: list[Job]
    outcome: Outcome | None = None
    done: threading.Event = field(default_factory=threading.Event)


class PageTasks:
    """One per server. `scratch`: where pictures lie that the settings do not save."""

    def __init__(self, context: ApiContext, scratch: Path | None = None) -> None:
        self.context, self._lock = context, threading.Lock()
        self._tasks: OrderedDict[str, Task] = OrderedDict()
        self._temporary = None if scratch else tempfile.TemporaryDirectory(prefix="fastsd-page-")
        self.scratch = scratch or Path(self._temporary.name)

    def submit(self, body: DrawingBody, owner: str) -> Task:
        """Order it. UserError as the API says it; decodes pictures: not for the thread that answers everybody."""
        check_job_id(body.force_task_id or "", owner, self.context)
        ordered = translate(body, self.context, owner)
        jobs = submit(ordered, self.context)
        task = Task(body.force_task_id or jobs[0].id, owner, ordered, jobs)
        with self._lock:
            self._tasks[task.id] = task
            over = [one for one in self._tasks.values() if one.done.is_set()]
            for old in over[: max(len(over) - KEPT, 0)]:
                del self._tasks[old.id]
                self._forget(old)
        self._finish_when_over(task)
        return task

    def find(self, task_id: str, owner: str) -> Task | None:
        """The owner's task of that name."""
        with self._lock:
            task = self._tasks.get(task_id)
        return task if task is not None and task.owner == owner else None

    def interrupt(self, task_id: str, owner: str) -> None:
        """End it with what there is; what still waits is not begun."""
        self._each(task_id, owner, self.context.service.cancel, self.context.service.interrupt)

    def skip(self, task_id: str, owner: str) -> None:
        """Leave the pictures in work as they stand and go on with the next ones."""
        self._each(task_id, owner, lambda _: None, self.context.service.skip)

    def _each(
        self, task_id: str, owner: str, waits: Callable[[str], Any], draws: Callable[[str], Any]
    ) -> None:
        task = self.find(task_id, owner)
        for job in task.jobs if task else ():
            if job.state == "waiting":
                waits(job.id)
            elif not job.over:
                draws(job.id)

    def _finish_when_over(self, task: Task) -> None:
        left, lock = [len(task.jobs)], threading.Lock()

        def one_less(_: Any) -> None:
            with lock:
                left[0] -= 1
                if left[0]:
                    return
            try:
                self.context.coders.submit(self._finish, task)
            except RuntimeError:  # the server closes
                task.done.set()

        for job in task.jobs:
            job.future.add_done_callback(one_less)

    def _finish(self, task: Task) -> None:
        try:
            task.outcome = self._outcome(task)
        except UserError as error:
            task.outcome = Outcome(error=error)
        except Exception:
            LOG.exception("The pictures of a task could not be finished")
            fault = UserError("The pictures were drawn, but not finished.", fix="see the server's log.")
            task.outcome = Outcome(error=fault)
        finally:
            task.jobs, task.ordered = [], None  # their pictures stand in memory
            task.done.set()

    def _outcome(self, task: Task) -> Outcome:
        ordered, jobs, context = task.ordered, task.jobs, self.context
        error = next((job.error for job in jobs if job.error is not None), None)
        pictures = [picture for job in jobs for picture in job.pictures]
        if ordered.kept and error is None:
            a1111_settings.apply(context, ordered.kept)
        finished = a1111_answer.finish(ordered, pictures, context, jobs)
        begun = [job.started_s for job in jobs if job.started_s]
        return Outcome(
            pictures=self._files(task, finished),
            infotexts=[text for _, text in finished.shown],
            maps=[self._write(f"{task.id}-map{i}", one, ordered) for i, one in enumerate(finished.maps)],
            info=finished.info,
            error=error,
            stopped=any(job.state == "stopped" for job in jobs),
            seconds=max(job.finished_s or 0 for job in jobs) - min(begun) if begun else 0.0,
        )

    def _files(self, task: Task, finished: a1111_answer.Finished) -> list[Path]:
        """Where the shown pictures lie: as they were saved, else in `scratch`."""
        grid = finished.info["index_of_first_image"]
        saved = finished.files
        if len(saved) == len(finished.shown):
            return [*saved[len(saved) - grid :], *saved[: len(saved) - grid]]
        return [
            self._write(f"{task.id}-{number}", image, task.ordered, text)
            for number, (image, text) in enumerate(finished.shown)
        ]

    def _forget(self, task: Task) -> None:
        for path in (*task.outcome.pictures, *task.outcome.maps) if task.outcome else ():
            if path.parent == self.scratch:
                path.unlink(missing_ok=True)

    def _write(self, name: str, image: Any, ordered: Ordered, text: str = "") -> Path:
        safe = "".join(sign for sign in name if sign.isalnum() or sign in "-_")
        path = self.scratch / f"{safe}.{ordered.settings['samples_format']}"
        path.write_bytes(file_bytes(image, ordered.settings, text))
        return path
