"""A ViT server on a real port of loopback, with a tiny model and real photographs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "vit"), str(Path(__file__).parents[2])]

from tiny_vit import make_vit, photos  # noqa: E402

from benchmarks import _hostile as hostile  # noqa: E402
from fastsd_lib.vit.config import RunnerConfig  # noqa: E402
from fastsd_lib.webui.vit_server.config import ServeConfig  # noqa: E402
from fastsd_lib.webui.vit_server.running import Running, serve  # noqa: E402

__all__ = ["EXACT", "Gate", "asking", "hostile", "make_vit", "photos", "served"]
EXACT = RunnerConfig(backend="torch", precision="fp32", threads=1)


@contextmanager
def served(model: Path, runner_config: RunnerConfig = EXACT, **choices: Any) -> Iterator[Running]:
    with serve(model, ServeConfig(**{"port": None, **choices}), runner_config) as running:
        yield running


def asking(running: Running, **more: Any) -> httpx.Client:
    return httpx.Client(base_url=running.url, trust_env=False, timeout=60, **more)


class Gate:
    """Stands before the server's runner and lets nothing through until it is opened."""

    def __init__(self, running: Running) -> None:
        self._batcher = running.service.batchers["labels"]
        self._runner = self._batcher.runner
        self._batcher.runner = self
        self._open = threading.Event()
        self.entered = threading.Event()

    def run(self, pixels: np.ndarray) -> np.ndarray:
        self.entered.set()
        self._open.wait(30)
        return self._runner.run(pixels)

    def open(self) -> None:
        self._open.set()
