"""What one training run works with, and the same in the words of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import transformers

from fastsd_lib.core.progress import Report
from fastsd_lib.vit.distil import Teacher
from fastsd_lib.vit.train_config import VitTrainConfig
from fastsd_lib.vit.train_data import TrainingSet, ValidationSet

_STEPS_BETWEEN_LOGS = 10


@dataclass
class Run:
    """What one run works with; made by trainer.py."""

    config: VitTrainConfig
    out: Path
    name: str  # fingerprint of all that decides the result: a run resumes only its own checkpoints
    training: TrainingSet
    validation: ValidationSet | None
    head: tuple[str, ...]  # names of the head's modules
    teacher: Teacher | None
    report: Report
    parts: int  # pieces that a step is cut into, so that it fits into memory
    mixed_precision: str  # no, bf16, fp16
    gradient_checkpointing: bool
    use_cpu: bool
    processes: int
    should_stop: Callable[[], bool] = lambda: False  # asked after each step
    metrics: dict[str, float] = field(default_factory=dict)  # of the last validation
    enough: bool = False  # early stopping: there will be no further step
    interrupted: bool = False  # somebody asked to stop: the run goes on another time

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"


def arguments_for(run: Run) -> transformers.TrainingArguments:
    config = run.config
    judged = run.validation is not None
    every = {"save_strategy": "epoch"}
    if config.save_every_steps:
        every = {"save_strategy": "steps", "save_steps": config.save_every_steps}
    step = config.batch_size * config.gradient_accumulation
    return transformers.TrainingArguments(
        output_dir=str(run.out),
        per_device_train_batch_size=max(1, math.ceil(step / run.parts / run.processes)),
        gradient_accumulation_steps=run.parts,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=config.warmup_steps if config.warmup_steps < 1 else int(config.warmup_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=run.mixed_precision == "bf16",
        fp16=run.mixed_precision == "fp16",
        eval_strategy="epoch" if judged else "no",
        metric_for_best_model="score" if config.best_by == "accuracy" else "loss",
        greater_is_better=config.best_by == "accuracy",
        logging_steps=_STEPS_BETWEEN_LOGS,
        logging_nan_inf_filter=False,
        seed=config.seed,
        use_cpu=run.use_cpu,
        ddp_backend="gloo" if run.use_cpu and run.processes > 1 else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=not run.use_cpu,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        log_level_replica="error",
        **every,
    )
