"""A client program: read without waiting, ended with everything it started, whoever ends first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from fastsd_lib.webui.tunnels.child import Child, Ended, Silent

FAMILY = 'sh -c "sleep 300" & echo started; exec sleep 300'
STUBBORN = "trap '' TERM HUP; echo started; while :; do sleep 1; done"


def started(command: str, **settings) -> Child:
    child = Child(["sh", "-c", command], **settings)
    child.wait_for(lambda line: line == "started" or None, time.monotonic() + 10, threading.Event())
    return child


def gone(numbers: list[int], within_s: float) -> bool:
    end = time.monotonic() + within_s
    while any(alive(number) for number in numbers):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def family(child: Child) -> list[int]:
    return [child.pid, *(one.pid for one in psutil.Process(child.pid).children(recursive=True))]


@pytest.mark.parametrize("command", [FAMILY, STUBBORN], ids=["with helpers", "deaf to signals"])
def test_stop_ends_the_client_and_all_it_started(command):
    child = started(command)
    numbers = family(child)
    assert len(numbers) >= 2
    began = time.monotonic()
    child.stop()
    assert time.monotonic() - began < 5 and gone(numbers, 0.5)


def test_a_frozen_client_is_ended_too():
    child = started(FAMILY)
    numbers = family(child)
    os.killpg(child.pid, signal.SIGSTOP)
    child.stop()
    assert gone(numbers, 0.5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_does_not_outlive_this_program_however_that_ends(number):
    program = (
        "import sys, time; from fastsd_lib.webui.tunnels.child import Child\n"
        f"child = Child(['sh', '-c', {FAMILY!r}]); time.sleep(1)\n"
        "import psutil; one = psutil.Process(child.pid)\n"
        "print(one.pid, *(each.pid for each in one.children(recursive=True)), flush=True); time.sleep(300)"
    )
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    numbers = [int(word) for word in host.stdout.readline().split()]
    assert len(numbers) >= 3 and all(map(alive, numbers))
    host.send_signal(number)
    host.wait(5)
    assert gone(numbers, 5.0)


def test_the_end_of_a_client_is_noticed_at_once():
    noticed = []
    child = started("echo started; sleep 300", on_end=lambda: noticed.append(time.monotonic()))
    victim = psutil.Process(child.pid).children()[0]
    began = time.monotonic()
    victim.kill()
    assert child.ended.wait(2) and noticed[0] - began < 0.5
    assert child.exit_status == 137
    child.stop()


def test_a_client_that_ends_and_one_that_is_silent_are_told_apart():
    child = Child(["sh", "-c", "echo one; echo two; exit 3"])
    with pytest.raises(Ended):
        child.wait_for(lambda line: None, time.monotonic() + 10, threading.Event())
    assert child.tail() == ["one", "two"] and child.exit_status == 3
    child.stop()
    quiet = Child(["sleep", "300"])
    began = time.monotonic()
    with pytest.raises(Silent):
        quiet.wait_for(lambda line: None, began + 0.5, threading.Event())
    assert time.monotonic() - began < 1.5
    quiet.stop()


def test_secrets_never_reach_the_kept_output_nor_other_secrets_the_client(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    child = Child(["sh", "-c", 'echo "token=sesame;"; echo "[$HF_TOKEN]"'], secrets=["sesame"])
    child.ended.wait(5)
    assert child.tail() == ["token=***;", "[]"]
    child.stop()
