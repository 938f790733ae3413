"""One training loop for every stage: one-thread processes that average their gradients."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn


class Budget(argparse.Namespace):
    """Steps and minutes per stage; a stage ends with the one it reaches first."""


class Team:
    """Processes that train one network: they draw different batches and average their gradients."""

    def __init__(self, rank: int, size: int, log: Path) -> None:
        self.rank, self.size, self.log_path = rank, size, log
        torch.manual_seed(rank)

    def batches(self, count: int, batch: int) -> Iterator[np.ndarray]:
        """Endless index batches; every picture once per epoch over the whole team."""
        epoch = 0
        while True:
            order = np.random.default_rng(epoch).permutation(count)[self.rank :: self.size]
            for start in range(0, len(order) - batch + 1, batch):
                yield np.sort(order[start : start + batch])
            epoch += 1

    def average(self, parameters: list[nn.Parameter], extra: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return extra
        flat = torch.cat([p.grad.reshape(-1) for p in parameters] + [extra])
        dist.all_reduce(flat)
        flat /= self.size
        offset = 0
        for p in parameters:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()
        return flat[offset:]

    def log(self, text: str) -> None:
        if self.rank == 0:
            with self.log_path.open("a") as handle:
                handle.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def fit(
    team: Team,
    name: str,
    module: nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    *,
    steps: int,
    minutes: float,
    rate: float,
    ema: float = 0.0,
    weight_decay: float = 0.01,
    snapshot: Callable[[dict[str, torch.Tensor], int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """AdamW with warm-up and cosine down to nothing; ends after `steps` or `minutes`, whichever is nearer.

    Returns the EMA of the weights where `ema` > 0, else the weights.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:  # every process starts from the first one's weights
        if team.size > 1:
            dist.broadcast(p.data, 0)
    optimizer = torch.optim.AdamW(
        parameters, lr=rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=True
    )
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    started = last_log = last_snapshot = time.monotonic()
    progress, smooth = 0.0, None
    step = 0
    while progress < 1:
        now = time.monotonic()
        warm = min(1.0, (step + 1) / 150)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        mine = max((step + 1) / steps, (now - started) / (60 * minutes))
        value, progress = team.average(parameters, torch.tensor([loss.item(), mine])).tolist()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        decay = min(ema, (1 + step) / (10 + step))
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                average[key].lerp_(tensor, 1 - decay)
            else:
                average[key].copy_(tensor)
        smooth = value if smooth is None else smooth * 0.98 + value * 0.02
        if now - last_log > 20:
            last_log = now
            team.log(
                f"{name} step {step} progress {progress:.3f} loss {smooth:.4f} {step / (now - started):.2f} steps/s"
            )
        if snapshot and team.rank == 0 and now - last_snapshot > 420:
            last_snapshot = now
            snapshot(average, step)
    team.log(f"{name} done: {step} steps in {(time.monotonic() - started) / 60:.1f} min, loss {smooth:.4f}")
    return average
