"""transformers' Trainer with our data, our loss and sealed checkpoints."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

from fastsd_lib.core.errors import UserError
from fastsd_lib.core.progress import ProgressEvent
from fastsd_lib.sessions.checkpoints import Checkpoint, held, list_checkpoints, prune, write_checkpoint
from fastsd_lib.vit import train_checkpoint as files
from fastsd_lib.vit.augment import uniform
from fastsd_lib.vit.layers import parameter_groups
from fastsd_lib.vit.train_data import Batches, as_batch
from fastsd_lib.vit.train_log import METRICS, append_metrics, reason
from fastsd_lib.vit.train_loss import Loss
from fastsd_lib.vit.train_run import Run, arguments_for

STAGE = "vit"
_SEED_STREAM = 9  # apart from those of augment.py


class Loop(transformers.Trainer):
    """One training run. Its private methods replaced here are those that write, read and feed."""

    def __init__(self, model: nn.Module, run: Run) -> None:
        self.run = run
        self.ema = files.Ema(model, run.config.ema_decay) if run.config.ema_decay else None
        self.loss = Loss(run.config, run.training.labels, run.training.classes)
        self.batches = Batches(
            run.training.labels,
            run.config,
            run.parts,
            run.processes,
            int(os.environ.get("RANK", "0")) if run.processes > 1 else 0,
        )
        self.unsaved: OSError | None = None  # why the newest checkpoint is not on the disk
        self._micro = (-1, 0)
        super().__init__(
            model=model,
            args=arguments_for(run),
            train_dataset=run.training,
            eval_dataset=run.validation,
            callbacks=[_Steps(self)],
        )
        self.remove_callback(transformers.PrinterCallback)
        # The mean over a step's pictures is made by their weights: nothing else may scale the loss by their number.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False

    # -- what is learned from -----------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.run.training,
            batch_sampler=self.batches,
            collate_fn=as_batch,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            config = self.run.config
            self.optimizer = torch.optim.AdamW(
                parameter_groups(self.model, self.run.head, config),
                lr=config.learning_rate,
                betas=(config.adam_beta1, config.adam_beta2),
                eps=config.adam_epsilon,
                fused=True,
            )
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Dropout, too, is a function of seed and step."""
        step, part = (
            self.state.global_step,
            self._micro[1] + 1 if self._micro[0] == self.state.global_step else 0,
        )
        self._micro = (step, part)
        place = part * self.args.world_size + self.args.process_index
        drawn = uniform(self.run.config.seed, step, torch.tensor([place]).numpy(), _SEED_STREAM, 1)
        torch.manual_seed(int(drawn[0, 0] * 2**53))
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        config, teacher = self.run.config, self.run.teacher
        pixels = inputs["pixel_values"]
        more = {"output_hidden_states": True} if teacher and config.distil_features else {}
        answers = model(pixel_values=pixels, **more)
        loss = self.loss(answers.logits, inputs["targets"])
        if teacher is not None:
            loss = (1 - config.distil_weight) * loss + config.distil_weight * teacher.loss(pixels, answers)
        loss = (loss * inputs["weights"]).mean()
        return (loss, answers) if return_outputs else loss

    # -- judging ------------------------------------------------------------------------------------------------------

    @contextmanager
    def judged_weights(self) -> Any:
        """Inside, the model holds the weights that are judged and kept: the average, where there is one."""
        if self.ema is not None:
            self.ema.swap()
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.swap()

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """accuracy and top5 in [0, 1], loss in nats, on all validation pictures."""
        assert self.run.validation is not None
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        sums = torch.zeros(4, dtype=torch.float64)
        with self.judged_weights():
            model.eval()
            batches = self.run.validation.batches(
                max(32, self.args.per_device_train_batch_size), self.args.process_index, self.args.world_size
            )
            for pixels, labels in batches:
                with self.compute_loss_context_manager():
                    logits = model(pixel_values=pixels.to(self.args.device)).logits.float().cpu()
                best = logits.topk(min(5, logits.shape[1]), 1).indices == labels[:, None]
                loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
                sums += torch.stack([best[:, 0].sum(), best.any(1).sum(), loss, torch.tensor(len(labels))])
        model.train(was_training)
        right, among, loss, count = self.accelerator.reduce(sums.to(self.args.device), "sum").tolist()
        metrics = {
            "eval_accuracy": right / count,
            "eval_top5": among / count,
            "eval_loss": loss / count,
            # The same number of right answers: the surer ones are better.
            "eval_score": (right + 1 / (1 + loss / count)) / count,
        }
        self.run.metrics = {name: metrics[f"eval_{name}"] for name in ("accuracy", "top5", "loss")}
        self.log(metrics)
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        better = super()._determine_best_metric(metrics, trial)
        if better and self.run.config.keep_best:
            self.control.should_save = True
        patience = self.run.config.early_stopping * self.batches.steps_per_epoch
        best = self.state.best_global_step or 0
        if patience and self.state.global_step - best >= patience:
            self.run.enough = self.control.should_training_stop = self.control.should_save = True
        return better

    # -- saying -------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        loss = logs.get("loss")
        if loss is not None and not math.isfinite(loss):
            raise UserError(
                f"The loss is no number any more at step {self.state.global_step}.",
                fix="lower learning_rate, add warmup_steps, or set mixed_precision to no.",
            )
        if self.is_world_process_zero():
            append_metrics(
                self.run.out / METRICS,
                {
                    "step": self.state.global_step,
                    "epoch": round(self.state.epoch or 0.0, 4),
                    "time": round(time.time(), 3),
                    **{name: float(value) for name, value in logs.items()},
                },
            )

    def say(self, text: str) -> None:
        if self.is_world_process_zero():
            self.run.report(ProgressEvent("checkpoint", 1, 1, {"": text}))

    # -- saving -------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.is_world_process_zero():
            try:
                self._write_checkpoint()
                self.unsaved = None
            except OSError as error:
                self.unsaved = error
                self.say(f"step {self.state.global_step} not saved: {reason(error)}; training goes on")
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        more = {
            "scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        contents, size = files.contents_of(
            self.accelerator.unwrap_model(self.model), self.ema, self.optimizer, self.state, more
        )
        step, total = self.state.global_step, self.state.max_steps
        if any(one.step == step for one in list_checkpoints(self.run.checkpoints, self.run.name)):
            return  # an epoch's end that is also a saving step
        write_checkpoint(
            self.run.checkpoints,
            step=step,
            total_steps=total,
            stage=STAGE,
            run=self.run.name,
            files=contents,
            facts={
                "config": asdict(self.run.config),
                "metrics": self.run.metrics,
                "best_step": self.state.best_global_step,
                "stopped": self.run.enough,
            },
            expected_bytes=size,
        )
        self._prune()

    def _prune(self) -> None:
        best = checkpoint_of(self.run, self.state.best_global_step) if self.run.config.keep_best else None
        try:
            if best is None:
                prune(self.run.checkpoints, self.run.name, self.run.config.keep_checkpoints)
            else:
                with held(best.path):
                    prune(self.run.checkpoints, self.run.name, self.run.config.keep_checkpoints)
        except OSError as error:
            self.say(f"older ones cannot be deleted: {reason(error)}")

    # -- resuming -----------------------------------------------------------------------------------------------------

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        path = Path(resume_from_checkpoint)
        files.load_learned(self.accelerator.unwrap_model(self.model), path / files.WEIGHTS)
        if self.ema is not None:
            files.load_ema(self.ema, path / files.EMA)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        files.load_optimizer(self.optimizer, Path(checkpoint) / files.OPTIMIZER)
        self.lr_scheduler.load_state_dict(_state_of(checkpoint)["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_scaler(self, checkpoint: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if checkpoint is not None and scaler is not None:
            scaler.load_state_dict(_state_of(checkpoint)["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """There is none: every random number is a function of seed and step."""


class _Steps(transformers.TrainerCallback):
    """What happens between the steps."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._loop.batches.epoch = state.global_step // self._loop.batches.steps_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        run = self._loop.run
        if self._loop.ema is not None:
            self._loop.ema.update(state.global_step)
        if state.is_world_process_zero:
            facts = {name: run.metrics[name] for name in ("accuracy",) if name in run.metrics}
            run.report(ProgressEvent("train", state.global_step, state.max_steps, facts))
        if state.global_step < state.max_steps and run.should_stop():
            run.interrupted = control.should_training_stop = control.should_save = True
        if self._at_an_epochs_end(state):
            control.should_save = False  # it is judged first: else a resumed run would not know the result

    def _at_an_epochs_end(self, state: Any) -> bool:
        return (
            state.global_step % self._loop.batches.steps_per_epoch == 0
            or state.global_step >= state.max_steps
        )

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._at_an_epochs_end(state):  # interrupted in its middle, and saved there
            control.should_evaluate = control.should_save = False
            return
        every = self._loop.run.config.save_every_steps
        if not every or state.global_step % every == 0 or state.global_step >= state.max_steps:
            control.should_save = True


def checkpoint_of(run: Run, step: int | None) -> Checkpoint | None:
    """The checkpoint of this run at `step`, if it is there."""
    return next((one for one in list_checkpoints(run.checkpoints, run.name) if one.step == step), None)


def _state_of(checkpoint: str) -> dict[str, Any]:
    return json.loads((Path(checkpoint) / files.STATE).read_text(encoding="utf-8"))
