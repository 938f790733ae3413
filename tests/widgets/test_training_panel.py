"""The panel without a kernel; test_in_kernel.py presses it while a cell is busy."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from PIL import Image

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.widgets.training_panel import TrainingPanel, TrainingStopped, watch


def train(report, should_stop, steps=40, start=0):
    for step in range(start + 1, steps + 1):
        facts = {"loss": 1 / step, "learning_rate": 2e-6, "memory_mib": 1234.5, "eta_s": 75.0}
        report(ProgressEvent("U-Net", step, steps, facts))
        time.sleep(0.005)
        if should_stop():
            break
    return step


def wait_until(condition, patience_s=10.0):
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_an_unattended_run_ends_by_itself_and_returns_the_result():
    panel = TrainingPanel()
    assert asyncio.run(panel.run(train)) == panel.result == 40
    assert panel.state == "finished" and "Finished in" in panel._status.value
    assert "40 / 40" in panel._stages.value and "width:100.0%" in panel._stages.value
    assert "<svg" in panel._curve.value
    assert panel.stop_button.layout.display == panel.resume_button.layout.display == "none"


def test_while_it_runs_loss_time_left_and_memory_are_on_the_page():
    panel = TrainingPanel()
    seen = {}

    def work(report, should_stop):
        report(ProgressEvent("text encoder", 20, 20, {"loss": 0.5}))
        report(ProgressEvent("U-Net", 1, 4, {"loss": 0.125, "memory_mib": 1234.5, "eta_s": 75.0}))
        time.sleep(0.35)
        report(ProgressEvent("U-Net", 2, 4, {"loss": 0.125, "memory_mib": 1234.5, "eta_s": 75.0}))
        seen.update(facts=panel._facts.value, stages=panel._stages.value)

    asyncio.run(panel.run(work))
    assert "0.125" in seen["facts"] and "1,234 MiB" in seen["facts"] and "1 min 15 s" in seen["facts"]
    assert "2 / 4" in seen["stages"] and "1 min 15 s left" in seen["stages"]
    assert seen["stages"].index("text encoder") < seen["stages"].index("U-Net")


def test_a_transfer_is_on_the_page_in_percent_and_megabytes_never_in_bytes():
    panel = TrainingPanel()
    panel.report(
        ProgressEvent("download", 12_345_678, 40_000_000, {"": "12 of 40 MB, <3> MB/s", "bytes_per_s": 3e6})
    )
    panel._draw()
    assert "30 %" in panel._stages.value and "12 of 40 MB, &lt;3&gt; MB/s" in panel._stages.value
    assert "12345678 /" not in panel._stages.value


def test_what_is_safe_on_drive_stays_on_the_page_also_when_later_events_do_not_say_it():
    panel, seen = TrainingPanel(), []
    panel._safe.observe(lambda change: seen.append(change["new"]), names="value")
    for step, facts in enumerate(
        ({}, {"safe": "nothing on Drive yet"}, {"safe": "on Drive up to step <2>"}, {}), 1
    ):
        panel.report(ProgressEvent("U-Net", step, 100, facts))
    assert ["nothing on Drive" in value for value in seen] == [True, False]
    assert "safe on Drive up to step &lt;2&gt;" in panel._safe.value
    panel.report(ProgressEvent("export", 1, 1))
    assert "up to step" in panel._safe.value and panel._safe.layout.display == ""


def test_where_nothing_is_carried_there_is_no_such_line():
    panel = TrainingPanel()
    panel.report(ProgressEvent("U-Net", 1, 2))
    assert panel._safe.value == "" and panel._safe.layout.display == "none"


def test_stop_ends_the_run_and_resume_goes_on_to_the_end():
    panel, reached = TrainingPanel(), [0]

    def stopping(report, should_stop):
        def heard(event):
            report(event)
            if event.done == 10:
                panel.stop_button.click()

        reached[0] = train(heard, should_stop, start=reached[0])
        return reached[0]

    with pytest.raises(TrainingStopped) as error:
        asyncio.run(panel.run(stopping))
    assert error.value.message == "Stopped at U-Net 10 of 40; what is done is saved."
    assert "press Resume" in error.value.fix
    assert (panel.state, panel.result) == ("stopped", 10)
    assert panel.resume_button.layout.display == ""
    panel.resume_button.click()
    assert asyncio.run(panel.finished()) == 40
    assert panel.state == "finished"


def test_a_user_error_is_shown_in_its_two_lines_and_raised_in_the_cell():
    def work(report, should_stop):
        raise UserError("The disk is <full>.", fix="free some space.")

    panel = TrainingPanel()
    with pytest.raises(UserError, match="disk is <full>"):
        asyncio.run(panel.run(work))
    assert panel.state == "failed"
    assert "The disk is &lt;full&gt;." in panel._message.value and "free some space." in panel._message.value
    assert panel.resume_button.layout.display == ""


def test_any_other_error_is_raised_with_its_own_type():
    panel = TrainingPanel()
    with pytest.raises(ZeroDivisionError):
        asyncio.run(panel.run(lambda report, should_stop: 1 / 0))
    assert "ZeroDivisionError" in panel._message.value


def test_there_is_no_result_before_the_end():
    with pytest.raises(UserError, match="has not finished") as error:
        _ = TrainingPanel().result
    assert "Stop and save" in error.value.fix


def test_a_second_run_at_the_same_time_is_refused():
    panel = TrainingPanel()
    panel._work = train
    panel._start()
    with pytest.raises(UserError, match="running already"):
        panel._start()
    panel.stop()
    wait_until(lambda: panel.state in ("stopped", "finished"))


def test_new_samples_replace_the_old_ones_and_a_lost_file_is_no_error(tmp_path):
    paths = []
    for step in (10, 20):
        paths.append(tmp_path / f"step_{step:06d}_1.png")
        Image.new("RGB", (64, 64), "teal").save(paths[-1])
    panel = TrainingPanel()
    panel.report(ProgressEvent("U-Net", 10, 20, {}, (paths[0],)))
    panel.report(ProgressEvent("U-Net", 20, 20, {}, (paths[1], Path("/gone.png"))))
    assert "step_000020_1" in panel._samples.value and "step_000010_1" not in panel._samples.value
    assert 'class="fsd-small"' in panel._samples.value  # 64 pixels are enlarged with sharp edges


def test_work_that_does_not_ask_is_stopped_at_its_next_report():
    panel, done = TrainingPanel("Pictures", stop_at_reports=True), []

    def work(report, should_stop):
        for number in range(1, 100):
            done.append(number)
            if number == 5:
                panel.stop()
            report(ProgressEvent("pictures", number, 100))

    with pytest.raises(TrainingStopped, match="Stopped at pictures 5 of 100"):
        asyncio.run(panel.run(work))
    assert done[-1] == 5


def test_watch_returns_what_the_work_returned():
    assert (
        asyncio.run(watch("Export", lambda report: report(ProgressEvent("export", 1, 1)) or "made")) == "made"
    )


def test_a_fast_run_does_not_flood_the_page():
    panel, drawn = TrainingPanel(), []
    panel._stages.observe(lambda change: drawn.append(change["new"]), names="value")
    for step in range(1, 2001):
        panel.report(ProgressEvent("U-Net", step, 100_000, {"loss": 0.1}))
    assert len(drawn) <= 20
    assert len(panel.curve.svg()) < 20_000
