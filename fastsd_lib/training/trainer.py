"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242) in two stages: the text encoder first, then the U-Net.

Every random choice of a step is a function of the seed and the step's number (OneTrainer's idea), so that a
resumed run equals one that was never interrupted: the same losses, the same bits at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent, Report, silent
from fastsd_lib.core.stopping import Stopping, polite_stop
from fastsd_lib.formats.parts import Parts
from fastsd_lib.sessions.checkpoints import Checkpoint, clear_unfinished, newest_intact
from fastsd_lib.training.checkpoint import what_changed
from fastsd_lib.training.config import DreamBoothConfig
from fastsd_lib.training.latents import LatentCache
from fastsd_lib.training.lora import Adapters
from fastsd_lib.training.loss import learning_rate_factor
from fastsd_lib.training.objective import Objective
from fastsd_lib.training.pace import Clock
from fastsd_lib.training.run_log import RunLog
from fastsd_lib.training.saver import OnSaved, Saver
from fastsd_lib.training.stage_state import StageState, load_drawn, make_state, restore_state, snapshot
from fastsd_lib.training.stages import UNET, Stage, run_fingerprint, stages_of
from fastsd_lib.training.training_set import TrainingSet

DrawSamples = Callable[[Parts, int], tuple[Path, ...]]  # (live parts, step) -> pictures written


class LossNotFinite(UserError):
    """The weights are beyond repair: they are not saved."""


def train(
    parts: Parts,
    cache: LatentCache,
    training_set: TrainingSet,
    config: DreamBoothConfig,
    *,
    run: str,
    checkpoints: Path,
    logs: Path,
    device: str = "cpu",
    report: Report = silent,
    should_stop: Callable[[], bool] | None = None,
    draw_samples: DrawSamples | None = None,
    also: Sequence[Path] = (),
    on_saved: OnSaved | None = None,
) -> Checkpoint:
    """Train `parts`, the base model's, to the end, or from the newest intact checkpoint of this run to the end.

    `also`: further folders where checkpoints of this run may lie. `on_saved` hears of each checkpoint that is on
    the disk and read back, in the thread that wrote it.
    Returns the last checkpoint; `finished` is False when `should_stop` or a signal ended it early, and calling again
    continues from there. Whatever else ends it early is raised once the last whole step is saved. UserError when the
    loss is not finite, or the last checkpoint cannot be written; a failed one before that is said and tried again.
    """
    total = config.text_encoder_steps + config.unet_steps
    for name in clear_unfinished(checkpoints):
        report(ProgressEvent("checkpoint", 1, 1, {"": f"{name} was not written to its end: deleted"}))
    resumed, rejected = newest_intact([checkpoints, *also], run)
    for line in rejected:
        report(ProgressEvent("checkpoint passed over", 1, 1, {"": line}))
    if resumed and resumed.finished:
        return resumed
    if resumed and (changes := what_changed(resumed, device)):
        report(ProgressEvent("resumed with", 1, 1, {"": f"{changes}: the last digits may differ"}))
    saver = Saver(checkpoints, run, total, config, report, on_saved, resumed)
    with (
        RunLog(logs, first_step=resumed.step if resumed else 0) as log,
        polite_stop(should_stop) as stopping,
    ):
        objective = Objective(parts, cache, training_set, config, device)
        work = _Run(parts, config, objective, saver, log, report, stopping, device, draw_samples)
        try:
            for stage in stages_of(config):
                if resumed and resumed.step >= stage.last_step:
                    work.take_over(stage, resumed)
                elif work.run_stage(stage, resumed):
                    break
            return saver.finish()
        finally:
            if not stopping.at_once:
                saver.wait()


