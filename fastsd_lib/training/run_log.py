"""What happened at each step: metrics.jsonl for programs, TensorBoard events for people."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from fastsd_lib.core.files import write_text
from fastsd_lib.training.event_file import EventFile

METRICS = "metrics.jsonl"


class RunLog:
    """Appends to logs/; a resumed run drops the lines of steps that it is about to repeat."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._folder, self._first_step = folder, first_step

    def __enter__(self) -> RunLog:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / METRICS
        kept = [line for line in _lines(path) if _step(line) <= self._first_step] if self._first_step else []
        write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = EventFile(self._folder, first_step=self._first_step + 1)
        return self

    def write(
        self, step: int, stage: str, stage_step: int, stage_steps: int, facts: Mapping[str, float]
    ) -> None:
        line = {
            "step": step,
            "stage": stage,
            "stage_step": stage_step,
            "stage_steps": stage_steps,
            "time": round(time.time(), 3),
            **facts,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in facts.items():
            if name != "eta_s":
                self._board.add_scalar(f"{stage}/{name}", value, step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # a line that a crash cut short
        return float("inf")
