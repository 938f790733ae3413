"""Which learning rate suits: a short run in which it grows from far too small to far too large.

Smith 2017, "Cyclical learning rates for training neural networks" (arXiv 1506.01186), section 3.3.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from fastsd_lib.core.config import check_config
from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.vit.folder_data import ImageFolder
from fastsd_lib.vit.layers import parameter_groups
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.vit.train_data import Batches
from fastsd_lib.vit.train_loss import Loss
from fastsd_lib.vit.train_run import Run
from fastsd_lib.vit.trainer import Training, starting_model
from fastsd_lib.vit.training_sets import open_training_data

LOWEST, HIGHEST = 1e-7, 1.0
_SMOOTH = 0.9  # weight of the past in the average of losses
_HOPELESS = 4.0  # times the lowest loss: from here on it only gets worse
_FEWEST = 10  # losses without which nothing can be said


@dataclass(frozen=True)
class RateSearch:
    """Rates that were tried and the loss at each, averaged over the last few steps."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def steepest(self) -> float:
        """Where the loss fell fastest, per factor of the rate: a rate to train with."""
        until = max(int(np.argmin(self.losses)), _FEWEST // 2)
        slopes = np.gradient(np.array(self.losses), np.log(self.rates))[: until + 1]
        return float(self.rates[int(np.argmin(slopes))])

    @property
    def largest(self) -> float:
        """A tenth of the rate at the lowest loss: more would soon be too much."""
        return float(self.rates[int(np.argmin(self.losses))]) / 10

    @property
    def suggested(self) -> float:
        """Two digits of the smaller one of both."""
        return float(f"{min(self.steepest, self.largest):.1e}")


def find_learning_rate(
    config: VitTrainConfig,
    on_progress: Report = silent,
    *,
    images: ImageFolder | None = None,
    steps: int = 100,
) -> RateSearch:
    """Try rates from 1e-7 to 1 on the run that `config` describes, each for one step; nothing is kept of it.

    Rates of layers and head keep their proportions. UserError as from `trainer.train`.
    """
    check_config(config)
    config = replace(config, learning_rate=1.0, teacher="", report=False)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        images = images or open_training_data(config, out)
        start = starting_model(config, images.classes, out)
        training = Training(config, out, silent, images, start, time.monotonic(), True)
        model, head = training.make_model()
        run = training.make_run(1, head, model)
        return _tried(run, model.to("cpu" if run.use_cpu else "cuda").train(), steps, on_progress)


def _tried(run: Run, model: torch.nn.Module, steps: int, report: Report) -> RateSearch:
    config = run.config
    groups = parameter_groups(model, run.head, config)
    factors = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(
        groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon
    )
    loss_of = Loss(config, run.training.labels, run.training.classes)
    learning = [one for group in groups for one in group["params"]]
    device = learning[0].device
    rates: list[float] = []
    losses: list[float] = []
    average = 0.0
    for step, batch in zip(range(steps), _batches(run), strict=False):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / max(1, steps - 1))
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        pixels, targets, weights = (batch[name].to(device) for name in ("pixel_values", "targets", "weights"))
        loss = (loss_of(model(pixel_values=pixels).logits, targets) * weights).mean()
        value = float(loss.detach())
        average = _SMOOTH * average + (1 - _SMOOTH) * value
        smoothed = average / (1 - _SMOOTH ** (step + 1))
        if not math.isfinite(value) or (losses and smoothed > _HOPELESS * min(losses)):
            break
        rates.append(rate)
        losses.append(smoothed)
        optimizer.zero_grad()
        loss.backward()
        if config.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(learning, config.max_grad_norm)
        optimizer.step()
        report(ProgressEvent("learning rate", step + 1, steps, {"loss": smoothed}))
    if len(losses) < _FEWEST:
        raise UserError(
            "The loss is no number from the start.", fix="check the pictures, or take another model."
        )
    return RateSearch(tuple(rates), tuple(losses))


def _batches(run: Run) -> Iterator[dict[str, torch.Tensor]]:
    batches = Batches(run.training.labels, run.config, 1, 1, 0)
    while True:
        for draws in batches:
            yield run.training.__getitems__(draws)
        batches.epoch += 1