@dataclass
class _Run:
    """One call of `train`: what all its stages share."""

    parts: Parts
    config: DreamBoothConfig
    objective: Objective
    saver: Saver
    log: RunLog
    report: Report
    stopping: Stopping
    device: str = "cpu"
    draw_samples: DrawSamples | None = None
    trained: dict[str, torch.nn.Module] = field(default_factory=dict)  # of finished stages, by part

    def take_over(self, stage: Stage, resumed: Checkpoint) -> None:
        """What this stage ended with, from a checkpoint of a later one."""
        module = self._to_train(stage)
        load_drawn(module, stage.part, resumed)
        self.trained[stage.part] = module.requires_grad_(False)

    def run_stage(self, stage: Stage, resumed: Checkpoint | None) -> bool:
        """From where `resumed` stands in this stage, or its start, to its end; True if asked to stop on the way."""
        module = self._to_train(stage)
        self.objective.begin(stage, module if isinstance(module, Adapters) else None)
        state = make_state(stage, module, self.config, self.device)
        if resumed is not None and resumed.step > stage.first_step:
            restore_state(state, resumed)
        if stage.name == UNET:
            self.objective.freeze_text_encoder()
        try:
            stop = self._steps(stage, state)
        except BaseException as error:
            if not self.stopping.at_once:
                self._rescue(state, error)
            raise
        if not stop:
            state.end()
            self.trained[stage.part] = module
        return stop

    def _to_train(self, stage: Stage) -> torch.nn.Module:
        """The part itself, or new adapters on it; nothing else learns."""
        for part in (self.parts.unet, self.parts.text_encoder):
            part.requires_grad_(False)
        module = getattr(self.parts, stage.part)
        if self.config.method == "full":
            return module
        return Adapters(stage.part, module, self.config.lora_rank, self.config.lora_alpha, self.config.seed)

    def _steps(self, stage: Stage, state: StageState) -> bool:
        config, first, clock = self.config, state.step, Clock()
        self.report(ProgressEvent(stage.name, state.step, stage.steps))
        stop = False
        while state.step < stage.steps and not stop:
            rate = stage.learning_rate * learning_rate_factor(
                config.schedule, state.step, stage.steps, config.warmup_steps
            )
            loss = self.accumulate(state)
            state.apply_gradients(rate)
            average = state.loss_average
            state.loss_average = loss if average is None else 0.98 * average + 0.02 * loss
            facts = {
                "loss": loss,
                "loss_average": state.loss_average,
                "learning_rate": rate,
                **clock.facts(state.step - first, stage.steps - state.step, self._pictures_per_step),
            }
            self.log.write(state.run_step, stage.name, state.step, stage.steps, facts)
            stop = self.stopping()
            self._save_if_due(state, stop)
            pictures = self._samples(state)
            self.report(ProgressEvent(stage.name, state.step, stage.steps, facts, pictures))
        return stop

    def accumulate(self, state: StageState) -> float:
        """Forward and backward of one step's micro-batches; returns their mean loss."""
        parts, total = self.config.gradient_accumulation, 0.0
        for part in range(parts):
            with self.objective.autocast():
                loss = self.objective.loss(state.stage, state.step * parts + part)
            value = loss.item()
            if not math.isfinite(value):
                raise LossNotFinite(
                    f"The loss became {value} at step {state.run_step + 1} ({state.stage.name}).",
                    fix="lower the learning rate or set mixed_precision=no; earlier checkpoints are untouched.",
                )
            state.scaler.scale(loss / parts).backward()
            total += value / parts
        return total

    @property
    def _pictures_per_step(self) -> int:
        both = 2 if self.config.prior_preservation else 1
        return self.config.batch_size * self.config.gradient_accumulation * both

    def _save_if_due(self, state: StageState, stop: bool) -> None:
        every = self.config.save_every_steps
        if stop or state.run_step == self.saver.total_steps:
            self.saver.save_now(self._snapshot(state))
        elif state.step == state.stage.steps or (every and state.run_step % every == 0):
            self.saver.save(self._snapshot(state))
        else:
            self.saver.tell()

    def _rescue(self, state: StageState, error: BaseException) -> None:
        """Save the last whole step before the error goes on its way."""
        self.saver.wait()
        safe = self.saver.latest.step if self.saver.latest else 0
        if not state.whole or state.run_step <= safe or isinstance(error, LossNotFinite):
            return
        with suppress(Exception):  # the error that is on its way says more
            self.saver.save_now(self._snapshot(state))

    def _snapshot(self, state: StageState) -> object:
        return snapshot(state, self.parts, self.trained, self.config, self.device)

    def _samples(self, state: StageState) -> tuple[Path, ...]:
        every = self.config.sample_every_steps
        ends = state.stage.name == UNET and state.step == state.stage.steps
        if self.draw_samples is None or not every or not (state.run_step % every == 0 or ends):
            return ()
        with state.drawing():
            return self.draw_samples(self.parts, state.run_step)


__all__ = ["DrawSamples", "LossNotFinite", "run_fingerprint", "stages_of", "train"]
