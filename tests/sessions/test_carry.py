"""Checkpoints arrive on Drive whole, whatever Drive does meanwhile; the training never waits for it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import crash
import pytest

from fastsd_lib.sessions import carry, checkpoints
from fastsd_lib.sessions.carry import Carrier, CarryState

SURVEY = Path(__file__).with_name("crash_carry.py")
RUN = "r" * 16


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(carry, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(carry, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(carry, "ROUND_S", 0.05)


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / "bench"
    folder.mkdir()
    return folder


@pytest.fixture
def session(tmp_path):
    folder = tmp_path / "drive" / "session"
    folder.mkdir(parents=True)
    return folder


def _save(bench, step, total_steps=99, run=RUN):
    return checkpoints.write_checkpoint(
        bench / "checkpoints",
        step=step,
        total_steps=total_steps,
        stage="U-Net",
        run=run,
        files={"unet.safetensors": lambda: [b"weights of step %d" % step * 50]},
    )


def _steps(folder, run=RUN):
    found = checkpoints.list_checkpoints(folder / "checkpoints", run)
    assert all(checkpoints.find_damage(one.path) == "" for one in found)
    return [one.step for one in found]


def _until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


@dataclass
class Gate(crash.PassOn):
    """Writes below a folder wait until the gate opens: a Drive that hangs."""

    below: str
    interesting: tuple[str, ...] = ("write",)
    waiting: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def at(self, number, call, run, half):
        self.waiting.set()
        self.opened.wait(30)
        return run()


def _survey(*words):
    ran = subprocess.run([sys.executable, SURVEY, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_killed_anywhere_nothing_half_is_loaded_and_a_new_carrier_completes_the_work():
    found = _survey("kill")
    assert found["faults"] == [] and found["tried"] >= 150


def test_any_error_of_drive_at_any_call_is_told_and_outlived():
    names = list(crash.ERRNOS)
    with ThreadPoolExecutor(2) as pool:
        halves = list(pool.map(lambda some: _survey("errors", *some), (names[:4], names[4:])))
    assert [fault for half in halves for fault in half["faults"]] == []
    assert halves[0]["calls"] >= 60
    assert sum(half["tried"] for half in halves) == halves[0]["calls"] * len(names) * 2


def test_a_run_s_checkpoints_arrive_and_older_ones_go_once_newer_are_safe(bench, session):
    said = []
    carrier = Carrier(bench, session, report=said.append, keep=2)
    for step in (10, 20, 30, 40):
        carrier.submit(_save(bench, step))
        _until(lambda step=step: carrier.state.safe_step == step)
    state = carrier.finish(10)
    assert state.all_safe and state.line == "safe on Drive up to step 40"
    assert _steps(session) == [30, 40] and said[-1] == state.line
    assert (session / "checkpoints/step_000040/manifest.json").read_bytes() == (
        bench / "checkpoints/step_000040/manifest.json"
    ).read_bytes()


def test_while_drive_hangs_submitting_costs_nothing_and_only_the_newest_and_the_finished_are_carried(
    bench, session
):
    gate = Gate(below=str(session))
    with crash.watching(gate):
        carrier = Carrier(bench, session, report=lambda line: None, keep=9)
        carrier.submit(_save(bench, 1))
        assert gate.waiting.wait(10)
        began = time.monotonic()
        for one in [_save(bench, 2), _save(bench, 3, total_steps=3), _save(bench, 4), _save(bench, 5)]:
            began = time.monotonic()
            carrier.submit(one)
            assert time.monotonic() - began < 0.2
        assert carrier.state.line == "nothing on Drive yet; step 5 is on the local disk only"
        gate.opened.set()
        assert carrier.finish(10).all_safe
    assert _steps(session) == [1, 3, 5]


def test_finishing_while_drive_hangs_returns_in_time_and_says_what_is_not_there(bench, session):
    gate = Gate(below=str(session))
    with crash.watching(gate):
        carrier = Carrier(bench, session, report=lambda line: None)
        carrier.submit(_save(bench, 7))
        assert gate.waiting.wait(10)
        began = time.monotonic()
        state = carrier.finish(0.3)
        assert time.monotonic() - began < 3
        assert not state.all_safe and state.waiting == 1
        assert state.line == "nothing on Drive yet; step 7 is on the local disk only"
        gate.opened.set()
        carrier._thread.join(10)


def test_a_lost_drive_is_remounted_once_per_outage_and_said_once(bench, session):
    said, revived = [], []
    breaker = crash.Breaker(0, errno.ENOTCONN, for_good=True, below=str(session))
    with crash.watching(breaker):
        carrier = Carrier(bench, session, report=said.append, revive=lambda: revived.append(1))
        for outage in (1, 2):
            breaker.mended = False
            carrier.submit(_save(bench, outage))
            _until(lambda: carrier._failures >= 4)
            assert len(revived) == outage
            state = carrier.state
            assert (
                state.trouble == "Drive is gone (Transport endpoint is not connected)" and not state.all_safe
            )
            breaker.mended = True
            _until(lambda outage=outage: carrier.state.safe_step == outage)
        assert carrier.finish(10).all_safe
    gone = [line for line in said if "Drive is gone" in line]
    assert len(gone) == 2 and gone[1].startswith("safe on Drive up to step 1; Drive is gone (Transport")
    assert sum(line.startswith("Drive is back; ") for line in said) == 2


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "Drive is full"),
        (errno.EDQUOT, "Drive is full"),
        (errno.EROFS, "Drive is read-only"),
        (errno.EIO, "Drive is gone (Input/output error)"),
    ],
)
def test_each_trouble_has_its_word_and_only_a_lost_drive_is_remounted(bench, session, code, words):
    revived = []
    breaker = crash.Breaker(3, code, for_good=True, below=str(session), interesting=crash.CHANGES)
    with crash.watching(breaker):
        carrier = Carrier(bench, session, report=lambda line: None, revive=lambda: revived.append(1))
        carrier.submit(_save(bench, 1))
        _until(lambda: carrier._failures >= 2)
        assert carrier.state.trouble == words and bool(revived) == (code == errno.EIO)
        state = carrier.finish(0.2)
        assert not state.all_safe and state.line.startswith(
            f"nothing on Drive yet; {words} for 0 s, trying again"
        )


def test_a_drive_that_is_not_mounted_is_not_made_up_on_the_local_disk(bench, session):
    away = session.parent.rename(session.parent.with_name("elsewhere"))
    carrier = Carrier(bench, session, report=lambda line: None)
    carrier.submit(_save(bench, 1))
    (bench / "logs").mkdir()
    (bench / "logs" / "metrics.jsonl").write_text("{}\n")
    carrier.mirror([bench / "logs"])
    _until(lambda: carrier._failures >= 3)
    assert not session.parent.exists()
    away.rename(session.parent)
    assert carrier.finish(10).all_safe and _steps(session) == [1]


def test_only_a_confirmed_upload_is_called_safe_and_lets_older_ones_go(bench, session):
    uploaded = set()
    carrier = Carrier(
        bench, session, report=lambda line: None, keep=1, confirmed=lambda path: path.parent.name in uploaded
    )
    for step in (1, 2, 3):
        carrier.submit(_save(bench, step))
        _until(lambda step=step: carrier.state.copied_step == step)
    assert carrier.state.safe_step == 0 and _steps(session) == [1, 2, 3]
    assert carrier.state.line == "nothing on Drive yet; step 3 is copied, its upload not confirmed"
    uploaded.add("step_000002")
    _until(lambda: not (session / "checkpoints" / "step_000001").exists())
    assert carrier.state.safe_step == 2 and _steps(session) == [2, 3]
    assert not carrier.finish(0.1).all_safe
    uploaded.add("step_000003")
    _until(lambda: carrier.state.waiting == 1)


def test_what_listens_or_remounts_badly_does_not_stop_the_carrying(bench, session):
    def broken(*_):
        raise RuntimeError("the widget is gone")

    breaker = crash.Breaker(0, errno.EIO, below=str(session))
    with crash.watching(breaker):
        carrier = Carrier(bench, session, report=broken, revive=broken, confirmed=None)
        carrier.submit(_save(bench, 1))
        assert carrier.finish(10).all_safe
    assert breaker.hits == 1 and _steps(session) == [1]


def test_a_damaged_local_checkpoint_is_not_carried_and_that_is_said(bench, session):
    said = []
    bad = _save(bench, 2)
    file = bad.path / "unet.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    carrier = Carrier(bench, session, report=said.append)
    carrier.submit(bad)
    assert carrier.finish(10).safe_step == 0
    assert said == ["step_000002: unet.safetensors is damaged; it is not carried to Drive"]
    assert list((session / "checkpoints").iterdir()) == []


def test_a_checkpoint_that_is_being_copied_is_not_pruned_and_one_that_was_deleted_is_let_go(bench, session):
    gate = Gate(below=str(session))
    with crash.watching(gate):
        carrier = Carrier(bench, session, report=lambda line: None)
        carrier.submit(_save(bench, 1))
        assert gate.waiting.wait(10)
        other = _save(bench, 5, run="b" * 16)
        carrier.submit(other)
        for step in (2, 3):
            _save(bench, step)
        assert checkpoints.prune(bench / "checkpoints", RUN, 1) == ["step_000002"]
        checkpoints.discard_run(bench / "checkpoints", other.run)
        gate.opened.set()
        state = carrier.finish(10)
    assert _steps(session) == [1] and state.waiting == 0 and state.trouble == ""


def test_a_new_carrier_copies_again_what_is_damaged_there_and_nothing_that_is_well(bench, session):
    _save(bench, 1)
    for damage in (False, True):
        carrier = Carrier(bench, session, report=lambda line: None)
        assert carrier.finish(10).all_safe
        copies = sorted(path.name for path in (session / "checkpoints").iterdir())
        assert copies == ["step_000001"]
        if damage:
            file = session / "checkpoints" / "step_000001" / "unet.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert Carrier(bench, session, report=lambda line: None).finish(10).all_safe
    newest, passed_over = checkpoints.newest_intact(session / "checkpoints", RUN)
    assert newest.path.name == f"step_000001-{RUN[:8]}" and passed_over == []


def test_small_files_are_mirrored_whole_when_they_change_and_other_histories_are_kept(bench, session):
    logs, samples = bench / "logs", bench / "samples"
    for folder in (logs, samples, session / "logs"):
        folder.mkdir()
    (session / "logs" / "metrics.jsonl").write_text('{"step": 1, "of": "an earlier machine"}\n')
    (logs / "metrics.jsonl").write_text('{"step": 5}\n')
    carrier = Carrier(bench, session, report=lambda line: None)
    carrier.mirror([logs / "metrics.jsonl", samples])
    _until(lambda: (session / "logs" / "metrics.jsonl").read_text() == '{"step": 5}\n')
    (logs / "metrics.jsonl").write_text('{"step": 5}\n{"step": 6}\n')
    (samples / "step_000006.png").write_bytes(b"picture")
    assert carrier.finish(10).trouble == ""
    assert (session / "logs" / "metrics.jsonl").read_text() == '{"step": 5}\n{"step": 6}\n'
    assert (session / "logs" / "metrics.earlier-1.jsonl").read_text().startswith('{"step": 1')
    assert (session / "samples" / "step_000006.png").read_bytes() == b"picture"
    assert sorted(path.name for path in (session / "logs").iterdir()) == [
        "metrics.earlier-1.jsonl",
        "metrics.jsonl",
    ]
    with pytest.raises(ValueError):
        carrier.mirror([session / "logs"])


def test_a_reader_of_a_mirrored_file_finds_it_whole_at_every_moment(bench, session):
    log = bench / "metrics.jsonl"
    log.write_text("{}\n")
    (session / "metrics.jsonl").write_text("{}\n")
    with crash.watching(crash.Recorder()) as recorder:
        carrier = Carrier(bench, session, report=lambda line: None)
        carrier.mirror([log])
        log.write_text("{}\n{}\n")
        assert carrier.finish(10).trouble == ""
    about_it = [call for call in recorder.calls if str(session / "metrics.jsonl") in (call.path, call.data)]
    assert about_it and {call.name for call in about_it} == {"replace"}


def test_the_state_says_how_long_drive_has_been_away():
    state = CarryState(500, 480, 480, 1, "Drive is full", 185.0)
    assert state.line == (
        "safe on Drive up to step 480; Drive is full for 3 min, trying again; step 500 is on the local disk only"
    )
    assert CarryState(place="the network disk").line == "nothing on the network disk yet"
