"""The carrier killed, and Drive failing, at every call that it makes there: `python crash_carry.py kill|errors [ERROR ...]`.

Prints {"tried": n, "faults": [...]}. A program of its own, so that it can fork without torch.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import crash  # noqa: E402
from crash_survey import RUN, SIZES, content  # noqa: E402

from fastsd_lib.core import disk  # noqa: E402
from fastsd_lib.sessions import carry, checkpoints  # noqa: E402

WRITE_BYTES = 1024


def prepare(place: Path, second_carried: bool = False) -> tuple[Path, Path]:
    """A bench with three checkpoints and a log, and a session to which the second was carried, or none yet."""
    bench, session = place / "bench", place / "session"
    for folder in (bench / "logs", session):
        folder.mkdir(parents=True)
    (bench / "logs" / "metrics.jsonl").write_text('{"step": 3}\n')
    for step in (1, 2, 3):
        files = {name: lambda name=name, step=step: iter([content(name, step)]) for name in SIZES}
        checkpoints.write_checkpoint(
            bench / "checkpoints", step=step, total_steps=3, stage="U-Net", run=RUN, files=files
        )
    if second_carried:
        (session / "checkpoints").mkdir()
        second = checkpoints.list_checkpoints(bench / "checkpoints")[1]
        checkpoints.copy_checkpoint(second, session / "checkpoints")
    return bench, session


def carry_all(bench: Path, session: Path, announce: Callable[[str], Any], timeout_s: float = 30) -> str:
    """Carry the three one after another, as a run does that saves them; the carrier's last line."""
    carrier = carry.Carrier(bench, session, report=announce, keep=1)
    carrier.mirror([bench / "logs"])
    for one in checkpoints.list_checkpoints(bench / "checkpoints"):
        carrier.submit(one)
        with carrier._change:  # each on its own, so that every run makes the same calls
            carrier._change.wait_for(carrier._is_idle, timeout_s)
    return carrier.finish(timeout_s).line


def fault(session: Path, said: list[str]) -> str:
    """What is wrong at the target: a mix, sealed damage, or less than "safe on Drive up to step N" said."""
    folder = session / "checkpoints"
    newest, _ = checkpoints.newest_intact(folder, RUN)
    safe = max(
        (int(line.split("step ")[1].split(";")[0]) for line in said if line.startswith("safe")), default=0
    )
    if (newest.step if newest else 0) < safe:
        return f"step {safe} was called safe, {newest.path.name if newest else 'nothing'} is there"
    for one in checkpoints.list_checkpoints(folder):
        if damage := checkpoints.find_damage(one.path):
            return f"{one.path.name} is sealed, but {damage}"
        if any((one.path / name).read_bytes() != content(name, one.step) for name in SIZES):
            return f"{one.path.name} is a mix"
    return ""


def fault_of_next_carrier(bench: Path, session: Path) -> str:
    """A new carrier, which nobody tells anything, completes the work."""
    carrier = carry.Carrier(bench, session, report=lambda line: None, keep=1)
    carrier.mirror([bench / "logs"])
    state = carrier.finish(30)
    there = checkpoints.list_checkpoints(session / "checkpoints")
    if not state.all_safe or state.safe_step != 3 or [one.step for one in there][-1] != 3:
        return f"a new carrier did not complete it: {state.line}"
    if (session / "logs" / "metrics.jsonl").read_bytes() != (bench / "logs" / "metrics.jsonl").read_bytes():
        return "the log did not arrive"
    return fault(session, [state.line])


def kill(scratch: Path) -> dict[str, Any]:
    """SIGKILL at every change that the carrier makes at the target, before, after and torn."""
    bench, session = prepare(scratch / "whole")
    with crash.watching(crash.Recorder(below=str(session)), WRITE_BYTES) as recorder:
        carry_all(bench, session, lambda line: None)
    points = crash.points(recorder.calls)
    faults = []
    for point in points:
        bench, session = prepare(scratch / "killed")
        said, killed = crash.kill_in_child(
            lambda announce, bench=bench, session=session: carry_all(bench, session, announce),
            crash.Killer(point, below=str(session)),
            WRITE_BYTES,
        )
        wrong = "" if killed else "was not killed"
        wrong = wrong or fault(session, said) or fault_of_next_carrier(bench, session)
        faults += [f"{point}: {wrong}"] if wrong else []
        shutil.rmtree(scratch / "killed")
    return {"tried": len(points), "faults": faults}


def errors(scratch: Path, names: list[str]) -> dict[str, Any]:
    """Each error at every call at the target, once and for good until Drive is well: a line, and all arrives in the end."""
    carry.FIRST_WAIT_S, carry.LONGEST_WAIT_S = 0.001, 0.004
    bench, session = prepare(scratch / "whole", second_carried=True)
    with crash.watching(crash.Breaker(1 << 30, 0, below=str(session)), WRITE_BYTES):
        carry_last(bench, session, [])
        calls = disk.os._count  # type: ignore[attr-defined]
    faults, tried = [], 0
    for name in names:
        for number in range(calls):
            for for_good in (False, True):
                tried += 1
                bench, session = prepare(scratch / "broken", second_carried=True)
                breaker = crash.Breaker(number, crash.ERRNOS[name], for_good, below=str(session))
                said: list[str] = []
                with crash.watching(breaker, WRITE_BYTES):
                    line = carry_last(bench, session, said, breaker)
                troubled = any(line.count("Drive is") for line in said) or not for_good
                wrong = (
                    fault(session, said)
                    or ("" if "safe on Drive up to step 3" in line else f"it ended with: {line}")
                    or ("" if troubled else f"nobody was told: {said}")
                    or fault_of_next_carrier(bench, session)
                )
                faults += [f"{name} at call {number}, for good: {for_good}: {wrong}"] if wrong else []
                shutil.rmtree(scratch / "broken")
    return {"tried": tried, "faults": faults, "calls": calls}


def carry_last(bench: Path, session: Path, said: list[str], breaker: crash.Breaker | None = None) -> str:
    """Step 2 lies there, 3 is carried while Drive fails and 2 deleted then; after three failures Drive is mended."""

    carrier = carry.Carrier(bench, session, report=said.append, keep=1)
    carrier.mirror([bench / "logs"])
    with carrier._change:
        carrier._change.wait_for(lambda: carrier._is_idle() or carrier._failures >= 3, 30)
    if breaker:
        breaker.mended = True
    return carrier.finish(30).line


def main() -> None:
    probe, *names = sys.argv[1:]
    scratch = Path(tempfile.mkdtemp(prefix="crash-carry-", dir=crash.quick_folder()))
    try:
        print(json.dumps(kill(scratch) if probe == "kill" else errors(scratch, names or list(crash.ERRNOS))))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
