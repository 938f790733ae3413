"""How fast the run is and how much memory it holds, or may still take."""

from __future__ import annotations

import time
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


class Clock:
    """Pace and memory of the running stage."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def facts(self, done: int, left: int, pictures_per_step: int) -> dict[str, float]:
        spent = max(time.monotonic() - self._start, 1e-9)
        return {
            "images_per_s": done * pictures_per_step / spent,
            "eta_s": left * spent / max(done, 1),
            "memory_mib": memory_mib(),
        }


def memory_mib() -> float:
    """What the run holds now: GPU memory where it trains on one, else this process's resident memory."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.memory_allocated() / 2**20
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def free_host_bytes() -> int:
    """Memory that the system, or the container around this process, can still give without swapping."""
    import psutil

    free = psutil.virtual_memory().available
    try:  # containers: the host's figure says nothing about their own limit
        limit = int((_CGROUP / "memory.max").read_text())
        held = int((_CGROUP / "memory.current").read_text())
        cache = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return min(free, limit - held + int(cache.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such limit
        return free
