"""One training in a process of its own: `python -m fastsd_lib.workflows.training_child`.

A web server starts it, so that a crash or a lack of memory ends the training alone. The first line of its input says
what to do, as JSON; a line "stop", or the input's end (the server is gone), asks it to save and end. Each line of its
output is a JSON object with one key: `event`, `plan`, `note`, `trained`, `exported` or `error`. What it has to say
besides goes to the error output. Nothing is said in its arguments.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from fastsd_lib.core.config import config_from_dict
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.files import plain_disk_errors
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.workflows import dreambooth

ALONE_S = 600.0  # how long it may go on saving when the server is gone


class Speaker:
    """Says JSON lines; silent once nobody listens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._turn = stream, threading.Lock()

    def say(self, **what: Any) -> None:
        with self._turn:
            try:
                self._stream.write(json.dumps(what, ensure_ascii=False, default=str) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # the server is gone; its end of the input says so, too
                pass

    def report(self, event: ProgressEvent) -> None:
        self.say(event=asdict(event))


class Asked(threading.Event):
    """Set when somebody asks to stop."""

    def __init__(self, lines: Iterator[str]) -> None:
        super().__init__()
        threading.Thread(target=self._listen, args=(lines,), name="asked", daemon=True).start()

    def _listen(self, lines: Iterator[str]) -> None:
        for line in lines:
            if line.strip() == "stop":
                self.set()
        self.set()
        time.sleep(ALONE_S)
        os._exit(1)


def lines_of(handle: int) -> Iterator[str]:
    """Lines as they come. Not through sys.stdin: a thread that waits in it breaks the end of the program."""
    kept = b""
    while chunk := os.read(handle, 1 << 16):
        *whole, kept = (kept + chunk).split(b"\n")
        yield from (line.decode() for line in whole)


def work(order: Mapping[str, Any], speaker: Speaker, asked: Asked) -> None:
    """Train and export, or export alone, as `order` says."""
    root = Path(order["root"])
    session = dreambooth.open_session(order["session"], root, create_if_missing=False)
    if order["do"] == "resume":
        base_name, config = dreambooth.planned(session, resume=True)
    elif order["do"] == "train":
        base_name = order["base_model"]
        config = config_from_dict(DreamBoothConfig, order["recipe"], where="the recipe")
    else:
        base_name, config = dreambooth.planned(session)
    steps = {"text encoder": config.text_encoder_steps, "U-Net": config.unet_steps}
    speaker.say(plan={"steps": steps, "base_model": base_name})
    speaker.report(ProgressEvent(f"base model {Path(base_name).name}", 0, 1))
    base = dreambooth.base_model(base_name, root)
    if order["do"] == "export":
        checkpoint = dreambooth.newest_checkpoint(session)
    else:
        checkpoint = dreambooth.train(
            session, base, config, report=speaker.report, should_stop=asked.is_set, resume=True
        )
        speaker.say(
            trained={
                "finished": checkpoint.finished,
                "step": checkpoint.step,
                "total_steps": checkpoint.total_steps,
            }
        )
        if not checkpoint.finished:
            return
    made = dreambooth.export(session, base, checkpoint, report=speaker.report)
    speaker.say(exported={"model": str(made.path)})


def main() -> int:
    speaker = Speaker(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what libraries print is no news
    lines = lines_of(0)
    order, asked = json.loads(next(lines)), Asked(lines)
    if hasattr(os, "nice"):
        os.nice(5)  # the page that shows the curve answers first
    try:
        with plain_disk_errors("finish the training"):
            work(order, speaker, asked)
    except UserError as error:
        speaker.say(error={"message": error.message, "fix": error.fix, "stopped": asked.is_set()})
        return 2
    except BaseException as error:
        traceback.print_exc()
        message, fix = _in_words(error)
        speaker.say(error={"message": message, "fix": fix, "stopped": asked.is_set()})
        return 1
    return 0


def _in_words(error: BaseException) -> tuple[str, str]:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return (
            "There was not enough memory for the training.",
            "lower the resolution or the batch size, choose LoRA, or pause drawing meanwhile; then press Resume.",
        )
    return f"The training ended with an error: {type(error).__name__}: {error}"[
        :500
    ], "its last lines say more."


if __name__ == "__main__":
    sys.exit(main())
