"""The training panel in a real kernel, pressed the way a page presses it: by messages while its cell is busy."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from fastsd_lib.sessions.checkpoints import find_damage, list_checkpoints

REPOSITORY = Path(__file__).resolve().parents[2]
SETUP = f"""
import sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.widgets.training_panel import TrainingPanel

def work(report, should_stop):
    for step in range(1, 401):
        report(ProgressEvent("U-Net", step, 400, {{"loss": 1 / step}}))
        time.sleep(0.05)
        if should_stop():
            break
    return step

panel = TrainingPanel()
print(panel.stop_button.model_id)
"""
TRAIN = "print('started'); print(await panel.run(work))"


class Kernel:
    def __init__(self) -> None:
        self.manager = KernelManager()
        self.manager.kernel_spec.argv[0] = sys.executable  # this environment's, whatever specs are installed
        self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=90)

    def start(self, code: str) -> str:
        return self.client.execute(code)

    def finish(self, request: str, on_text: Callable[[str], None] = lambda text: None) -> str:
        """What a cell printed, errors included, once it has ended; `on_text` hears it as it comes."""
        texts = []
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind in ("stream", "error"):
                texts.append(content["text"] if kind == "stream" else "\n".join(content["traceback"]))
                on_text(texts[-1])
            if kind == "status" and content["execution_state"] == "idle":
                return "".join(texts)

    def press(self, comm_id: str) -> None:
        """What a page sends when a button is pressed."""
        data = {"method": "custom", "content": {"event": "click"}}
        message = self.client.session.msg("comm_msg", {"comm_id": comm_id, "data": data})
        self.client.shell_channel.send(message)

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def stop_button(kernel: Kernel) -> str:
    return kernel.finish(kernel.start(SETUP)).strip().splitlines()[-1]


def once_started(act: Callable[[], Any]) -> Callable[[str], None]:
    def on_text(text: str) -> None:
        if "started" in text:
            time.sleep(0.5)  # into the training
            act()

    return on_text


def test_stop_is_heard_while_its_cell_is_busy_and_the_cells_below_do_not_run(
    kernel: Kernel, stop_button: str
) -> None:
    training, below = kernel.start(TRAIN), kernel.start("print('below')")
    text = kernel.finish(training, once_started(lambda: kernel.press(stop_button)))
    assert "Stopped at U-Net" in text and "of 400; what is done is saved." in text
    assert "press Resume, or run this cell again" in text
    assert "Traceback" not in text
    assert kernel.finish(below) == ""
    assert kernel.finish(kernel.start("print(panel.state, panel.result < 400)")) == "stopped True\n"


def test_interrupting_the_kernel_stops_as_cleanly(kernel: Kernel, stop_button: str) -> None:
    text = kernel.finish(kernel.start(TRAIN), once_started(kernel.manager.interrupt_kernel))
    assert "Stopped at U-Net" in text and "Traceback" not in text
    assert kernel.finish(kernel.start("print(panel.state)")) == "stopped\n"


def test_a_cell_queued_during_training_runs_after_it(kernel: Kernel, stop_button: str) -> None:
    training = kernel.start(TRAIN.replace("work", "lambda report, should_stop: time.sleep(1)"))
    below = kernel.start("print(panel.state)")
    kernel.finish(training)
    assert kernel.finish(below) == "finished\n"


REAL = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from dataclasses import replace
from pathlib import Path
from fastsd_lib.widgets.training_panel import TrainingPanel
from fastsd_lib.workflows import dreambooth

session = dreambooth.open_session("monster", {{root!r}})
dreambooth.add_photos(session, dreambooth.sample_photos("monster", Path({{root!r}}) / "given"))
base = dreambooth.base_model()
config = replace(dreambooth.recipe_for(base, "a photo of sks monster"), text_encoder_steps=2, unet_steps=400,
                 sample_every_steps=0, save_every_steps=0)
print("ready")
"""
REAL_TRAINING = """
panel = TrainingPanel()
def told(report):
    def heard(event):
        report(event)
        if event.task == "U-Net" and event.done == 3:
            print("started")
    return heard
checkpoint = await panel.run(lambda report, should_stop: dreambooth.train(
    session, base, config, report=told(report), should_stop=should_stop))
"""


def test_interrupting_real_training_saves_and_the_cell_goes_on_from_there_when_run_again(
    kernel: Kernel, tmp_path: Path
) -> None:
    assert "ready" in kernel.finish(kernel.start(REAL.format(root=str(tmp_path))))
    text = kernel.finish(kernel.start(REAL_TRAINING), once_started(kernel.manager.interrupt_kernel))
    assert "what is done is saved" in text and "Traceback" not in text
    saved = list_checkpoints(tmp_path / "Fast-Dreambooth" / "Sessions" / "monster" / "checkpoints")[-1]
    assert 2 < saved.step < saved.total_steps == 402
    again = REAL_TRAINING.replace('"U-Net" and event.done == 3', f'"U-Net" and event.done == {saved.step}')
    text = kernel.finish(kernel.start(again), once_started(kernel.manager.interrupt_kernel))
    assert "what is done is saved" in text and "Traceback" not in text
    newest = list_checkpoints(saved.path.parent)[-1]
    assert newest.step > saved.step and newest.run == saved.run


def test_a_kernel_that_is_told_to_end_saves_first_and_then_ends(tmp_path: Path) -> None:
    kernel = Kernel()
    try:
        kernel.finish(kernel.start(REAL.format(root=str(tmp_path))))
        client, process = kernel.client, kernel.manager.provisioner.process
        request = kernel.start(REAL_TRAINING)
        while True:
            message = client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") == request and message["msg_type"] == "stream":
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
        saved = list_checkpoints(tmp_path / "Fast-Dreambooth" / "Sessions" / "monster" / "checkpoints")[-1]
        assert 2 < saved.step < saved.total_steps and find_damage(saved.path) == ""
    finally:
        kernel.close()
