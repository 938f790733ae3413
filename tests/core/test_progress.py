from __future__ import annotations

import io

import pytest

from fastsd_lib.core import progress as progress_module
from fastsd_lib.core.progress import ConsoleProgress, ProgressEvent, duration, silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(stream: io.StringIO, total: int, **facts: float | str) -> str:
    progress = ConsoleProgress(stream)
    for done in range(total + 1):
        progress(ProgressEvent("latents", done, total, facts))
    return stream.getvalue()


def test_a_log_gets_one_line_per_tenth_of_long_work_and_ends_with_the_whole(monkeypatch):
    assert len(run(io.StringIO(), 1000).splitlines()) == 1  # it took no time: its end says all
    monkeypatch.setattr(progress_module, "QUICK_S", 0)
    lines = run(io.StringIO(), 1000).splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("latents 100/1000") and lines[-1].startswith("latents 1000/1000")


def test_a_log_gets_one_line_for_short_work():
    assert run(io.StringIO(), 1).splitlines()[0].startswith("latents 1/1")
    assert len(run(io.StringIO(), 1).splitlines()) == 1


def test_a_terminal_shows_a_bar_on_one_line_that_ends_when_the_work_does():
    shown = run(Terminal(), 4)
    assert shown.count("\n") == 1 and shown.endswith("\n")
    frames = shown.split("\r\033[K")
    assert [frame.count("█") for frame in frames[1:]] == [0, 6, 12, 18, 24]


def test_facts_are_shown_with_their_units():
    shown = run(io.StringIO(), 1, loss=0.123456, memory_mib=2048.4, eta_s=125.0, photo="cat.jpg")
    assert "loss 0.1235" in shown and "memory 2,048 MiB" in shown
    assert "2 min 05 s left" in shown and "photo cat.jpg" in shown


def test_a_transfer_is_told_in_percent_and_megabytes_never_in_bytes(monkeypatch):
    monkeypatch.setattr(progress_module, "QUICK_S", 0)
    words = {"": "12 of 40 MB, 3.1 MB/s", "bytes_per_s": 3.1e6}
    stream = io.StringIO()
    ConsoleProgress(stream)(ProgressEvent("download a.pt", 12_345_678, 40_000_000, words))
    assert stream.getvalue().startswith("download a.pt 30 %  12 of 40 MB, 3.1 MB/s")
    assert "12345678" not in stream.getvalue() and "bytes_per_s" not in stream.getvalue()
    assert ProgressEvent("download a.pt", 0, 1, words).share == "..."
    assert ProgressEvent("U-Net", 1, 2).share == ""
    assert ProgressEvent("verifying", 1_000_000_000, 4_000_000_000).share == "25 %"


def test_the_same_task_can_run_again():
    stream = io.StringIO()
    progress = ConsoleProgress(stream)
    for _ in range(2):
        for done in range(3):
            progress(ProgressEvent("latents", done, 2))
    assert stream.getvalue().count("latents 2/2") == 2


def test_work_of_nothing_is_finished_at_once():
    assert run(io.StringIO(), 0) == "latents 0/0\n"
    assert silent(ProgressEvent("latents", 0, 0)) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (45.4, "45 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words
