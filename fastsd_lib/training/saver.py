"""Checkpoints beside the training: it waits for a copy in memory, a thread does the rest.

One set of buffers, kept from save to save, and one write at a time: a save that comes too early waits for the one
before it, and says so. A save that fails is said, and the next interval tries again; only the last one of a run
must not fail.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.sessions.checkpoints import Checkpoint, prune, write_checkpoint
from fastsd_lib.training.checkpoint import Snapshot, Tensors
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.pace import free_host_bytes

SPARE_FACTOR = 1.5  # free memory asked for, over the size of the buffers: training needs some, too
GIVE_WAY_S = 0.005  # else this thread has the interpreter first, and training stands still that much longer
TASK = "checkpoint"

OnSaved = Callable[[Checkpoint], None]


class Saver:
    """Writes the checkpoints of one run. `latest`: the newest that is on the disk and read back."""

    def __init__(
        self,
        folder: Path,
        run: str,
        total_steps: int,
        config: DreamBoothConfig,
        report: Report,
        on_saved: OnSaved | None = None,
        latest: Checkpoint | None = None,
    ) -> None:
        """`on_saved` is called for each checkpoint as soon as it is safe, in the thread that wrote it."""
        self.latest = latest
        self.last_asked = latest.step if latest else 0
        self._folder, self._run, self.total_steps, self._config = folder, run, total_steps, config
        self._report, self._on_saved = report, on_saved
        self._buffers = HostBuffers()
        self._thread: threading.Thread | None = None
        self._lines: list[str] = []  # said by the training thread at its next step
        self._fault: BaseException | None = None  # no disk's fault: a bug, or one in on_saved
        self._failure: OSError | None = None  # why the newest save is not there
        self._said_direct = False

    def save(self, snapshot: Snapshot) -> None:
        """Return as soon as training may change the tensors again."""
        self._wait_for_the_one_before(snapshot.step)
        self.last_asked = snapshot.step
        copied = self._buffers.copied(snapshot)
        if copied is None:
            self._say_direct()
            self._write(snapshot)
        else:
            self._thread = threading.Thread(
                target=self._write_behind, args=(copied,), name="checkpoint", daemon=True
            )
            self._thread.start()
        self.tell()

    def save_now(self, snapshot: Snapshot) -> None:
        """Return when it is on the disk, or has failed; takes no memory."""
        self.wait()
        self.last_asked = snapshot.step
        self._write(snapshot)
        self.tell()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def tell(self) -> None:
        """Report what the writing thread had to say; raise what it did not expect."""
        while self._lines:
            self._report(ProgressEvent(TASK, 1, 1, {"": self._lines.pop(0)}))
        if self._fault is not None:
            fault, self._fault = self._fault, None
            raise fault

    def finish(self) -> Checkpoint:
        """The newest checkpoint, when the last one asked for is safe; else UserError."""
        self.wait()
        self.tell()
        if self._failure is not None:
            safe = f"from step {self.latest.step}" if self.latest else "from the start: nothing was saved yet"
            raise UserError(
                f"The checkpoint of step {self.last_asked} could not be written to {self._folder}: "
                f"{_reason(self._failure)}.",
                fix=f"free some space there and run again with --resume: it continues {safe}.",
            )
        assert self.latest is not None  # a run saves at its end
        return self.latest

    def _wait_for_the_one_before(self, step: int) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._lines.append(f"step {step} waits: the disk is still writing step {self.last_asked}")
            self.tell()
        self.wait()

    def _write_behind(self, snapshot: Snapshot) -> None:
        time.sleep(GIVE_WAY_S)
        self._write(snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        try:
            try:
                saved = write_checkpoint(
                    self._folder,
                    step=snapshot.step,
                    total_steps=self.total_steps,
                    stage=snapshot.stage,
                    run=self._run,
                    files=snapshot.contents(),
                    facts=snapshot.facts,
                    expected_bytes=snapshot.size_bytes,
                )
            except OSError as error:
                self._failure = error
                safe = f"safe up to step {self.latest.step}" if self.latest else "nothing is saved yet"
                goes_on = "" if snapshot.step >= self.total_steps else "training goes on, "
                self._lines.append(f"step {snapshot.step} not saved: {_reason(error)}; {goes_on}{safe}")
                return
            self.latest, self._failure = saved, None
            if self._on_saved is not None:
                self._on_saved(saved)
            self._prune()
        except BaseException as error:
            self._fault = error

    def _prune(self) -> None:
        try:
            prune(self._folder, self._run, self._config.keep_checkpoints, self._config.keep_every_steps)
        except OSError as error:
            self._lines.append(f"older ones cannot be deleted: {_reason(error)}")

    def _say_direct(self) -> None:
        if not self._said_direct:
            self._said_direct = True
            self._lines.append("memory is short: training waits while each checkpoint is written")


class HostBuffers:
    """Copies of tensors in the CPU's memory, pinned where a GPU fills them; made once and kept."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, torch.Tensor]] = {}
        self._still: frozenset[str] = frozenset()  # copied once, of what the stage does not change
        self._stage = ""

    def copied(self, snapshot: Snapshot) -> Snapshot | None:
        """The same snapshot in our own memory; None, and no buffers, when memory is short."""
        if snapshot.stage != self._stage:  # within a stage every tensor keeps its shape
            self.drop()
            self._stage = snapshot.stage
        wanted = {
            name: tensors
            for name, tensors in snapshot.tensors.items()
            if not (name in snapshot.frozen and _on_cpu(tensors))  # nobody changes it: it needs no copy
        }
        try:
            if not self._make(wanted):
                self.drop()
                return None
            for name, tensors in wanted.items():
                if name not in self._still:
                    _copy(tensors, self._held[name])
            self._still = snapshot.frozen & wanted.keys()
        except (MemoryError, RuntimeError):  # torch's word for no memory
            self.drop()
            return None
        return replace(snapshot, tensors={**snapshot.tensors, **self._held})

    def drop(self) -> None:
        self._held.clear()
        self._still = frozenset()

    def _make(self, wanted: Mapping[str, Tensors]) -> bool:
        missing = {
            name: tensors
            for name, tensors in wanted.items()
            if self._held.get(name, {}).keys() != tensors.keys()
        }
        needed = sum(one.nbytes for tensors in missing.values() for one in tensors.values())
        if needed and needed * SPARE_FACTOR > free_host_bytes():
            return False
        for name, tensors in missing.items():
            self._held[name] = {
                key: torch.empty(one.shape, dtype=one.dtype, pin_memory=one.is_cuda)
                for key, one in tensors.items()
            }
        return True


@torch.no_grad()
def _copy(tensors: Tensors, into: Mapping[str, torch.Tensor]) -> None:
    targets = [into[key] for key in tensors]
    torch._foreach_copy_(targets, list(tensors.values()), non_blocking=True)
    if not _on_cpu(tensors):
        torch.cuda.synchronize()


def _on_cpu(tensors: Tensors) -> bool:
    return all(one.is_cpu for one in tensors.values())


def _reason(error: OSError) -> str:
    """ "No space left on device", with what is known besides."""
    if not error.errno:
        return str(error)
    plain = os.strerror(error.errno)
    return plain if error.strerror in (None, plain) else f"{plain} ({error.strerror})"
