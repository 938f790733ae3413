"""Real training runs of a tiny ViT, each in a process of its own that may be killed anywhere.

Run as a script it imports torch once and forks for every job, so that dozens of runs take seconds. A job is a line of
JSON: {"out", "config", "kill_at_step", "stop_at_step", "kill_at_write"}; it answers with the lines that the run said.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def make_pictures(folder: Path, classes: tuple[str, ...] = ("dark", "light"), count: int = 9) -> Path:
    """Noise around a grey of each class's own, 16 px: a class folder each, none like another."""
    random = np.random.default_rng(3)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            middle = 60 + 130 * number / max(1, len(classes) - 1)
            pixels = random.normal(middle, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def base_config(data: Path, **changes: Any) -> dict[str, Any]:
    """Everything that draws random numbers or keeps a state, in a run of a second."""
    return {
        "data": str(data), "model": "new", "validation": 0.25, "epochs": 3, "batch_size": 3, "learning_rate": 3e-3,
        "new_image_px": 16, "new_patch_px": 8, "new_width": 16, "new_layers": 2, "new_heads": 2, "threads": 1,
        "device": "cpu", "save_every_steps": 2, "keep_checkpoints": 3, "augment": "strong", "flip": True,
        "report": False, **changes,
    }  # fmt: skip


class Runs:
    """The fork server as a test sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )

    def run(self, out: Path, config: dict[str, Any], **how: int) -> tuple[int, str]:
        """(exit code, negative for a signal; all that was said)"""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"out": str(out), "config": config, **how}) + "\n")
        self._process.stdin.flush()
        code, said = json.loads(self._process.stdout.readline())
        return code, said

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)


def run_job(job: dict[str, Any], say: Any) -> None:
    from fastsd_lib.core import disk
    from fastsd_lib.core.progress import ProgressEvent
    from fastsd_lib.vit.train_config import VitTrainConfig
    from fastsd_lib.vit.trainer import train

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def report(event: ProgressEvent) -> None:
        if event.task == "train" and event.done == job.get("kill_at_step"):
            die()
        if event.task == "train" and event.done == job.get("stop_at_step"):
            os.kill(os.getpid(), signal.SIGINT)
        if "" in event.facts:
            say(event.facts[""])

    writes, write_file = 0, disk.write_file

    def counted(path: Path, chunks: Any) -> Any:
        nonlocal writes
        writes += 1
        if writes == job.get("kill_at_write"):
            path.write_bytes(b"half")
            die()
        return write_file(path, chunks)

    disk.write_file = counted
    train(VitTrainConfig(**job["config"]), Path(job["out"]), report)


def _serve() -> None:
    import torch

    import fastsd_lib.vit.trainer  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        said = Path(job["out"]).with_name(Path(job["out"]).name + ".said")
        said.parent.mkdir(parents=True, exist_ok=True)
        said.write_text("")
        child = os.fork()
        if not child:
            code = 1
            try:
                with said.open("a", buffering=1) as file:
                    run_job(job, lambda text: file.write(text + "\n"))
                code = 0
            except BaseException as error:
                said.write_text(f"{type(error).__name__}: {error}")
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), said.read_text()]), flush=True)


if __name__ == "__main__":
    _serve()
