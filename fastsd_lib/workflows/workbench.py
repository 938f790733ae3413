"""Where a run writes: the session itself, or a folder on the local disk whose checkpoints are carried to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fastsd_lib.core import disk
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import fingerprint, plain_disk_errors
from fastsd_lib.core.paths import expanded
from fastsd_lib.core.progress import ProgressEvent, Report
from fastsd_lib.environment import drive, hosts
from fastsd_lib.sessions import checkpoints
from fastsd_lib.sessions.session import Session
from fastsd_lib.training.config import DreamBoothConfig

if TYPE_CHECKING:
    from fastsd_lib.sessions.carry import Carrier, CarryState
    from fastsd_lib.sessions.checkpoints import Checkpoint

ARRIVE_S = 1800.0  # how long the end of a run waits for Drive to hold the last checkpoint
LOOK_S = 5.0


@dataclass(frozen=True)
class Workbench:
    """`here` is written to while a run goes on; it has the session's layout and name."""

    session: Session
    here: Session

    @property
    def carried(self) -> bool:
        return self.here.path != self.session.path

    @property
    def cache(self) -> Path:
        """Latents, unpacked base models: what can be made again."""
        return self.here.path / "cache"

    @property
    def checkpoint_folders(self) -> list[Path]:
        """Where checkpoints of this session may lie, the nearest first."""
        return [self.here.checkpoints, self.session.checkpoints] if self.carried else [self.here.checkpoints]


def workbench(session: Session, local_folder: Path | None = None) -> Workbench:
    """The session itself where its disk is local, else a folder for it on a local disk.

    `local_folder` asks for that folder whatever disk the session is on.
    """
    place = local_folder or drive.local_disk(session.path)
    if place == session.path:
        return Workbench(session, session)
    # Two Drives may hold sessions of one name.
    place = expanded(place).absolute() / "fastsd-work" / fingerprint(str(session.path))[:8]
    return Workbench(session, Session(place / session.name))


def deliver(bench: Workbench, file: Path) -> Path:
    """A finished file of the bench in the session, read back there before it takes its name."""
    if not bench.carried:
        return file
    final = bench.session.path / file.relative_to(bench.here.path)
    with plain_disk_errors(f"copy {file.name} to the session"):
        disk.make_folders(final.parent)
        scratch = final.with_name(f".{final.stem}.delivered.partial{final.suffix}")
        disk.unlink(scratch)
        written = disk.write_file(scratch, disk.read_chunks(file))
        if disk.read_back(scratch) != written:
            raise UserError(
                f"{final.name} reads back differently from what was written to {final.parent}.",
                fix=f"the file itself is whole: copy it from {file}.",
            )
        disk.rename(scratch, final)
        disk.sync_folder(final.parent)
    return final


@contextmanager
def carrying(bench: Workbench, config: DreamBoothConfig, report: Report) -> Iterator[Carrier | None]:
    """While the block runs, checkpoints, logs and samples of the bench go to the session in the background.

    None, and nothing to carry, where the bench is the session. At the end of the block the last checkpoint is
    waited for: UserError when it could not be verified there, naming where it is. On Ctrl-C the wait ends.
    """
    if not bench.carried:
        yield None
        return
    from fastsd_lib.sessions.carry import Carrier

    with plain_disk_errors("look through the session's checkpoints"):
        checkpoints.clear_unfinished(bench.session.checkpoints, remote=True)

    _bring_logs(bench)

    def say(line: str) -> None:
        report(ProgressEvent("session folder", 1, 1, {"": line}))

    carrier = Carrier(
        bench.here.path,
        bench.session.path,
        report=say,
        revive=lambda: drive.revive(bench.session.path, pending=True, report=say),
        keep=max(3, config.keep_checkpoints),
        keep_every_steps=config.keep_every_steps,
        place=_place(bench.session.path),
    )
    carrier.mirror([bench.here.logs, bench.here.samples])
    try:
        yield carrier
    except BaseException:
        carrier.finish(LOOK_S)  # what is on its way may arrive; the error says more than we would
        raise
    state = _arrived(carrier, report)
    if not state.all_safe:
        raise UserError(
            f"Step {state.local_step} is saved in {bench.here.checkpoints} only: {state.line}.",
            fix="leave this machine running and run this again once the session's folder answers: it is carried over.",
        )


def _bring_logs(bench: Workbench) -> None:
    """On a new machine the log goes on where the lost one's ended."""
    if not bench.here.logs.exists() and bench.session.logs.is_dir():
        with plain_disk_errors("read the session's logs"):
            shutil.copytree(bench.session.logs, bench.here.logs)


def _arrived(carrier: Carrier, report: Report) -> CarryState:
    state = carrier.state
    if not state.all_safe:
        report(ProgressEvent("last checkpoint to the session", 0, 1, {"safe": state.line}))
    state = carrier.finish(ARRIVE_S)
    report(ProgressEvent("last checkpoint to the session", 1, 1, {"safe": state.line}))
    return state


def told_what_is_safe(report: Report, carrier: Carrier | None) -> Report:
    """`report`, with every step saying up to where nothing could be lost."""
    if carrier is None:
        return report

    def with_state(event: ProgressEvent) -> None:
        if event.pictures or "loss" in event.facts:
            facts = {**event.facts, "safe": carrier.state.line}
            event = ProgressEvent(event.task, event.done, event.total, facts, event.pictures)
        report(event)

    return with_state


def _place(path: Path) -> str:
    on_drive = any(path.is_relative_to(point) for point in hosts.DRIVE_MOUNTS)
    return "Drive" if on_drive else "the session's disk"


def newest(bench: Workbench, run: str) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint of a run, wherever it lies, and a line for each one passed over."""
    return checkpoints.newest_intact(bench.checkpoint_folders, run)
