"""A training that the web server started: what was heard of it, and how it stands."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal

from fastsd_lib.sessions.session import Session
from fastsd_lib.webui.trainings import State, Task
from fastsd_lib.workflows.training_process import TrainingProcess, why_it_ended
from fastsd_lib.workflows.training_trace import LossTrace

Doing = Literal["train", "resume", "export"]


class RunningTraining:
    """One run of the child, from its start on; kept after its end for what it said last."""

    def __init__(
        self,
        session: Session,
        doing: Doing,
        order: Mapping[str, Any],
        over: Callable[[RunningTraining], None],
    ) -> None:
        """`over` is called once, in another thread, when the child has ended; before that `alive` is true."""
        self.session, self.doing = session, doing
        self.trace = LossTrace(session, skip_present=doing == "train")
        self.task: Task | None = None
        self.notes: list[str] = []
        self.step = self.total_steps = 0
        self.eta_s: float | None = None
        self.asked_to_stop = False
        self.exported = False
        self.problem, self.fix = "", ""
        self._stages: dict[str, int] = {}
        self._saving_file = doing == "export"
        self._over, self._lock = over, threading.Lock()
        self._stopped = False  # the child says that it ended because it was asked to
        self.process = TrainingProcess(order, self._hear, self._ended)

    @property
    def alive(self) -> bool:
        return self.process.alive

    @property
    def state(self) -> State | None:
        """None when it is over and the session's files say how it stands."""
        if self.alive:
            if self.asked_to_stop:
                return "stopping"
            return "exporting" if self._saving_file else "running"
        return "failed" if self.problem else None

    @property
    def line(self) -> str:
        """One sentence on what it does now."""
        if self.asked_to_stop:
            return "Stopping: the step is finished, then all is saved."
        task = self.task
        if task is None:
            return "Starting."
        if task.name in self._stages:
            return f"Training the {task.name}: step {self.step:,} of {self.total_steps:,}"
        count = f" {task.done:,} of {task.total:,}" if task.total > 1 else ""
        return f"{task.name[:1].upper()}{task.name[1:]}{count}"

    def stop(self, patience_s: float) -> None:
        """The first call lets it save; the second one ends it at once."""
        with self._lock:
            again, self.asked_to_stop = self.asked_to_stop, True
        if again:
            self.process.kill()
        else:
            self.process.ask_to_stop(patience_s)

    def _hear(self, message: dict[str, Any]) -> None:
        with self._lock:
            for kind, what in message.items():
                getattr(self, f"_hear_{kind}")(what)

    def _hear_plan(self, plan: Mapping[str, Any]) -> None:
        self._stages = {name: steps for name, steps in plan["steps"].items() if steps}
        self.total_steps = sum(self._stages.values())

    def _hear_event(self, event: Mapping[str, Any]) -> None:
        facts = event["facts"]
        if "" in facts:  # a sentence that speaks for itself
            self.notes = [*self.notes[-4:], str(facts[""])]
            return
        self.task = Task(event["task"], event["done"], event["total"], facts)
        if event["task"] not in self._stages:
            return
        names = list(self._stages)
        place = names.index(event["task"])
        self.step = sum(self._stages[name] for name in names[:place]) + event["done"]
        left = event["total"] - event["done"]
        if left > 0 and "eta_s" in facts:
            later = sum(self._stages[name] for name in names[place + 1 :])
            self.eta_s = facts["eta_s"] * (1 + later / left)

    def _hear_trained(self, trained: Mapping[str, Any]) -> None:
        self.step, self.eta_s = trained["step"], None
        self._saving_file = trained["finished"]

    def _hear_exported(self, exported: Mapping[str, Any]) -> None:
        self.exported = True

    def _hear_error(self, error: Mapping[str, Any]) -> None:
        if error["stopped"] and self.asked_to_stop:
            self._stopped = True
            self.notes = [*self.notes[-4:], str(error["message"])]
        else:
            self.problem, self.fix = str(error["message"]), str(error["fix"])

    def _ended(self, status: int) -> None:
        if self.process.ended_by_us:
            self.problem = "" if self.asked_to_stop else self.problem
            self.notes = [*self.notes[-4:], "It was ended at once: steps since the last checkpoint are lost."]
        elif status and not (self.problem or self._stopped):
            self.problem, self.fix = why_it_ended(status)
        self._over(self)
