"""Carry finished checkpoints and small files from the local disk to Drive, behind the back of the training.

What counts as safe was written there in a new folder, read back, hashed and sealed, and deleted nowhere before that.
A Drive that goes away, or is full, stops the carrier only: it waits, tries again, and says so.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastsd_lib.core import disk
from fastsd_lib.sessions import checkpoints
from fastsd_lib.sessions.checkpoints import Checkpoint, CheckpointDamaged
from fastsd_lib.sessions.mirror import Mirror

CHECKPOINTS = "checkpoints"
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 60.0
ROUND_S = 20.0  # small files are looked at, and confirmations asked for, this often
FULL = {errno.ENOSPC, errno.EDQUOT}
LOST = {
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.EIO,
    errno.ETIMEDOUT,
    errno.ENODEV,
    errno.ESTALE,
    errno.ENOENT,
}


@dataclass(frozen=True)
class CarryState:
    """What a person wants to know: up to where would I not lose anything?"""

    local_step: int = 0  # the newest one on the local disk
    copied_step: int = 0  # the newest one that was written there and read back
    safe_step: int = 0  # the newest one that is also confirmed to be uploaded, where that can be asked
    waiting: int = 0  # checkpoints that are to be carried yet, the one under way included
    trouble: str = ""  # "Drive is gone (Transport endpoint is not connected)"
    since_s: float = 0.0  # how long the trouble lasts; without trouble, since when safe_step holds
    place: str = "Drive"

    @property
    def all_safe(self) -> bool:
        return not self.waiting and not self.trouble and self.safe_step == self.local_step

    @property
    def line(self) -> str:
        safe = f"safe on {self.place} up to step {self.safe_step}"
        parts = [safe if self.safe_step else f"nothing on {self.place} yet"]
        if self.trouble:
            parts.append(f"{self.trouble} for {_duration(self.since_s)}, trying again")
        if self.local_step > self.safe_step:
            copied = self.copied_step == self.local_step
            where = "copied, its upload not confirmed" if copied else "on the local disk only"
            parts.append(f"step {self.local_step} is {where}")
        return "; ".join(parts)


class Carrier:
    """A thread from `source` (the bench) to `target` (the session); both have a checkpoints/ folder.

    It begins at once, with what lies at the source and not at the target: what is to be discarded goes before that.
    report: told a line when the state changes for the user. revive: one try to bring Drive back, once per outage.
    confirmed: asked about each file of a copied checkpoint whether it is really uploaded; without it the read-back counts.
    keep, keep_every_steps: as for checkpoints.prune, at the target.
    Nothing that happens here raises in the training; a call of Drive that never returns blocks this thread only.
    """

    def __init__(
        self,
        source: Path,
        target: Path,
        *,
        report: Callable[[str], None],
        revive: Callable[[], None] | None = None,
        confirmed: Callable[[Path], bool] | None = None,
        keep: int = 3,
        keep_every_steps: int = 0,
        place: str = "Drive",
    ) -> None:
        self._source, self._target = Path(source), Path(target)
        self._report, self._revive, self._confirmed = report, revive, confirmed
        self._keep, self._keep_every_steps, self._place = keep, keep_every_steps, place
        self._mirror = Mirror(self._source, self._target)
        self._pending: list[Checkpoint] = []
        self._unconfirmed: list[tuple[Checkpoint, Checkpoint]] = []  # (local, its copy), oldest first
        self._failures, self._trouble, self._trouble_at = 0, "", 0.0
        self._newest_run, self._local_step = "", 0
        self._copied: dict[str, set[int]] = defaultdict(set)  # run -> steps
        self._safe: dict[str, set[int]] = defaultdict(set)
        self._safe_at = time.monotonic()
        self._active = self._dirty = True  # it first looks for what an earlier one left behind
        self._ending = self._given_up = self._hurry = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="carrier", daemon=True)
        self._thread.start()

    # -- what the training calls: none of it waits for Drive --------------------------------------------------------

    def submit(self, checkpoint: Checkpoint) -> None:
        """Carry this one as soon as may be. Of one run only the newest waits, and any that finished its run."""
        with self._change:
            self._newest_run, self._local_step = checkpoint.run, checkpoint.step
            self._enqueue(checkpoint)
            self._change.notify_all()

    def mirror(self, paths: Iterable[Path]) -> None:
        """Keep these small files, or folders of them, of `source` up to date at the target from now on."""
        with self._change:
            self._mirror.add(paths)
            self._dirty = True
            self._change.notify_all()

    @property
    def state(self) -> CarryState:
        with self._change:
            run = self._newest_run
            since = self._trouble_at if self._trouble else self._safe_at
            return CarryState(
                local_step=self._local_step,
                copied_step=_newest_of(self._copied[run], self._local_step),
                safe_step=_newest_of(self._safe[run], self._local_step),
                waiting=len(self._pending) + len(self._unconfirmed),
                trouble=self._trouble,
                since_s=time.monotonic() - since,
                place=self._place,
            )

    def finish(self, timeout_s: float) -> CarryState:
        """Wait until everything is verified there, at most `timeout_s`, and end; `all_safe`, or what is not."""
        deadline = time.monotonic() + timeout_s
        with self._change:
            self._ending = self._dirty = self._hurry = True
            self._failures = 0
            self._change.notify_all()
            while not self._is_idle() and (left_s := deadline - time.monotonic()) > 0:
                self._change.wait(left_s)
            self._given_up = True
            self._change.notify_all()
        self._thread.join(timeout=max(0.0, min(1.0, deadline - time.monotonic())))
        return self.state

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        round_ = self._look_for_left_overs
        while True:
            try:
                round_()
                round_ = self._round
                self._recovered()
            except Exception as error:  # Drive's, or ours: no reason to end the training
                self._failed(error)
            with self._change:
                self._active = False
                self._change.notify_all()
                if self._given_up:
                    return
                self._change.wait_for(self._has_news, timeout=self._pause_s())
                if self._given_up or (self._ending and self._is_idle()):
                    return
                self._active, self._hurry = True, False

    def _round(self) -> None:
        """Everything that is to be done now; OSError when Drive does not let it."""
        while (checkpoint := self._next()) is not None:
            self._carry(checkpoint)
        with self._change:
            self._dirty = False
        try:
            self._mirror.update()
        except BaseException:
            self._dirty = True
            raise
        self._ask_for_confirmations()

    def _look_for_left_overs(self) -> None:
        """What an earlier carrier was killed over (the newest of each run, and each that ended one), and what came there.

        What lies at the target was hashed when it was copied; here its seal and sizes must do.
        """
        local = checkpoints.list_checkpoints(self._source / CHECKPOINTS)
        there = checkpoints.list_checkpoints(self._target / CHECKPOINTS)
        there = [one for one in there if not checkpoints.quick_damage(one.path)]
        with self._change:
            for one in there:
                self._copied[one.run].add(one.step)
                self._safe[one.run].add(one.step)
            fresh = {one.run for one in self._pending}
            for one in local:
                if one.run not in fresh:
                    self._enqueue(one)
            if not self._newest_run and (known := sorted([*local, *there], key=lambda one: one.saved_at)):
                self._newest_run = known[-1].run
                self._local_step = max(one.step for one in known if one.run == self._newest_run)

    def _carry(self, checkpoint: Checkpoint) -> None:
        try:
            with checkpoints.held(checkpoint.path):
                there = self._find_there(checkpoint) or self._copy(checkpoint)
        except CheckpointDamaged as damage:
            self._drop(checkpoint, f"{damage}; it is not carried to {self._place}")
            return
        except FileNotFoundError:
            if checkpoints.seal_of(checkpoint):
                raise  # Drive's folder is gone, not ours
            self._drop(checkpoint, "")
            return
        self._recovered()
        self._drop(checkpoint, "")
        with self._change:
            self._unconfirmed.append((checkpoint, there))
            self._copied[checkpoint.run].add(checkpoint.step)
        self._ask_for_confirmations()

    def _copy(self, checkpoint: Checkpoint) -> Checkpoint:
        folder = self._target / CHECKPOINTS
        disk.make_folders(folder, root=self._target)
        return checkpoints.copy_checkpoint(checkpoint, folder)

    def _find_there(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """The same checkpoint, intact, at the target: an earlier carrier came as far as that."""
        seal = checkpoints.seal_of(checkpoint)
        for one in checkpoints.list_checkpoints(self._target / CHECKPOINTS, checkpoint.run):
            same = one.step == checkpoint.step and checkpoints.seal_of(one) == seal
            if same and not checkpoints.find_damage(one.path):
                return one
        return None

    def _ask_for_confirmations(self) -> None:
        """Only what is confirmed is called safe, and only then older ones may go."""
        for local, there in list(self._unconfirmed):
            if not self._is_uploaded(there):
                continue
            with self._change:
                news = local.step not in self._safe[local.run]
                if news:
                    self._safe[local.run].add(local.step)
                    self._safe_at = time.monotonic()
            if news:
                self._say(self.state.line)
            checkpoints.prune(
                self._target / CHECKPOINTS,
                local.run,
                self._keep,
                self._keep_every_steps,
                confirmed=lambda one, sure=there: (
                    one.path == sure.path and not checkpoints.quick_damage(sure.path)
                ),
            )
            with self._change:  # not before: what Drive did not let us delete is tried again
                self._unconfirmed = [
                    one for one in self._unconfirmed if one[0].run != local.run or one[0].step > local.step
                ]
                self._change.notify_all()

    def _is_uploaded(self, there: Checkpoint) -> bool:
        if self._confirmed is None:
            return True
        names = disk.names_in(there.path)
        return bool(names) and all(self._confirmed(there.path / name) for name in names)

    # -- small parts; those with `self._change` held are marked ------------------------------------------------------

    def _enqueue(self, checkpoint: Checkpoint) -> None:
        """(held) Newest wins: what is older and unfinished of this run is not worth the upload any more."""
        if checkpoint in self._pending:
            return
        kept = [one for one in self._pending if one.finished or one.run != checkpoint.run]
        self._pending = [*kept, checkpoint]

    def _next(self) -> Checkpoint | None:
        with self._change:
            return self._pending[0] if self._pending and not self._given_up else None

    def _drop(self, checkpoint: Checkpoint, line: str) -> None:
        with self._change:
            self._pending = [one for one in self._pending if one != checkpoint]
        if line:
            self._say(line)

    def _say(self, line: str) -> None:
        with suppress(Exception):  # whoever listens, the carrying goes on
            self._report(line)

    def _is_idle(self) -> bool:
        """(held)"""
        return not (self._active or self._dirty or self._pending or self._unconfirmed)

    def _has_news(self) -> bool:
        """(held) While Drive is in trouble only the clock is waited for."""
        return self._given_up or self._hurry or (not self._trouble and (self._dirty or bool(self._pending)))

    def _pause_s(self) -> float:
        """(held)"""
        if self._trouble:
            return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (self._failures - 1))
        return FIRST_WAIT_S if self._ending else ROUND_S

    def _failed(self, error: Exception) -> None:
        with self._change:
            before, self._trouble = self._trouble, _in_words(error, self._place)
            self._failures += 1
            if not before:
                self._trouble_at = time.monotonic()
        if before != self._trouble:
            self._say(self.state.line)
        if not before and self._revive and isinstance(error, OSError) and error.errno in LOST:
            try:
                self._revive()
            except Exception as failure:
                self._say(f"{self._place} could not be brought back: {failure}")

    def _recovered(self) -> None:
        with self._change:
            had, self._trouble, self._failures = self._trouble, "", 0
        if had:
            self._say(f"{self._place} is back; {self.state.line}")


def _newest_of(steps: set[int], local_step: int) -> int:
    """A run that went back to an earlier step says nothing of the later ones that it left."""
    return max((step for step in steps if step <= local_step), default=0)


def _in_words(error: Exception, place: str) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in FULL:
        return f"{place} is full"
    if number == errno.EROFS:
        return f"{place} is read-only"
    if number in LOST:
        return f"{place} is gone ({error.strerror})"
    return f"{place} cannot be written to ({error})"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
