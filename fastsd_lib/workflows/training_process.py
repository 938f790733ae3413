"""The server's side of a training in a process of its own (`training_child.py`): start it, hear it, end it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

PACKAGE = Path(__file__).resolve().parents[2]  # the folder that holds fastsd_lib
LOG_LINES = 40
LINE_LETTERS = 400
Hear = Callable[[dict[str, Any]], None]


class TrainingProcess:
    """One child. `hear` is called for each thing that it says, `ended` once with its exit status; in threads of ours."""

    def __init__(self, order: Mapping[str, Any], hear: Hear, ended: Callable[[int], None]) -> None:
        self._hear, self._ended = hear, ended
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self.ended_by_us = False  # killed, because it did not end when asked
        self._over = threading.Event()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "fastsd_lib.workflows.training_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=PACKAGE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is for the server, which asks the child to save
        )
        self._say(json.dumps(order))
        self._readers = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._keep_log)]
        for thread in (*self._readers, threading.Thread(target=self._see_it_end, daemon=True)):
            thread.start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return not self._over.is_set()

    @property
    def log(self) -> tuple[str, ...]:
        return tuple(self._log)

    def ask_to_stop(self, patience_s: float) -> None:
        """Let it save; a hard end when it takes longer than that."""
        self._say("stop")
        timer = threading.Timer(patience_s, self.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """End it and whatever it started, at once; a session goes on from its last checkpoint."""
        if self.alive:
            self.ended_by_us = True
            self._kill_group()

    def wait(self, timeout_s: float) -> bool:
        """True when it is over, and everything that it said was heard."""
        return self._over.wait(timeout_s)

    def _say(self, line: str) -> None:
        with suppress(OSError, ValueError):  # it has ended: its exit status says why
            assert self._child.stdin is not None
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with suppress(ValueError):  # a line that its death cut short
                self._hear(json.loads(line))

    def _see_it_end(self) -> None:
        status = self._child.wait()
        self._kill_group()  # what it started would keep its pipes open
        for reader in self._readers:
            reader.join(timeout=5)
        with suppress(OSError):
            assert self._child.stdin is not None
            self._child.stdin.close()
        self._ended(status)
        self._over.set()

    def _keep_log(self) -> None:
        assert self._child.stderr is not None
        for line in _lines(self._child.stderr):
            self._log.append(line)

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._child.pid, signal.SIGKILL)
            else:
                self._child.kill()


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """What is there to read, line by line; of a progress bar only its last state."""
    for raw in iter(lambda: stream.readline(1 << 16), b""):
        line = re.split(r"\r+", raw.decode(errors="replace").rstrip())[-1].rstrip()
        if line:
            yield line[:LINE_LETTERS]


def why_it_ended(status: int) -> tuple[str, str]:
    """A sentence and the way out for an exit that the child could not explain itself."""
    resume = "press Resume: it goes on from its last checkpoint."
    if status in (-9, 137):
        return (
            "The training was killed by the system: most likely the machine ran out of memory (exit -9).",
            f"lower the resolution or the batch size, choose LoRA, or pause drawing meanwhile; then {resume}",
        )
    if status < 0:
        with suppress(ValueError):
            return f"The training was ended by {signal.Signals(-status).name}.", resume
    return f"The training ended without a word (exit {status}).", f"its last lines say more; {resume}"
