"""One writer per session: a second one gets the line, and a dead one holds nothing for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fastsd_lib.core.errors import UserError
from fastsd_lib.sessions import lock
from fastsd_lib.sessions.lock import LOCK_FILE, session_lock, who_works_on

REPOSITORY = Path(__file__).resolve().parents[2]
HOLDER = """
import os, sys, time
from fastsd_lib.sessions import lock
from fastsd_lib.sessions.lock import session_lock
with session_lock(sys.argv[1], "training") as held:
    print("got it", flush=True)
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(600)
    sys.stdin.readline()
    print("lost" if held.lost else "still ours", flush=True)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts programs that work on the session `tmp_path` until they read a line."""
    started = []

    def start(*words):
        program = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), *words],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(program)
        assert program.stdout.readline() == "got it\n"
        return program

    yield start
    for program in started:
        for end in (program.stdin, program.stdout):
            end.close()
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def _write(tmp_path, **changes):
    record = lock._new_record("training") | changes
    (tmp_path / LOCK_FILE).write_text(json.dumps(record))
    return record


def test_a_second_program_gets_one_line_with_the_way_out_and_takes_its_turn_afterwards(tmp_path, holder):
    first = holder()
    with pytest.raises(UserError) as caught, session_lock(tmp_path):
        pass
    assert caught.value.message.startswith(
        f"This session is in use: training, process {first.pid} on this machine"
    )
    assert caught.value.fix.endswith(f"or kill {first.pid}.")
    assert who_works_on(tmp_path).startswith(f"training, process {first.pid} on this machine, since ")
    assert first.communicate("\n")[0] == "still ours\n"
    assert who_works_on(tmp_path) == ""
    with session_lock(tmp_path) as held:
        assert held.note == ""


def test_of_many_that_start_at_once_exactly_one_works(tmp_path):
    program = (
        "import sys, time\n"
        "from fastsd_lib.core.errors import UserError\n"
        "from fastsd_lib.sessions.lock import session_lock\n"
        "sys.stdin.readline()\n"
        "try:\n"
        "    with session_lock(sys.argv[1]):\n"
        "        print('works', flush=True); sys.stdin.readline()\n"
        "except UserError: print('told', flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    many = [subprocess.Popen(command, cwd=REPOSITORY, text=True, **pipes) for _ in range(6)]
    for one in many:
        one.stdin.write("\n")
        one.stdin.flush()
    answers = [one.stdout.readline() for one in many]
    for one in many:
        one.communicate("\n")
    assert sorted(answers) == ["told\n"] * 5 + ["works\n"]


def test_a_killed_owner_s_lock_is_taken_over_with_a_word(tmp_path, holder):
    first = holder()
    first.kill()
    os.waitid(
        os.P_PID, first.pid, os.WEXITED | os.WNOWAIT
    )  # dead, but its parent has not asked yet: its number stands
    said = []
    with session_lock(tmp_path, report=said.append) as held:
        assert said == [held.note]
        assert held.note.startswith(f"The lock that process {first.pid} on this machine, since ")


def test_a_child_that_outlives_its_killed_parent_does_not_keep_the_lock(tmp_path, holder):
    first = holder("fork")
    time.sleep(0.2)
    first.kill()
    first.wait()
    with session_lock(tmp_path) as held:
        assert "taken over" in held.note


def test_a_second_tab_of_the_same_notebook_is_told_to_stop_the_cell(tmp_path):
    with session_lock(tmp_path):
        with pytest.raises(UserError) as caught, session_lock(tmp_path):
            pass
        assert caught.value.fix == "stop the cell that runs it, or wait until it ends."
    with session_lock(tmp_path):
        pass


def test_another_machine_that_beats_is_respected(tmp_path):
    _write(tmp_path, host="colab-7", boot="other", beat=time.time() - 100)
    with pytest.raises(UserError) as caught, session_lock(tmp_path):
        pass
    assert "on another machine (colab-7), since" in caught.value.message
    assert "last heard of 100 s ago" in caught.value.message
    assert "silent for 5 minutes this one takes over" in caught.value.fix
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "colab-7"


def test_another_machine_that_has_been_silent_for_five_minutes_is_followed(tmp_path):
    _write(tmp_path, host="colab-7", boot="other", beat=time.time() - 301)
    with session_lock(tmp_path) as held:
        assert held.note.startswith("The lock that process ") and "colab-7" in held.note


def test_a_number_that_came_back_as_another_process_is_no_owner(tmp_path):
    _write(tmp_path, pid=os.getppid(), started="1")
    with session_lock(tmp_path) as held:
        assert "taken over" in held.note


def test_where_the_file_system_has_no_locks_the_record_alone_keeps_others_out(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "_SETTLE_S", 0.01)
    with session_lock(tmp_path):
        with pytest.raises(UserError, match="in use"), session_lock(tmp_path):
            pass
    with session_lock(tmp_path) as held:
        assert held.note == ""


def test_it_beats_and_finds_out_when_another_machine_took_over(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    with session_lock(tmp_path) as held:
        first = json.loads((tmp_path / LOCK_FILE).read_text())["beat"]
        _until(lambda: json.loads((tmp_path / LOCK_FILE).read_text() or "{}").get("beat", 0) > first)
        assert not held.lost
        (tmp_path / LOCK_FILE).unlink()  # Drive is away for a while: no reason to stop
        time.sleep(0.1)
        assert not held.lost
        # The other one beats, too: a single line of it could fall between our looking and our writing.
        _until(lambda: _write(tmp_path, host="colab-7", boot="other") and held.lost)
        assert held.lost.startswith("This session was taken over by process") and "colab-7" in held.lost
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "colab-7"  # not ours to clear


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"host": 1}', "null", '{"doing": "x", "since": "now"}', "\xff"]
)
def test_a_lock_file_that_says_nothing_locks_nothing(tmp_path, text):
    (tmp_path / LOCK_FILE).write_bytes(text.encode("latin-1"))
    assert who_works_on(tmp_path) == ""
    with session_lock(tmp_path) as held:
        assert held.note == ""


def test_a_session_that_cannot_be_written_to_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"cannot be locked for writing: No such file") as caught:
        with session_lock(tmp_path / "gone"):
            pass
    assert "mount Drive again" in caught.value.fix


def test_whatever_happens_in_the_block_the_session_is_free_afterwards(tmp_path):
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt), session_lock(tmp_path):
        raise KeyboardInterrupt
    left = {one.name for one in set(threading.enumerate()) - before}
    assert who_works_on(tmp_path) == "" and "session lock" not in left
    with session_lock(tmp_path) as held:
        assert held.note == ""


def _until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
