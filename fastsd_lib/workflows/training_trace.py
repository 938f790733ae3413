"""What a training leaves on the disk: its losses, its samples, how far it came."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fastsd_lib.core.curve import Curve
from fastsd_lib.sessions import checkpoints
from fastsd_lib.sessions import session as sessions
from fastsd_lib.sessions.lock import who_works_on
from fastsd_lib.sessions.session import Session
from fastsd_lib.webui.trainings import State, TrainingShown
from fastsd_lib.workflows import dreambooth
from fastsd_lib.workflows.workbench import workbench

METRICS = "metrics.jsonl"
MOST_SAMPLES = 24


@dataclass(frozen=True)
class Held:
    """What a session holds of its last run."""

    trained_on: str = ""  # its base model; "" = nothing was ever trained
    step: int = 0
    total_steps: int = 0

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps > 0


def held_by(session: Session) -> Held:
    """The newest checkpoint of the last run, judged by its seal and sizes; bytes are read when it is resumed."""
    base, run = sessions.read_manifest(session).get("base_model") or "", dreambooth.last_run(session)
    if not (base and run):
        return Held(base)
    found = checkpoints.list_checkpoints(workbench(session).checkpoint_folders, run)
    newest = next((one for one in reversed(found) if not checkpoints.quick_damage(one.path)), None)
    return Held(base, newest.step, newest.total_steps) if newest else Held(base)


def samples_of(session: Session, since: float = 0.0) -> tuple[Path, ...]:
    """Pictures that training drew, the newest step first; with `since`, none that is older (seconds since 1970)."""
    found = {}
    for folder in (session.samples, workbench(session).here.samples):
        for path in folder.glob("step_*.png"):
            with suppress(OSError):
                if path.stat().st_mtime >= since:
                    found[path.name] = path
    steps = sorted({name.rpartition("_")[0] for name in found}, reverse=True)
    ordered = [name for step in steps for name in sorted(found) if name.startswith(f"{step}_")]
    return tuple(found[name] for name in ordered[:MOST_SAMPLES])


def _state(held: Held, elsewhere: str, failed: bool) -> State:
    if elsewhere:
        return "elsewhere"
    if failed:
        return "failed"
    if held.finished:
        return "finished"
    return "stopped" if held.trained_on else "new"


def _line(session: Session, held: Held, elsewhere: str, failed: bool) -> str:
    if elsewhere:
        return f"Another program works on this session: {elsewhere}."
    if held.finished:
        made = "" if session.model_file.is_file() else " Its model is not exported yet."
        return f"Trained to the end: {held.total_steps:,} steps.{made}"
    if held.step:
        at = f"saved at step {held.step:,} of {held.total_steps:,}; Resume goes on exactly there."
        return f"{'Failed' if failed else 'Stopped'}, {at}"
    if held.trained_on:
        return "Nothing is saved yet of the run that was begun; Resume begins it again."
    return "Ready to train." if dreambooth.photos(session) else "Add photos first: 5 to 20 of one subject."


def worked_on(session: Session) -> str:
    """Who else works on the session; "" where nobody does, or nobody knows."""
    try:
        return who_works_on(session.path)
    except OSError:
        return ""


def began_at(session: Session) -> float:
    """When the last run was started, in seconds since 1970; 0 when nobody wrote it down."""
    for entry in reversed(sessions.read_manifest(session)["history"]):
        if entry.get("event") == "training started":
            with suppress(KeyError, ValueError, TypeError):
                return datetime.fromisoformat(entry["when"]).timestamp()
    return 0.0


def shown_from_disk(
    session: Session,
    curve: str,
    problem: str = "",
    fix: str = "",
    log: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> TrainingShown:
    """How a session stands that no run of ours works on; `problem`, `fix`, `log`: how the last one failed."""
    held, elsewhere, failed = held_by(session), worked_on(session), bool(problem)
    return TrainingShown(
        session.name,
        _state(held, elsewhere, failed),
        _line(session, held, elsewhere, failed),
        step=held.step,
        total_steps=held.total_steps,
        curve=curve,
        samples=samples_of(session, began_at(session)),
        problem=problem,
        fix=fix,
        log=log,
        notes=notes,
        resumable=bool(held.trained_on) and not held.finished and not elsewhere,
        exportable=held.step > 0 and not elsewhere,
        model=session.model_file if session.model_file.is_file() else None,
        lora=session.lora_file if session.lora_file.is_file() else None,
    )


class LossTrace:
    """The curve of a session, read from its log as that grows. A log that is written anew is read anew."""

    def __init__(self, session: Session, skip_present: bool = False) -> None:
        """`skip_present`: a log that lies there now is of an earlier run, and is not shown unless it is replaced."""
        self._session, self._lock = session, threading.Lock()
        self._curve, self._file, self._offset = Curve(), (0, 0), 0
        self._skipped = self._identity(self._path()) if skip_present else None

    def svg(self, since: float = 0.0) -> str:
        """The chart; "" for a log that was written last before `since` (seconds since 1970)."""
        with self._lock:
            with suppress(OSError):
                if self._path().stat().st_mtime < since:
                    return ""
                self._read()
            return self._curve.svg()

    def _path(self) -> Path:
        here = workbench(self._session).here.logs / METRICS
        return here if here.is_file() else self._session.logs / METRICS

    def _identity(self, path: Path) -> tuple[int, int] | None:
        try:
            seen = path.stat()
        except OSError:
            return None
        return seen.st_dev, seen.st_ino

    def _read(self) -> None:
        path = self._path()
        with path.open("rb") as handle:
            seen = os.fstat(handle.fileno())
            identity = seen.st_dev, seen.st_ino
            if identity == self._skipped:
                return
            if identity != self._file or seen.st_size < self._offset:
                self._curve, self._file, self._offset = Curve(), identity, 0
            handle.seek(self._offset)
            whole, newline, _ = handle.read().rpartition(b"\n")  # the last line may be half written
            self._offset += len(whole) + len(newline)
        for line in whole.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                found = json.loads(line)
                self._curve.add(str(found["stage"]), int(found["stage_step"]), float(found["loss"]))
